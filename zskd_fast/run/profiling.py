"""A trace of a few steps of a job, for Perfetto (ui.perfetto.dev) or chrome://tracing."""

import copy
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from zskd_fast.config.recipe import SynthesisRecipe
from zskd_fast.errors import InputError
from zskd_fast.run.job import Job
from zskd_fast.runtime.files import require_writable
from zskd_fast.synthesis.synthesizer import Synthesizer

# Each step has hundreds of events: more steps would only make the file larger.
STEPS = 5


def require_writable_trace(path: Path) -> None:
    """Raise InputError if the file of a trace cannot be written; leave no file."""
    if path.is_dir() or (path.exists() and not os.access(path, os.W_OK)):
        raise InputError(f"cannot write the trace {path}: it is a folder or write-protected")
    require_writable(path.parent)


def profile_synthesis(synthesizer: Synthesizer, path: Path) -> None:
    """Write a trace of a few steps of one batch of impressions, which are discarded."""
    short = synthesizer.shortened(STEPS)
    write_trace(path, lambda: short.run(range(short.recipe.batch_size)))


def profile_job(job: Job, synthesis: SynthesisRecipe, path: Path, *, layer: str | torch.Tensor | None = None) -> None:
    """Write a trace of a few steps of one batch of impressions and as many steps of a copy of the student."""
    synthesizer = Synthesizer(job.teacher, job.input_spec, synthesis, seed=job.seed, layer=layer)
    short = synthesizer.shortened(STEPS)
    student = copy.copy(job.student)
    student.model = copy.deepcopy(student.model)
    # A warmup of half the steps, whatever the recipe's share: torch refuses a warmup of exactly one step.
    recipe = replace(job.distillation, steps=STEPS, warmup_fraction=0.5)
    distiller = replace(job, student=student, distillation=recipe).distiller()
    write_trace(path, lambda: distiller.fit(short.run(range(synthesis.batch_size)), progress=False))


def write_trace(path: Path, work: Callable[[], object]) -> None:
    """Call ``work`` twice, first as a warmup, and write the trace of the second call as Chrome's JSON.

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
