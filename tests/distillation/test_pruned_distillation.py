"""A distillation whose student starts from the weights of its teacher, pruned to it."""

import pytest
import torch
from pruned import mlp, seeded, without
from small_models import VECTOR, distillation_recipe
from students import Stopped, stop_at, vectors
from torch import nn

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.recipe_files import changed, load_recipe
from zskd_fast.distillation.distiller import Distiller
from zskd_fast.distillation.pruned_start import fewer_channels
from zskd_fast.errors import InputError
from zskd_fast.models import LeNet5Half
from zskd_fast.models.classifier import Classifier
from zskd_fast.models.user_models import ASSETS, ModelSource, load_classifier
from zskd_fast.real_data.evaluation import accuracy, load_test_set

GRAY = InputSpec(shape=(1, 32, 32))


class LeavingOut(nn.Module):
    """Leaves out its second layer in train mode."""

    def __init__(self, width):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, width), nn.Linear(width, width), nn.Linear(width, 4)

    def forward(self, x):
        x = self.first(x)
        return self.last(x if self.training else self.second(x))


def _distiller(teacher, student, *, seed=1, **recipe):
    numbers = {"pruned_start": True, "student_dropout": False, "steps": 1, "max_learning_rate": 1e-9} | recipe
    return Distiller(teacher, student, VECTOR, distillation_recipe(**numbers), seed=seed)


def _fit(teacher, student, *, fit=None, **recipe):
    history = _distiller(teacher, student, **recipe).fit(vectors(512), **{"progress": False} | (fit or {}))
    return student.eval(), history


@pytest.mark.parametrize("shared_layers", [True, False])
def test_a_student_with_fewer_features_starts_from_the_teachers_with_and_without_a_projection(shared_layers):
    """A projection in front of the teacher's last layer is fitted, too, and multiplied into the student's own."""
    teacher, x = without(mlp(), [[0, 3, 7], [1, 2]]).eval(), vectors(64)
    student, history = _fit(teacher, mlp(5, 4, seed=1), shared_layers=shared_layers)
    torch.testing.assert_close(student(x), teacher(x), rtol=1e-2, atol=1e-2)
    assert history.notes["pruned start"] == "3 layers of the teacher, pruned to the student's widths"
    assert history.phase_seconds["pruned start"] > 0


def test_a_student_that_leaves_out_a_layer_in_train_mode_is_refused_in_a_sentence():
    with pytest.raises(InputError, match=r"leaves out a layer in train mode.*pruned_start to false"):
        _fit(LeavingOut(8), LeavingOut(5))


@pytest.mark.parametrize("seconds", [0, 60])
def test_a_start_that_takes_its_time_shows_how_far_it_is(seconds, monkeypatch, capsys):
    monkeypatch.setattr(fewer_channels, "_SHOWN_AFTER_SECONDS", seconds)
    _fit(mlp(), mlp(5, seed=1), fit={"progress": True})
    assert ("pruned start: 100%" in capsys.readouterr().err) == (seconds == 0)


def test_without_it_the_student_starts_from_its_own_weights():
    student, history = _fit(mlp(), mlp(5, 4, seed=1), pruned_start=False)
    torch.testing.assert_close(student.state_dict(), mlp(5, 4, seed=1).state_dict())
    assert "pruned start" not in history.notes


def test_a_resumed_run_continues_from_what_was_learned(tmp_path):
    recipe = {"steps": 6, "max_learning_rate": 0.01}
    whole, _ = _fit(mlp(), mlp(5, seed=1), **recipe)
    file = {"checkpoint": tmp_path / "checkpoint", "checkpoint_seconds": 0.0}
    with pytest.raises(Stopped):
        _fit(mlp(), mlp(5, seed=1), fit=file | {"evaluate": stop_at(2), "evaluate_every": 2}, **recipe)
    resumed, _ = _fit(mlp(), mlp(5, seed=1), fit=file, **recipe)
    assert all(torch.equal(tensor, resumed.state_dict()[name]) for name, tensor in whole.state_dict().items())


def test_dropout_that_stays_on_does_not_change_what_a_seed_gives():
    def dropping(first, seed=0):
        model = mlp(first, seed=seed)
        return nn.Sequential(*model[:2], nn.Dropout(0.2), *model[2:])

    students = []
    for state in range(2):
        torch.manual_seed(state)
        students.append(_fit(dropping(8), dropping(5, 1), student_dropout=True)[0])
    torch.testing.assert_close(students[0].state_dict(), students[1].state_dict(), rtol=0, atol=0)


def test_a_lenet_half_reads_digits_before_it_has_learned_anything():
    """The shipped teacher, dead leaves as the only inputs, one step at a learning rate of almost 0."""
    source = ModelSource(model="zskd_fast.models:LeNet5", weights=ASSETS / "lenet5-mnist.safetensors")
    teacher = load_classifier(source, GRAY)
    student = seeded(LeNet5Half, 1)
    changes = {"distillation.steps": 1, "distillation.max_learning_rate": 1e-9}
    recipe = changed(load_recipe("fast"), changes).distillation
    Distiller(teacher, student, GRAY, recipe, seed=1).fit(torch.rand(64, 1, 32, 32), progress=False)
    digits = load_test_set(ASSETS / "mnist-t10k", GRAY)
    assert accuracy(Classifier(student, GRAY, role="student"), digits.inputs, digits.labels) > 0.97
