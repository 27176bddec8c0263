"""Units that a ReLU has silenced: which are found, and what waking does to them and to the rest."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from small_models import IMAGE, VECTOR, distillation_recipe, image_classifier, same_tensors, vector_classifier
from torch import nn

from zskd_fast.config.recipe import RecyclingRecipe
from zskd_fast.distillation import distiller as distiller_module
from zskd_fast.distillation.distiller import Distiller
from zskd_fast.distillation.dormant_units import recycle
from zskd_fast.models.classifier import Classifier
from zskd_fast.runtime.processes import World

_ON = RecyclingRecipe(
    every=2, until_fraction=0.5, until_step=100, least_active=0.01, woken_active=0.1, woken_scale=0.01
)
_ALONE = World()


class _Functional(nn.Module):
    """Rectified by a function, in place, and not by a module."""

    def __init__(self):
        super().__init__()
        self.hidden, self.last = nn.Linear(VECTOR.shape[0], 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.last(torch.relu_(self.hidden(x)))


def _convolutional(*between):
    channels, height, width = IMAGE.shape
    hidden = nn.Conv2d(channels, 4, 3, padding=1), *between, nn.ReLU(inplace=True)
    return nn.Sequential(*hidden, nn.Flatten(), nn.Linear(4 * height * width, 3))


def _normalised():
    return _convolutional(nn.BatchNorm2d(4))


# A model, its input, and the layer whose bias silences it.
_STUDENTS = {
    "convolution": (_convolutional, IMAGE, "0"),
    "batch norm": (_normalised, IMAGE, "1"),
    "function": (_Functional, VECTOR, "hidden"),
}


def _inputs(spec, count=64):
    low, high = spec.valid_range
    return low + (high - low) * torch.rand(count, *spec.shape, generator=torch.manual_seed(0))


def _silenced(build, spec, layer, loudness=1):
    """With the second unit of the layer below 0 for every input, and all others above."""
    torch.manual_seed(0)
    model = build()
    with torch.no_grad():
        module = model.get_submodule(layer)
        module.bias += 50
        module.bias[1] -= 100 * loudness
        module.weight[1] *= loudness
    return model, Classifier(model, spec, role="student")


@pytest.mark.parametrize("name", _STUDENTS)
def test_a_silent_unit_fires_for_the_wanted_share_and_the_others_are_left_alone(name):
    build, spec, layer = _STUDENTS[name]
    model, student = _silenced(build, spec, layer)
    before = copy.deepcopy(model.state_dict())
    seen = []
    model.get_submodule(layer).register_forward_hook(
        lambda _module, _inputs, output: seen.append(output.clone())
    )
    x = _inputs(spec)
    assert recycle(student, x, _ON, _ALONE) == 1
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
    assert recycle(student, x, _ON, _ALONE) == 0, "it was woken, and counted as silent still"


@pytest.mark.parametrize("name", _STUDENTS)
def test_what_the_student_says_changes_little(name):
    """Loud units that fell silent, woken again and again, made the loss of a run rise a million times."""
    build, spec, layer = _STUDENTS[name]
    _, student = _silenced(build, spec, layer, loudness=100)
    x = _inputs(spec)
    with torch.no_grad():
        before = student.logits(x)
        assert recycle(student, x, _ON, _ALONE) == 1
        change = (student.logits(x) - before).abs().max()
    assert 0 < change < 0.02 * before.std(0).max()


def test_a_later_layer_is_looked_at_with_the_earlier_awake():
    """Woken one by one in a single pass, the second layer sees what the first will give."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(VECTOR.shape[0], 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)
    )
    with torch.no_grad():
        model[0].bias -= 50
        model[2].bias -= 50
    student = Classifier(model, VECTOR, role="student")
    x = _inputs(VECTOR)
    assert recycle(student, x, _ON, _ALONE) == 8
    with torch.no_grad():
        hidden = model[2](F.relu(model[0](x)))
    assert ((hidden > 0).float().mean(0) > 0.05).all()


def test_logits_and_layers_without_a_rectifier_keep_their_bias():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(VECTOR.shape[0], 4), nn.Tanh(), nn.Linear(4, 3))
    with torch.no_grad():
        model[0].bias -= 50
        model[2].bias -= 50
    before = copy.deepcopy(model)
    assert recycle(Classifier(model, VECTOR, role="student"), _inputs(VECTOR), _ON, _ALONE) == 0
    assert same_tensors(model, before)


def test_a_unit_without_a_bias_is_left_alone():
    model = nn.Sequential(nn.Linear(VECTOR.shape[0], 4, bias=False), nn.ReLU(), nn.Linear(4, 3))
    with torch.no_grad():
        model[0].weight.copy_(-model[0].weight.abs())
    before = copy.deepcopy(model)
    recycle(Classifier(model, VECTOR, role="student"), _inputs(VECTOR).abs(), _ON, _ALONE)
    assert same_tensors(model, before)


def test_what_is_measured_is_the_mean_over_the_processes():
    """Two processes with the same share of the inputs wake a unit as one alone does."""

    class Two(World):
        """Adds what the other process gives: the same."""

        def sum(self, tensor):
            return tensor.mul_(2) if tensor.dtype.is_floating_point else tensor

    model, student = _silenced(*_STUDENTS["function"])
    alone = copy.deepcopy(model)
    recycle(student, _inputs(VECTOR), _ON, Two(rank=0, size=2))
    recycle(Classifier(alone, VECTOR, role="student"), _inputs(VECTOR), _ON, _ALONE)
    assert same_tensors(model, alone)


@pytest.mark.parametrize(("until_step", "looks"), [(100, [0, 2, 4, 6, 8]), (5, [0, 2, 4])])
def test_the_distiller_wakes_until_the_share_of_steps_or_the_step(monkeypatch, until_step, looks):
    """A student of 20,000 steps that was woken until 16,000 was lost at 12,200, units asleep again at each look."""
    looked = []
    monkeypatch.setattr(distiller_module, "recycle", lambda student, x, recipe, world: looked.append(len(x)))
    distiller = Distiller(
        vector_classifier(seed=0),
        vector_classifier(seed=1),
        distillation_recipe(recycling=dataclasses.replace(_ON, until_step=until_step)),
        VECTOR,
        seed=0,
    )
    distiller.fit(_inputs(VECTOR), progress=False)
    assert looked == [8] * len(looks), f"wanted a look at steps {looks} of 20"


def test_a_student_whose_units_died_learns_again():
    recycling = RecyclingRecipe(
        every=2, until_fraction=0.8, until_step=100, least_active=0.01, woken_active=0.1, woken_scale=0.01
    )
    losses = {}
    for name, used in (("never", distillation_recipe().recycling), ("woken", recycling)):
        torch.manual_seed(0)
        student = _convolutional()
        with torch.no_grad():
            student[0].bias -= 50
        recipe = distillation_recipe(recycling=used, steps=60, max_learning_rate=1e-2)
        history = Distiller(image_classifier(classes=3, seed=0), student, recipe, IMAGE, seed=0).fit(
            _inputs(IMAGE), progress=False
        )
        losses[name] = sum(history.loss[-10:])
    assert losses["woken"] < 0.8 * losses["never"]
