"""The whole synthesis in image-steps per second, with fewer steps than the recipes have."""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import pytest
import torch
from torch import nn

from benchmarks.measure import Bench
from benchmarks.synthesis import plain_loop
from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.recipe import SynthesisRecipe
from zskd_fast.config.recipe_files import load_recipe
from zskd_fast.models import AlexNet, ResNet20
from zskd_fast.models.user_models import load_model
from zskd_fast.repro.setups import SETUPS
from zskd_fast.synthesis.synthesizer import Synthesizer

_MNIST = SETUPS["paper-mnist"]
_COLOR = InputSpec((3, 32, 32))


@dataclass(frozen=True)
class _Job:
    """A teacher, a recipe and the size of one timed call: whole batches, enough for several cores."""

    model: Callable[[], nn.Module]
    input_spec: InputSpec
    recipe: str
    count: int
    steps: int

    def teacher(self, device: str) -> nn.Module:
        """Return the teacher, the same at each call."""
        torch.manual_seed(0)
        return self.model().to(device).eval()

    def numbers(self, steps: int) -> SynthesisRecipe:
        """Return the recipe with a number of steps."""
        return dataclasses.replace(load_recipe(self.recipe).synthesis, steps=steps)

    def synthesizer(self, device: str, recipe: SynthesisRecipe) -> Synthesizer:
        """Return a synthesizer of this job's teacher."""
        return Synthesizer(self.teacher(device), self.input_spec, recipe, seed=0)


def _lenet() -> nn.Module:
    return load_model(_MNIST.teacher.model, _MNIST.teacher.weights)


JOBS = {
    # The work before and after the steps is done once per impression: fewer steps weigh it more.
    "LeNet-5, batch 100, 50 steps": _Job(_lenet, _MNIST.input_spec, "paper", 400, 50),
    "LeNet-5, recipe fast": _Job(_lenet, _MNIST.input_spec, "fast", 400, 60),
    "AlexNet, recipe fast": _Job(AlexNet, _COLOR, "fast", 200, 2),
    "ResNet-20, recipe fast": _Job(ResNet20, _COLOR, "fast", 200, 3),
    "LeNet-5, batch 100, 2 steps": _Job(_lenet, _MNIST.input_spec, "paper", 100, 2),
    "LeNet-5, recipe fast, 2 steps": _Job(_lenet, _MNIST.input_spec, "fast", 100, 2),
}
SETTINGS = list(JOBS)[:4]
QUICK_SETTINGS = list(JOBS)[4:]
PROVIDERS = ["zskd_fast", "plain loop", "plain loop, frozen teacher", "plain loop, torch.compile"]
QUICK_PROVIDERS = PROVIDERS[:3]
_COMPILED = "LeNet-5, recipe fast"  # the others compile for minutes


def _plain_teacher(provider: str, job: _Job, device: str) -> nn.Module:
    """Return the teacher of a plain loop; compiled, it is frozen, too."""
    teacher = job.teacher(device).requires_grad_(provider == "plain loop")
    if not provider.endswith("torch.compile"):
        return teacher
    torch._dynamo.reset()
    return cast(nn.Module, torch.compile(teacher, dynamic=False))


def _call(provider: str, job: _Job, device: str) -> Callable[[], object]:
    recipe = job.numbers(job.steps)
    synthesizer = job.synthesizer(device, recipe)
    if provider == "zskd_fast":
        return lambda: synthesizer.run(range(job.count))
    return functools.partial(
        plain_loop.make_impressions,
        _plain_teacher(provider, job, device),
        synthesizer.similarity,
        job.input_spec.shape,
        recipe,
        count=job.count,
    )


def _check_same_job(job: _Job, device: str) -> None:
    """Compare one step of the plain loop with one step of the synthesizer from the same starts and targets."""
    ids, recipe = range(plain_loop.BATCH), job.numbers(1)
    start = job.synthesizer(device, job.numbers(0)).run(ids)
    ours = job.synthesizer(device, recipe).run(ids)
    theirs = plain_loop.optimize(job.teacher(device), start.x, ours.target, recipe)
    # Adam's first step is the learning rate times the sign of the gradient, except where that is as small as epsilon.
    error = (theirs - ours.x).abs().mean() / (ours.x - start.x).abs().mean()
    assert error < 1e-2, f"the two loops differ by {error:.1e} of a step"


def test_synthesis(setting: str, threads: int, provider: str, bench: Bench) -> None:
    job = JOBS[setting]
    if provider.endswith("torch.compile") and setting != _COMPILED:
        pytest.skip("its compilation takes minutes")
    if bench.is_first_turn and provider == PROVIDERS[0]:
        _check_same_job(job, bench.device)
    bench(
        _call(provider, job, bench.device),
        op="synthesis",
        setting=setting,
        provider=provider,
        shape=str(job.count),
        items=job.count * job.steps,
    )
