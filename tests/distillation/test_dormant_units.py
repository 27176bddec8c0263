"""Dormant units: which are found, and what a reset does to them and to the rest of the student."""

import copy
import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from small_models import IMAGE, VECTOR, distillation_recipe, image_classifier, same_tensors, vector_classifier
from torch import nn

from zskd_fast.config.recipe import DormantUnitsRecipe
from zskd_fast.distillation import distiller as distiller_module
from zskd_fast.distillation.distiller import Distiller
from zskd_fast.distillation.dormant_units import reset_dormant_units
from zskd_fast.models.classifier import Classifier
from zskd_fast.runtime.processes import World

_RECIPE = DormantUnitsRecipe(
    every=2, until_fraction=0.5, until_step=100, least_active=0.01, reset_active=0.1, reset_scale=0.01
)
_ALONE = World()


class _Functional(nn.Module):
    """A student whose ReLU is an in-place function and not a module."""

    def __init__(self):
        super().__init__()
        self.hidden, self.last = nn.Linear(VECTOR.shape[0], 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.last(torch.relu_(self.hidden(x)))


def _convolutional(*between):
    channels, height, width = IMAGE.shape
    hidden = nn.Conv2d(channels, 4, 3, padding=1), *between, nn.ReLU(inplace=True)
    return nn.Sequential(*hidden, nn.Flatten(), nn.Linear(4 * height * width, 3))


def _normalized():
    return _convolutional(nn.BatchNorm2d(4))


# A model, its input, and the layer whose bias makes a unit dormant.
_STUDENTS = {
    "convolution": (_convolutional, IMAGE, "0"),
    "batch norm": (_normalized, IMAGE, "1"),
    "function": (_Functional, VECTOR, "hidden"),
}


def _inputs(spec, count=64):
    low, high = spec.valid_range
    return low + (high - low) * torch.rand(count, *spec.shape, generator=torch.manual_seed(0))


def _with_a_dormant_unit(build, spec, layer, factor=1):
    """A student with the second unit of the layer below 0 for every input, and all other units above 0."""
    torch.manual_seed(0)
    model = build()
    with torch.no_grad():
        module = model.get_submodule(layer)
        module.bias += 50
        module.bias[1] -= 100 * factor
        module.weight[1] *= factor
    return model, Classifier(model, spec, role="student")


@pytest.mark.parametrize("name", _STUDENTS)
def test_a_dormant_unit_is_active_for_the_wanted_share_and_the_others_are_not_changed(name):
    build, spec, layer = _STUDENTS[name]
    model, student = _with_a_dormant_unit(build, spec, layer)
    before = copy.deepcopy(model.state_dict())
    seen = []
    model.get_submodule(layer).register_forward_hook(lambda _module, _inputs, output: seen.append(output.clone()))
    x = _inputs(spec)
    assert reset_dormant_units(student, x, _RECIPE, _ALONE) == 1
    with torch.no_grad():
        model.eval()(x)
    units = seen[-1].movedim(1, 0).flatten(1)
    assert float((units[1] > 0).float().mean()) == pytest.approx(0.1, abs=0.02)
    others = [unit for unit in range(len(units)) if unit != 1]
    assert float(units[1].std() / units[others].std(1).median()) == pytest.approx(0.01, rel=0.1)
    for key, now in model.state_dict().items():
        if key not in (f"{layer}.weight", f"{layer}.bias"):
            assert torch.equal(now, before[key]), f"{key} was changed"
        else:
            assert torch.equal(now[others], before[key][others]), f"{key} of another unit was changed"
    assert reset_dormant_units(student, x, _RECIPE, _ALONE) == 0, "the unit is dormant still"


@pytest.mark.parametrize("name", _STUDENTS)
def test_a_reset_changes_the_logits_little(name):
    """Large units that fell dormant and were reset repeatedly raised the loss of a run a million times."""
    build, spec, layer = _STUDENTS[name]
    _, student = _with_a_dormant_unit(build, spec, layer, factor=100)
    x = _inputs(spec)
    with torch.no_grad():
        before = student.logits(x)
        assert reset_dormant_units(student, x, _RECIPE, _ALONE) == 1
        change = (student.logits(x) - before).abs().max()
    assert 0 < change < 0.02 * before.std(0).max()


def test_a_later_layer_is_searched_with_the_earlier_units_reset():
    """One forward pass resets all layers, so the second layer must get the new output of the first."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(VECTOR.shape[0], 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    with torch.no_grad():
        model[0].bias -= 50
        model[2].bias -= 50
    student = Classifier(model, VECTOR, role="student")
    x = _inputs(VECTOR)
    assert reset_dormant_units(student, x, _RECIPE, _ALONE) == 8
    with torch.no_grad():
        hidden = model[2](F.relu(model[0](x)))
    assert ((hidden > 0).float().mean(0) > 0.05).all()


def test_layers_without_a_relu_and_the_logits_keep_their_bias():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(VECTOR.shape[0], 4), nn.Tanh(), nn.Linear(4, 3))
    with torch.no_grad():
        model[0].bias -= 50
        model[2].bias -= 50
    before = copy.deepcopy(model)
    student = Classifier(model, VECTOR, role="student")
    assert reset_dormant_units(student, _inputs(VECTOR), _RECIPE, _ALONE) == 0
    assert same_tensors(model, before)


def test_a_unit_without_a_bias_is_not_changed():
    model = nn.Sequential(nn.Linear(VECTOR.shape[0], 4, bias=False), nn.ReLU(), nn.Linear(4, 3))
    with torch.no_grad():
        model[0].weight.copy_(-model[0].weight.abs())
    before = copy.deepcopy(model)
    student = Classifier(model, VECTOR, role="student")
    assert reset_dormant_units(student, _inputs(VECTOR).abs(), _RECIPE, _ALONE) == 0
    assert same_tensors(model, before)


def test_activity_and_deviation_are_means_over_the_processes():
    """Two processes with the same share of the inputs reset a unit as a single process does."""

    class Two(World):
        """Adds the tensor of another process: the same tensor."""

        def sum(self, tensor):
            return tensor.mul_(2) if tensor.dtype.is_floating_point else tensor

    model, student = _with_a_dormant_unit(*_STUDENTS["function"])
    alone = copy.deepcopy(model)
    reset_dormant_units(student, _inputs(VECTOR), _RECIPE, Two(rank=0, size=2))
    reset_dormant_units(Classifier(alone, VECTOR, role="student"), _inputs(VECTOR), _RECIPE, _ALONE)
    assert same_tensors(model, alone)


def _two_processes():
    """The worlds of two threads that add their tensors as two processes do."""
    given, meeting = [None, None], threading.Barrier(2, timeout=30)

    class Two(World):
        def sum(self, tensor):
            given[self.rank] = tensor.clone()
            meeting.wait()
            total = given[0] + given[1]
            meeting.wait()
            return total

    return [Two(rank, 2) for rank in range(2)]


def test_processes_with_other_inputs_reset_the_same_units_alike():
    model, _ = _with_a_dormant_unit(*_STUDENTS["function"])
    with torch.no_grad():  # the third unit is active where the first input is above 0.5
        model.hidden.weight[2] = torch.eye(VECTOR.shape[0])[0]
        model.hidden.bias[2] = -0.5
    x = _inputs(VECTOR)
    shares = [torch.cat([x[:, :1] / 2 + offset, x[:, 1:] * 0.9 + offset / 5], dim=1) for offset in (0.0, 0.5)]
    models = copy.deepcopy(model), copy.deepcopy(model)
    students = [Classifier(each, VECTOR, role="student") for each in models]
    assert reset_dormant_units(Classifier(copy.deepcopy(model), VECTOR), shares[0], _RECIPE, _ALONE) == 2
    with ThreadPoolExecutor(2) as pool:
        counts = pool.map(reset_dormant_units, students, shares, [_RECIPE] * 2, _two_processes())
    assert list(counts) == [1, 1], "a unit that is active in one process was reset"
    assert same_tensors(*models)
    assert not same_tensors(models[0], model)


@pytest.mark.parametrize(
    ("every", "until_step", "steps"),
    [(2, 100, [0, 2, 4, 6, 8]), (2, 5, [0, 2, 4]), (3, 100, [0, 3, 6, 9]), (0, 100, [])],
)
def test_the_distiller_resets_until_the_share_of_the_steps_or_the_step(monkeypatch, every, until_step, steps):
    """A student of 20,000 steps diverged at step 12,200 when its units were reset until step 16,000."""
    searched, batches = [], []

    def search(student, x, recipe, world):
        searched.append(len(batches))
        assert len(x) == 8 and world == _ALONE

    monkeypatch.setattr(distiller_module, "reset_dormant_units", search)
    teacher, student = vector_classifier(seed=0), vector_classifier(seed=1)
    recipe = dataclasses.replace(_RECIPE, every=every, until_step=until_step)
    distiller = Distiller(teacher, student, VECTOR, distillation_recipe(dormant_units=recipe), seed=0)
    teacher.register_forward_hook(lambda *_: batches.append(None))
    history = distiller.fit(_inputs(VECTOR), progress=False)
    assert searched == steps
    assert ("dormant units" in history.phase_seconds) == bool(steps)


def test_a_student_of_dormant_units_learns_after_their_reset():
    never = distillation_recipe().dormant_units
    assert never.every == 0
    losses = {}
    for name, used in (("never", never), ("reset", dataclasses.replace(_RECIPE, until_fraction=0.8))):
        torch.manual_seed(0)
        student = _convolutional()
        with torch.no_grad():
            student[0].bias -= 50
        recipe = distillation_recipe(dormant_units=used, steps=60, max_learning_rate=1e-2)
        distiller = Distiller(image_classifier(classes=3, seed=0), student, IMAGE, recipe, seed=0)
        losses[name] = sum(distiller.fit(_inputs(IMAGE), progress=False).loss[-10:])
    assert losses["reset"] < 0.8 * losses["never"]
