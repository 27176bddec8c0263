"""Student steps per second with the recipe `fast`, for models with random weights."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from benchmarks.distillation import plain_loop
from benchmarks.distillation.jobs import PAIRS, Pair
from benchmarks.measure import Bench
from zskd_fast.config.recipe import DistillationRecipe
from zskd_fast.config.recipe_files import load_recipe
from zskd_fast.distillation.batches import Batches
from zskd_fast.distillation.distiller import Distiller

SETTINGS = list(PAIRS)
QUICK_SETTINGS = ["LeNet-5 to LeNet-5-Half"]
PROVIDERS = ["zskd_fast", "plain loop", "plain loop, torch.compile"]
QUICK_PROVIDERS = PROVIDERS[:2]
_COMPILED = SETTINGS[:1]  # the others compile for minutes
# The rate of the steps: neither loop sets first weights.
_RECIPE = dataclasses.replace(load_recipe("fast").distillation, pruned_start=False)
# One batch: a longer run calibrates the student's batch normalization on up to 1,024 impressions at its end.
_IMPRESSIONS = _RECIPE.batch_size


def _impressions(pair: Pair, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand((_IMPRESSIONS, *pair.input_spec.shape), generator=generator).to(device)


def _recipe(steps: int) -> DistillationRecipe:
    return dataclasses.replace(_RECIPE, steps=steps)


def _plain(
    teacher: nn.Module, student: nn.Module, x: Tensor, recipe: DistillationRecipe, *, compiled: bool
) -> Callable[[], object]:
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    models = _compiled(teacher, student) if compiled else [teacher, student]
    return lambda: plain_loop.train(models[0], models[1], parameters, x, recipe)


def _compiled(*models: nn.Module) -> list[plain_loop.Features]:
    torch._dynamo.reset()
    return [torch.compile(model, dynamic=False) for model in models]


def _call(provider: str, pair: Pair, steps: int, device: str) -> Callable[[], object]:
    models, x, recipe = pair.models(device), _impressions(pair, device), _recipe(steps)
    if provider == "zskd_fast":
        distiller = Distiller(*models, pair.input_spec, recipe, seed=0)
        return lambda: distiller.fit(x, progress=False)
    return _plain(*pair.split_models(*models), x, recipe, compiled=provider.endswith("torch.compile"))


def _check_same_step(pair: Pair, device: str) -> None:
    """Compare loss and first step of both loops on the same batch and from the same weights."""
    unsearched = dataclasses.replace(_RECIPE.dormant_units, every=0)
    recipe = dataclasses.replace(_recipe(1), dormant_units=unsearched)
    models, x = pair.models(device), _impressions(pair, device)
    batch = Batches(x, recipe, pair.input_spec, seed=0, device=torch.device(device)).of(0).x
    start = {name: weight.clone() for name, weight in models[1].named_parameters()}
    loss = Distiller(*models, pair.input_spec, recipe, seed=0).fit(x, progress=False).loss[0]
    ours = dict(models[1].named_parameters())
    teacher, student = pair.models(device)
    theirs = dict(student.named_parameters())
    parts = pair.split_models(teacher, student)
    other = plain_loop.distance(*parts, batch, recipe)
    torch.testing.assert_close(other.item(), loss, rtol=1e-3, atol=0)
    other.backward()
    # Adam's first step has the sign of the gradient; gradients near 0 may round to another sign.
    of_all, of_wrong = 0.0, 0.0
    for name, weight in theirs.items():
        if weight.grad is not None:
            is_other = (start[name] > ours[name]) != (weight.grad > 0)
            of_all += weight.grad.abs().sum().item()
            of_wrong += (weight.grad * is_other).abs().sum().item()
    assert of_wrong < 1e-2 * of_all, f"the first steps differ for {of_wrong / of_all:.1%} of the gradient"


def test_distillation(setting: str, threads: int, provider: str, bench: Bench) -> None:
    pair, compiles = PAIRS[setting], provider.endswith("torch.compile")
    if compiles and setting not in _COMPILED:
        pytest.skip("its compilation takes minutes")
    if bench.is_first_turn and provider == PROVIDERS[0]:
        _check_same_step(pair, bench.device)
    bench(
        _call(provider, pair, pair.steps, bench.device),
        op="distillation",
        setting=setting,
        provider=provider,
        shape=str(_RECIPE.batch_size),
        items=pair.steps,
    )
