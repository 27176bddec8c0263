"""What the distiller refuses: before any work, or as soon as a loss is lost."""

import dataclasses

import numpy as np
import pytest
import torch
from small_models import (
    VECTOR,
    augmentation_recipe,
    impressions_of,
    noise_recipe,
    vector_classifier,
)
from students import PROBED, distilled, recorded
from torch import nn

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.recipe import FreshNoiseRecipe
from zskd_fast.distillation import distiller as distiller_module
from zskd_fast.errors import InputError
from zskd_fast.models.classifier import Classifier


@pytest.mark.parametrize("progress", [True, False])
@pytest.mark.parametrize("checkpoint_seconds", [30.0, float("inf")])
def test_a_nan_loss_stops_the_run_and_is_not_saved(tmp_path, checkpoint_seconds, progress):
    path = tmp_path / "checkpoint"
    huge = {"max_learning_rate": 1e38, "steps": 50, "start_divisor": 1.0}
    with pytest.raises(InputError, match=r"NaN or infinite at step [2-5]; lower max_learning_rate"):
        distilled(**huge, fit={"checkpoint": path, "checkpoint_seconds": checkpoint_seconds, "progress": progress})
    assert not path.exists(), "a student that is lost was saved"


@pytest.mark.parametrize("progress", [True, False])
def test_a_nan_loss_stops_the_run_at_the_next_check(monkeypatch, progress):
    monkeypatch.setattr(distiller_module, "_CHECK_EVERY", 10)
    student = vector_classifier(seed=5)
    calls = recorded(student)
    huge = {"max_learning_rate": 1e38, "steps": 50, "start_divisor": 1.0}
    with pytest.raises(InputError, match=r"NaN or infinite at step [2-5]; lower max_learning_rate"):
        distilled(student=student, **huge, fit={"progress": progress})
    assert len(calls) == PROBED + 10


def test_teacher_and_student_must_have_the_same_classes():
    with pytest.raises(InputError, match="teacher has 4 classes, but the student has 3"):
        distilled(student=vector_classifier(classes=3))


@pytest.mark.parametrize("given", [[torch.zeros(4, 6)], "impressions", np.zeros((4, 6))], ids=["list", "path", "array"])
def test_impressions_of_another_type_are_refused(given):
    with pytest.raises(InputError, match=r"must be Impressions, a Store or a tensor x\[N, \*shape\], got a "):
        distilled(impressions=given)


def test_inputs_outside_the_valid_range_are_refused():
    with pytest.raises(InputError, match="x holds values from 0 to 255, the valid range is 0 to 1; give raw values"):
        distilled(impressions=torch.linspace(0, 255, 24).reshape(4, 6))
    distilled(impressions=torch.linspace(-0.005, 1.005, 24).reshape(4, 6))


def test_a_student_that_rejects_the_input_is_named():
    with pytest.raises(InputError, match="the student rejects"):
        distilled(student=nn.Linear(5, 4))


def test_a_student_without_a_trainable_parameter_is_refused():
    with pytest.raises(InputError, match="no parameter that requires a gradient"):
        distilled(student=vector_classifier(seed=5).requires_grad_(False))


def test_a_student_on_another_device_than_the_teacher_is_refused():
    student = Classifier(vector_classifier(seed=5), VECTOR, role="student")
    student.device = torch.device("cuda", 1)
    with pytest.raises(InputError, match="the student is on cuda:1, the teacher on cpu"):
        distilled(student=student)


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_classifier_of_another_input_is_refused(role):
    other = Classifier(vector_classifier(), InputSpec(VECTOR.shape, valid_range=(0.0, 255.0)), role=role)
    with pytest.raises(InputError, match=f"the {role} was probed with another input or logits_fn; give the module"):
        distilled(**{role: other})


def test_vectors_cannot_be_rotated():
    with pytest.raises(InputError, match="no images"):
        distilled(augmentation=augmentation_recipe(rotation_sigma=0.1))


@pytest.mark.parametrize("fraction", [0.0, 0.5])
def test_fresh_noise_that_is_used_must_fit_the_input(fraction):
    leaves = noise_recipe(kind="dead_leaves", leaves=3, leaf_size=(0.1, 0.5))
    recipe = {"fresh_noise": FreshNoiseRecipe(fraction=fraction, **dataclasses.asdict(leaves))}
    if not fraction:
        distilled(**recipe)
        return
    with pytest.raises(InputError, match=r"shape \[6\] are no images .* cannot be dead_leaves"):
        distilled(**recipe)


@pytest.mark.parametrize(
    ("impressions", "message"),
    [
        (torch.zeros(4, 5), r"shape \[4, 5\], wanted \['N', 6\]"),
        (torch.zeros(0, 6), "N >= 1"),
        (torch.tensor(0.0), r"shape \[\], wanted \['N', 6\]"),
        (impressions_of(torch.zeros(4, 5)), r"shape \[4, 5\], wanted \['N', 6\]"),
        (impressions_of(torch.zeros(4, 6), ids=torch.arange(3)), "must have 3 rows, one per id"),
        (impressions_of(torch.zeros(4, 6), torch.zeros(3, 4)), "must have 4 rows, one per id"),
    ],
)
def test_impressions_that_do_not_fit_are_refused(impressions, message):
    with pytest.raises(InputError, match=message):
        distilled(impressions)


@pytest.mark.parametrize(
    ("impressions", "message"),
    [
        (
            impressions_of(torch.zeros(4, 6), torch.zeros(4, 3)),
            r"teacher_logits must have shape \[4, 4\], got \[4, 3\]",
        ),
        (torch.zeros(4, 6), "the stored logits are needed, got a tensor; give Impressions or a Store"),
    ],
)
def test_logits_that_do_not_fit_are_refused_without_relabel(impressions, message):
    distilled(impressions)
    with pytest.raises(InputError, match=message):
        distilled(impressions, relabel=False)
