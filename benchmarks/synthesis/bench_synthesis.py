"""The whole synthesis: a LeNet-5 of MNIST with the paper's recipe and fewer steps, in image-steps per second."""

import dataclasses
import functools
from collections.abc import Callable

from torch import nn

from benchmarks.measure import Bench
from benchmarks.synthesis import plain_loop
from zskd_fast.config.recipe_files import load_recipe
from zskd_fast.models.user_models import load_model
from zskd_fast.repro.setups import SETUPS
from zskd_fast.synthesis.synthesizer import Synthesizer

SETTINGS = [50]  # steps per impression; the work before and after the steps is done once per impression
SHAPES = [(400,)]  # impressions: four batches, enough for several cores
QUICK_SETTINGS = [2]
QUICK_SHAPES = [(100,)]
PROVIDERS = ["zskd_fast", "plain loop", "plain loop, frozen teacher"]
_SETUP = SETUPS["paper-mnist"]
_RECIPE = load_recipe(_SETUP.recipe).synthesis
_INPUT = _SETUP.input_spec


def _teacher(device: str) -> nn.Module:
    return load_model(_SETUP.teacher.model, _SETUP.teacher.weights).to(device).eval()


def _synthesizer(steps: int, device: str, learning_rate: float = _RECIPE.learning_rate) -> Synthesizer:
    recipe = dataclasses.replace(_RECIPE, steps=steps, learning_rate=learning_rate)
    return Synthesizer(_teacher(device), _INPUT, recipe, seed=0)


def _call(provider: str, count: int, steps: int, device: str) -> Callable[[], object]:
    synthesizer = _synthesizer(steps, device)
    if provider == "zskd_fast":
        return lambda: synthesizer.run(range(count))
    return functools.partial(
        plain_loop.make_impressions,
        _teacher(device).requires_grad_(provider == "plain loop"),
        synthesizer.similarity,
        _INPUT.shape,
        count=count,
        steps=steps,
        learning_rate=_RECIPE.learning_rate,
        temperature=_RECIPE.temperature,
    )


def _check_same_job(device: str) -> None:
    """Compare one step of the plain loop with one step of the synthesizer from the same starts and targets."""
    ids = range(plain_loop.BATCH)
    start = _synthesizer(1, device, learning_rate=1e-30).run(ids)
    ours = _synthesizer(1, device).run(ids)
    rate, temperature = _RECIPE.learning_rate, _RECIPE.temperature
    theirs = plain_loop.optimize(_teacher(device), start.x, ours.target, 1, rate, temperature)
    # Adam's first step is the learning rate times the sign of the gradient, except where that is as small as epsilon.
    error = (theirs - ours.x).abs().mean() / (ours.x - start.x).abs().mean()
    assert error < 1e-2, f"the two loops differ by {error:.1e} of a step"


def test_synthesis(shape: tuple[int], setting: int, threads: int, provider: str, bench: Bench) -> None:
    count, steps = shape[0], setting
    if bench.is_first_turn:
        _check_same_job(bench.device)
    bench(
        _call(provider, count, steps, bench.device),
        op="synthesis",
        setting=f"LeNet-5, batch 100, {steps} steps",
        provider=provider,
        shape=str(count),
        items=count * steps,
    )
