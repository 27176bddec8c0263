"""A trace of a few steps of a job, for Perfetto (ui.perfetto.dev) or chrome://tracing."""

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from zskd_fast.errors import InputError
from zskd_fast.run.run_folder import require_writable

# Each step has hundreds of events: more steps would make the file large and tell nothing new.
STEPS = 5


def require_writable_trace(path: Path) -> None:
    """Raise InputError if the file cannot be written, before any work is done for it; leaves nothing."""
    if path.is_dir() or (path.exists() and not os.access(path, os.W_OK)):
        raise InputError(f"cannot write the trace {path}: it is a folder or write-protected")
    require_writable(path.parent)


def write_trace(path: Path, work: Callable[[], object]) -> None:
    """Call ``work`` twice, first to warm up, and write the trace of the second time as Chrome's JSON.

    The phases are its ranges ``zskd::...``. A name that ends in .gz makes a compressed file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    work()
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        work()
    profiler.export_chrome_trace(str(path))
