"""The last layers of the teacher that a student takes over, and the features before them."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from counted import counted
from small_models import IMAGE, VECTOR, distillation_recipe
from students import Stopped, images, recorded, stop_at, vectors
from torch import nn

from zskd_fast.distillation.distiller import Distiller
from zskd_fast.distillation.shared_layers import SharedLayers
from zskd_fast.errors import InputError
from zskd_fast.models.classifier import Classifier
from zskd_fast.runtime.processes import World


def _seeded(build, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def _mlp(first=16, second=8, *, seed=0, bias=True):
    layers = lambda: nn.Sequential(  # noqa: E731
        *(nn.Linear(6, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Dropout(0.1)),
        nn.Linear(second, 4, bias=bias),
    )
    return _seeded(layers, seed)


class Pooling(nn.Module):
    """A convolutional classifier that averages over its map by functions, as published code does."""

    def __init__(self, channels, *, stride=1):
        super().__init__()
        self.conv = nn.Conv2d(1, channels, 3, stride=stride, padding=1)
        self.fc = nn.Linear(channels, 4)

    def forward(self, x):
        x = F.relu(self.conv(x))
        return self.fc(F.avg_pool2d(x, x.shape[3]).view(len(x), -1))


class PoolingOtherwise(Pooling):
    """Averages over its map by other functions in train mode."""

    def forward(self, x):
        return self.fc(F.relu(self.conv(x)).flatten(2).sum(2) / 64) if self.training else super().forward(x)


class Cosine(nn.Linear):
    """Computes something else than its weight says."""

    def forward(self, x):
        return F.linear(F.normalize(x), F.normalize(self.weight), self.bias)


def _ending_in(last):
    return nn.Sequential(nn.Linear(6, last.in_features), nn.ReLU(), last)


def _weight_normed(layer):
    with warnings.catch_warnings(action="ignore"):
        return nn.utils.weight_norm(layer)


def _shared(teacher, student, spec=VECTOR):
    return SharedLayers.of(Classifier(teacher, spec), Classifier(student, spec, role="student"))


def _fit(teacher, student, impressions, spec=VECTOR, fit=None, **recipe):
    numbers = {"shared_layers": True, "feature_weight": 8.0, "steps": 60, "max_learning_rate": 0.02} | recipe
    distiller = Distiller(teacher, student, spec, distillation_recipe(**numbers), seed=1)
    return distiller.fit(impressions, progress=False, **(fit or {}))


# ------------------------------------------------------------------------------------ what is taken over


def test_every_layer_with_the_teachers_shape_is_taken_over_from_the_last_one_on():
    shared = _shared(_mlp(16), _mlp(12))
    assert shared.description == "'5' of the teacher; the student's 8 features before it are matched"
    shared = _shared(_mlp(16), nn.Sequential(nn.Linear(6, 6), *_mlp(16)))
    assert shared.description == "'1' and '3' and '6' of the teacher; the student's 6 features before them are matched"


@pytest.mark.parametrize("second", [8, 5], ids=["of the teacher's shape", "of another shape"])
def test_a_frozen_last_layer_stays_the_students_own(second):
    student = _mlp(12, second)
    student[5].bias.requires_grad_(False)
    before = copy.deepcopy(student[5])
    _fit(_mlp(12, seed=1), student, vectors(64), steps=3)
    assert torch.equal(student[5].bias, before.bias) and not student[5].bias.requires_grad
    assert _shared(_mlp(12, seed=1), student) is None


class Tied(nn.Module):
    """Uses the weight of its last layer for another one, too, as language models do."""

    def __init__(self, width):
        super().__init__()
        self.first, self.hidden, self.last = nn.Linear(6, width), nn.Linear(width, 4), nn.Linear(width, 4)
        self.hidden.weight = self.last.weight

    def forward(self, x):
        hidden = self.first(x).relu()
        return self.last(hidden + self.hidden(hidden) @ self.last.weight)


@pytest.mark.parametrize("width", [8, 5], ids=["of the teacher's shape", "of another shape"])
def test_a_last_layer_whose_weight_another_layer_uses_stays_the_students_own(width):
    assert _shared(_mlp(16), Tied(width)) is None


def test_layers_are_taken_over_up_to_the_first_with_a_frozen_parameter():
    student = nn.Sequential(nn.Linear(6, 6), *_mlp(16))
    student[3].weight.requires_grad_(False)
    shared = _shared(_mlp(16), student)
    assert shared.description == "'6' of the teacher; the student's 8 features before it are matched"


def test_the_layers_are_the_teachers_at_the_end_and_can_be_trained_again():
    teacher, student = _mlp(16), _mlp(12, seed=1)
    _fit(teacher, student, vectors(64))
    assert torch.equal(student[5].weight, teacher[5].weight) and torch.equal(student[5].bias, teacher[5].bias)
    assert not torch.equal(student[2].weight, _mlp(12, seed=1)[2].weight)
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert all(module.training for module in student.modules())


def test_the_teacher_stays_as_it_is():
    teacher = _mlp(16)
    before = copy.deepcopy(teacher.state_dict())
    _fit(teacher, _mlp(12, 7), vectors(64))
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())


def test_a_student_with_fewer_features_keeps_its_architecture_and_the_answers_that_it_learned():
    teacher, student, answers = _mlp(), _mlp(second=5, seed=1), []
    x = vectors(64)
    _fit(teacher, student, x, fit={"evaluate": lambda model: answers.append(model(x)) or 0.0})
    assert {name: tensor.shape for name, tensor in student.state_dict().items()} == {
        name: tensor.shape for name, tensor in _mlp(second=5).state_dict().items()
    }
    torch.testing.assert_close(student.eval()(x), answers[-1])
    assert torch.linalg.matrix_rank(student[5].weight) > 0


def test_the_projection_is_multiplied_into_a_student_without_a_bias_only_if_the_teacher_has_none():
    assert _shared(_mlp(bias=True), _mlp(second=5, bias=False)) is None
    assert _shared(_mlp(bias=False), _mlp(second=5, bias=False)) is not None


@pytest.mark.parametrize(
    ("teacher", "student"),
    [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float64, torch.float32)],
    ids=str,
)
@pytest.mark.parametrize("second", [8, 5], ids=["copied", "projected"])
def test_teacher_and_student_may_have_weights_of_different_types(teacher, student, second):
    teacher, student, answers, x = _mlp().to(teacher), _mlp(12, second, seed=1).to(student), [], vectors(64)
    x = x.to(student[0].weight.dtype)
    _fit(teacher, student, x, fit={"evaluate": lambda model: answers.append(model(x)) or 0.0}, steps=5)
    torch.testing.assert_close(student.eval()(x), answers[-1], rtol=2e-2, atol=2e-2)
    assert _shared(teacher, student) is not None


@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        (_ending_in(Cosine(8, 4)), _mlp(second=5)),
        (_mlp(), _ending_in(Cosine(5, 4))),
        (_mlp(), _ending_in(_weight_normed(nn.Linear(5, 4)))),
        (_mlp(), nn.Linear(6, 4)),
    ],
    ids=["teacher's layer of another kind", "student's", "a weight made of others", "no place for a projection"],
)
def test_nothing_is_projected_where_the_students_layer_cannot_hold_the_product(teacher, student):
    assert _shared(teacher, student) is None


def test_a_projection_is_multiplied_with_what_the_teacher_makes_its_weight_of():
    teacher, student, x = _ending_in(_weight_normed(nn.Linear(8, 4))), _mlp(second=5), vectors(8)
    with _shared(teacher, student).taken_over(0):
        answer = student.eval()(x)
    torch.testing.assert_close(student(x), answer)


@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        (nn.Sequential(_mlp(), nn.Softplus()), _mlp()),
        (_mlp(), nn.Sequential(_mlp(), nn.Tanh())),
        (nn.Linear(6, 4), nn.Linear(6, 4)),
        (torch.jit.script(_mlp()), _mlp()),
    ],
    ids=["teacher ends otherwise", "student ends otherwise", "nothing would be left to learn", "no hooks"],
)
def test_nothing_is_taken_over_where_the_last_layer_cannot_be_exchanged(teacher, student):
    assert _shared(teacher, student) is None


def test_averages_over_maps_of_one_size_are_matched_as_maps():
    assert "8 features of 8x8 before it are matched" in _shared(Pooling(8), Pooling(8), IMAGE).description
    assert "5 features of 8x8 before it are projected to its 8" in _shared(Pooling(8), Pooling(5), IMAGE).description
    assert "8 features before it are matched" in _shared(Pooling(8), Pooling(8, stride=2), IMAGE).description


def test_maps_that_are_averaged_otherwise_in_train_mode_are_refused_in_a_sentence():
    with pytest.raises(InputError, match=r"averages its maps otherwise in train mode .*shared_layers to false"):
        _fit(Pooling(8), PoolingOtherwise(8), images(8), IMAGE)


# ---------------------------------------------------------------------------------------------- learning


@pytest.mark.parametrize(
    ("teacher", "student", "x", "spec"),
    [
        (_mlp(), _mlp(12, seed=1), vectors(64), VECTOR),
        (_mlp(), _mlp(12, 6, seed=1), vectors(64), VECTOR),
        (_seeded(lambda: Pooling(8), 0), _seeded(lambda: Pooling(8), 1), images(64), IMAGE),
        (_seeded(lambda: Pooling(8), 0), _seeded(lambda: Pooling(12), 1), images(64), IMAGE),
    ],
    ids=["features", "projected features", "maps", "projected maps"],
)
def test_the_features_come_closer_to_the_teachers(teacher, student, x, spec):
    """The loss holds the distance of the features, which falls; at the start it is about that of unrelated features."""
    losses = _fit(teacher, student, x, spec, steps=300, batch_size=32, temperature=1.0).loss
    assert losses[0] > 8 * 0.5 and losses[-1] < losses[0] / 4


def test_the_loss_is_the_relative_squared_distance_of_maps():
    teacher, student = Pooling(8), Pooling(8)
    shared = _shared(teacher, student, IMAGE)
    x = images(5)
    with shared.taken_over(0):
        with shared.watching_teacher():
            teacher(x)
        with shared.watching_student():
            student(x)
        loss = shared.loss(1.0, World())
    theirs, mine = F.relu(teacher.conv(x)), F.relu(student.conv(x))
    torch.testing.assert_close(loss, (theirs - mine).square().mean() / theirs.square().mean())


@pytest.mark.parametrize("second", [8, 5], ids=["copied", "projected"])
def test_a_stopped_run_resumes_to_the_same_bits(tmp_path, second):
    whole = _mlp(12, second, seed=1)
    _fit(_mlp(), whole, vectors(64), fit={"checkpoint": tmp_path / "whole"})
    student, options = _mlp(12, second, seed=1), {"checkpoint": tmp_path / "cut", "checkpoint_seconds": 0.0}
    with pytest.raises(Stopped):
        _fit(_mlp(), student, vectors(64), fit=options | {"evaluate": stop_at(3), "evaluate_every": 10})
    again = _mlp(12, second, seed=1)
    _fit(_mlp(), again, vectors(64), fit=options)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("second", [8, 5], ids=["copied", "projected"])
@pytest.mark.parametrize("dtypes", [("float16", "float32"), ("float64", "float32"), ("float32", "float64")], ids=str)
def test_the_layers_get_the_type_of_the_student(dtypes, second):
    theirs, mine = (getattr(torch, name) for name in dtypes)
    teacher, student = _mlp().to(theirs), _mlp(second=second, seed=1).to(mine)
    assert _shared(teacher, student) is not None
    _fit(teacher, student, vectors(64))
    assert all(parameter.dtype == mine for parameter in student.parameters())
    assert second != 8 or torch.equal(student[5].weight, teacher[5].weight.to(mine))


def test_without_shared_layers_or_new_labels_no_model_runs_once_more():
    for options in ({"shared_layers": False}, {"relabel": False}):
        teacher, student = _mlp(), _mlp(12)
        inputs = recorded(student)
        with counted():
            distiller = Distiller(
                teacher, student, VECTOR, distillation_recipe(**{"shared_layers": True} | options), seed=1
            )
        assert distiller.shared is None
        assert len(inputs) == 2
