"""The whole synthesis: LeNet-5 on MNIST's input by the paper's recipe, cut short; image-steps are what is counted."""

import dataclasses
import functools

from benchmarks import plain_loop
from benchmarks.measure import Bench
from zskd_fast.config.recipe import load_recipe
from zskd_fast.models.loading import ASSETS, load_model
from zskd_fast.synthesis.synthesizer import Synthesizer

SETTINGS = [50]  # steps of each impression; what comes before and after them is done once an impression
SHAPES = [(400,)]  # impressions: four batches, so that there is something for several cores
QUICK_SETTINGS = [2]
QUICK_SHAPES = [(100,)]
PROVIDERS = ["zskd_fast", "plain loop", "plain loop, frozen teacher"]
_RECIPE = load_recipe("paper-mnist")


def _teacher(device):
    return load_model("zskd_fast.models:LeNet5", ASSETS / "lenet5-mnist.safetensors").to(device).eval()


def _synthesizer(count, steps, device):
    recipe = dataclasses.replace(_RECIPE.synthesis, impressions=count, steps=steps)
    return Synthesizer(_teacher(device), _RECIPE.input, recipe, seed=0)


def _call(provider, count, steps, device):
    synthesizer = _synthesizer(count, steps, device)
    if provider == "zskd_fast":
        return lambda: synthesizer.run(range(count))
    teacher = _teacher(device).requires_grad_(provider == "plain loop")
    recipe = _RECIPE.synthesis
    return functools.partial(
        plain_loop.make_impressions,
        teacher,
        synthesizer.similarity,
        _RECIPE.input.shape,
        count=count,
        steps=steps,
        learning_rate=recipe.learning_rate,
        temperature=recipe.temperature,
    )


def _check_same_job(device):
    """From the same starts and targets, a step of the plain loop leads to what one of the synthesizer does."""
    still = dataclasses.replace(_RECIPE.synthesis, steps=1, learning_rate=1e-30)
    start = Synthesizer(_teacher(device), _RECIPE.input, still, seed=0).run(range(plain_loop.BATCH))
    ours = _synthesizer(plain_loop.BATCH, 1, device).run(range(plain_loop.BATCH))
    recipe = _RECIPE.synthesis
    theirs = plain_loop.optimise(
        _teacher(device), start.x, ours.target, 1, recipe.learning_rate, recipe.temperature
    )
    # Adam's first step is the learning rate times the sign of the gradient, but where that is as small as epsilon.
    error = (theirs - ours.x).abs().mean() / (ours.x - start.x).abs().mean()
    assert error < 1e-2, f"the two loops differ by {error:.1e} of a step"


def test_synthesis(shape, setting, threads, provider, bench: Bench):
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
