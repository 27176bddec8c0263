"""The plain loops compute what the package computes, so that their times may be compared."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

pytest.importorskip("pandas", reason="the benchmarks need the extra `bench`")

from benchmarks.distillation import bench_distillation, plain_loop
from benchmarks.distillation.jobs import PAIRS
from benchmarks.plain_noise import plain_noise
from benchmarks.run import bench_time_to_accuracy as to_accuracy
from benchmarks.synthesis import bench_synthesis
from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.recipe_files import load_recipe
from zskd_fast.distillation.augmentation import augment
from zskd_fast.synthesis.start_noise import start_noise

_RECIPE = load_recipe("fast")
_SPEC = InputSpec((1, 32, 32))


def _facts(x: Tensor) -> Tensor:
    """Mean, deviation, share of the lower limit, and mean step between neighbors."""
    return torch.stack([x.mean(), x.std(), (x == 0).float().mean(), x.diff(dim=-1).abs().mean()])


@pytest.mark.parametrize("pair", PAIRS)
def test_the_plain_distillation_takes_the_step_of_the_distiller(pair: str) -> None:
    bench_distillation._check_same_step(PAIRS[pair], "cpu")


@pytest.mark.parametrize("job", ["LeNet-5, recipe fast, 2 steps", "ResNet-20, recipe fast"])
def test_the_plain_synthesis_takes_the_step_of_the_synthesizer(job: str) -> None:
    bench_synthesis._check_same_job(bench_synthesis.JOBS[job], "cpu")


def test_the_plain_noise_has_the_distribution_of_the_packages() -> None:
    noise = _RECIPE.distillation.fresh_noise
    ours = start_noise(torch.arange(2000), noise, _SPEC, seed=0, clamp=True)
    torch.manual_seed(0)
    theirs = plain_noise(2000, _SPEC.shape, noise, "cpu", clamp=True)
    torch.testing.assert_close(_facts(theirs), _facts(ours), rtol=0.05, atol=0)


def test_the_plain_augmentation_has_the_distribution_of_the_packages() -> None:
    recipe = dataclasses.replace(_RECIPE.distillation.augmentation, flip_probability=0.5)
    x = torch.linspace(0, 1, 32).expand(2000, 1, 32, 32).contiguous()
    ours = augment(x, torch.arange(2000), recipe, seed=0, input_spec=_SPEC)
    torch.manual_seed(0)
    theirs = plain_loop.augment(x, recipe)
    torch.testing.assert_close(_facts(theirs), _facts(ours), rtol=0.05, atol=0)
    torch.testing.assert_close(theirs.mean((0, 1)), ours.mean((0, 1)), rtol=0, atol=0.05)


def test_the_plain_loop_trains_the_student_and_leaves_the_shared_layers() -> None:
    pair = PAIRS["LeNet-5 to LeNet-5-Half"]
    teacher, student = pair.split_models(*pair.models())
    before = {name: weight.clone() for name, weight in student.named_parameters()}
    trained = [weight for weight in student.parameters() if weight.requires_grad]
    recipe = dataclasses.replace(_RECIPE.distillation, steps=4)
    losses = plain_loop.train(teacher, student, trained, torch.rand(20, 1, 32, 32), recipe, lambda step: step == 3)
    assert len(losses) == 3 and all(loss > 0 for loss in losses)
    changed = {name for name, weight in student.named_parameters() if not torch.equal(weight, before[name])}
    assert changed and all(name.startswith("head.") for name in changed)


def test_a_watch_leaves_out_the_evaluations_and_ends_with_the_last_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(to_accuracy.time, "perf_counter", lambda: clock[0])
    watch = to_accuracy._Watch((0.5, 0.9), wait=lambda: None, start=0.0)

    def evaluated(accuracy: float) -> float:
        clock[0] += 100.0
        return accuracy

    for step, accuracy in ((1, 0.4), (2, 0.6)):
        clock[0] += 1.0
        assert watch.look(step, lambda accuracy=accuracy: evaluated(accuracy)) == accuracy
    clock[0] += 1.0
    with pytest.raises(to_accuracy._AllReached):
        watch.look(3, lambda: evaluated(0.95))
    assert watch.reached == {0.5: (2.0, 2), 0.9: (3.0, 3)}
