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
from zskd_fast.runtime import cuda_graph
from zskd_fast.runtime.files import require_writable
from zskd_fast.synthesis.synthesizer import Synthesizer

# Each step has hundreds of events: more steps would only make the file larger.
STEPS = 5


def require_writable_trace(path: Path) -> None:
    """Raise InputError if the file of a trace cannot be written; leave no file."""
    if path.is_dir() or (path.exists() and not os.access(path, os.W_OK)):
        raise InputError(f"cannot write the trace {path}: it is a folder or write-protected")
    require_writable(path.parent)


def traced_steps(synthesizer: Synthesizer) -> int:
    """Return the number of steps in a trace: on a GPU enough for the graphs that a whole run uses."""
    uses_graph = cuda_graph.pays(synthesizer.device, synthesizer.recipe.steps)
    return cuda_graph.WORTH_CAPTURING if uses_graph else STEPS


def profile_synthesis(synthesizer: Synthesizer, path: Path) -> int:
    """Write a trace of a few steps of one batch of impressions, which are discarded; return the number of steps."""
    steps = traced_steps(synthesizer)
    short = synthesizer.shortened(steps)
    write_trace(path, lambda: short.run(range(short.recipe.batch_size)))
    return steps


def profile_job(job: Job, synthesis: SynthesisRecipe, path: Path, *, layer: str | torch.Tensor | None = None) -> int:
    """Write a trace of a few steps of one batch of impressions, and of as many of a copy of the student.

    Returns the number of steps.
    """
    synthesizer = Synthesizer(job.teacher, job.input_spec, synthesis, seed=job.seed, layer=layer)
    steps = traced_steps(synthesizer)
    short = synthesizer.shortened(steps)
    student = copy.copy(job.student)
    student.model = copy.deepcopy(student.model)
    # A warmup of half the steps, whatever the recipe's share: torch refuses a warmup of exactly one step.
    # The student's own weights: the fit of others, before the first step, would be most of such a trace.
    recipe = replace(job.distillation, steps=steps, warmup_fraction=0.5, pruned_start=False)
    distiller = replace(job, student=student, distillation=recipe).distiller()
    write_trace(path, lambda: distiller.fit(short.run(range(synthesis.batch_size)), progress=False))
    return steps


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
