"""The numbers of a recipe are in units of the valid range: the range of the raw values does not change the student."""

import dataclasses

import pytest
import torch
from small_models import image_classifier, same_tensors, synthesis_recipe
from torch import nn

from zskd_fast import Distiller, Synthesizer
from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.recipe_files import load_recipe

SHAPE = (1, 8, 8)
FAST = load_recipe("fast")


class _FromRange(nn.Module):
    """Maps raw values in a range to 0..1, in front of a classifier."""

    def __init__(self, low, high, model):
        super().__init__()
        self.low, self.span, self.model = low, high - low, model

    def forward(self, x):
        return self.model((x - self.low) / self.span)


def _student(low, high, noise, dtype="float32"):
    """Impressions and student of the recommended recipe, cut short, for models behind a range of raw values."""
    spec = InputSpec(SHAPE, valid_range=(low, high))
    teacher = _FromRange(low, high, image_classifier()).eval()
    student = _FromRange(low, high, image_classifier(seed=5))
    start = dataclasses.replace(FAST.synthesis.start_noise, **noise)
    numbers = {"l1": 5e-4, "total_variation": 2e-3, "steps": 10, "store_dtype": dtype, "start_noise": start}
    impressions = Synthesizer(teacher, spec, synthesis_recipe(**numbers), seed=1).run(range(12))
    recipe = dataclasses.replace(FAST.distillation, steps=20, batch_size=8)
    Distiller(teacher, student, spec, recipe, seed=1).fit(impressions, progress=False)
    return impressions, student


@pytest.mark.parametrize(
    "noise", [{}, {"kind": "normal", "leaves": 0, "leaf_size": (0.0, 0.0)}], ids=["leaves", "normal"]
)
def test_a_range_of_a_power_of_two_gives_the_same_bits(noise):
    ours, student = _student(0.0, 1.0, noise)
    theirs, other = _student(0.0, 256.0, noise)
    assert torch.equal(ours.x * 256, theirs.x)
    assert torch.equal(ours.teacher_logits, theirs.teacher_logits) and torch.equal(ours.loss, theirs.loss)
    assert same_tensors(student, other)


@pytest.mark.parametrize("low, high", [(0.0, 255.0), (-1.0, 1.0), (-3.0, 5.0), (100.0, 101.5)])
def test_any_range_gives_the_same_student_up_to_rounding(low, high):
    ours, student = _student(0.0, 1.0, {})
    theirs, other = _student(low, high, {})
    assert theirs.x.min() >= low and theirs.x.max() <= high
    torch.testing.assert_close((theirs.x - low) / (high - low), ours.x, rtol=0, atol=1e-4)
    for (name, got), wanted in zip(other.state_dict().items(), student.state_dict().values(), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-3, msg=lambda text, name=name: f"{name}: {text}")


def test_the_range_is_told_by_normalization_as_well():
    spec = InputSpec(SHAPE, valid_range=(0.0, 256.0), mean=(0.0,), std=(256.0,))
    recipe = synthesis_recipe(steps=10)
    raw = Synthesizer(image_classifier().eval(), spec, recipe, seed=1).run(range(8))
    unit = Synthesizer(image_classifier().eval(), InputSpec(SHAPE), recipe, seed=1).run(range(8))
    assert torch.equal(raw.x, unit.x * 256)


def test_impressions_without_a_clamp_leave_any_range():
    spec = InputSpec(SHAPE, valid_range=(0.0, 256.0))
    noise = {"kind": "normal", "leaves": 0, "leaf_size": (0.0, 0.0)}
    start = dataclasses.replace(FAST.synthesis.start_noise, **noise)
    teacher = _FromRange(0.0, 256.0, image_classifier()).eval()
    x = Synthesizer(teacher, spec, synthesis_recipe(clamp=False, start_noise=start), seed=1).run(range(8)).x
    assert x.min() < 0 and x.max() > 256
