"""The first weights of a student that is its teacher with fewer channels."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from pruned import labeling, mlp, pruned, seeded, started, without
from small_models import VECTOR
from students import vectors
from torch import nn

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.distillation.pruned_start.least_squares import Moments, kept_channels
from zskd_fast.models import LeNet5, LeNet5Half

COLOR = InputSpec(shape=(3, 9, 7))
GRAY = InputSpec(shape=(1, 32, 32))


def _conv_net(first=6, second=8, *, seed=0, **options):
    """Over 9x7 color images: an uneven kernel, paddings, a stride, a pool and both kinds of batch normalization."""
    layers = lambda: nn.Sequential(  # noqa: E731
        *(nn.Conv2d(3, first, (3, 2), padding=(1, 0), bias=False, **options), nn.BatchNorm2d(first), nn.ReLU(True)),
        *(nn.MaxPool2d(2), nn.Conv2d(first, second, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(second * 4, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 4)),
    )
    model = seeded(layers, seed)
    for norm in (model[1], model[8]):  # as if they had been trained
        norm.weight.data.copy_(torch.linspace(0.5, 1.5, norm.num_features))
        norm.bias.data.copy_(torch.linspace(0.3, -0.3, norm.num_features))
    return model


class Repeating(nn.Module):
    """Calls one layer twice."""

    def __init__(self, width):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, width), nn.Linear(width, width), nn.Linear(width, 4)

    def forward(self, x):
        return self.last(self.second(self.second(self.first(x)).relu()))


class Standardized(nn.Linear):
    """Computes something else than its weight says."""

    def forward(self, x):
        return F.linear(x, self.weight - self.weight.mean(1, keepdim=True), self.bias)


class ChannelsLast(nn.Module):
    """Flattens its map with the channels last."""

    def __init__(self, channels):
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, channels, 3), nn.Linear(channels * 35, 4)

    def forward(self, x):
        return self.last(self.conv(x).permute(0, 2, 3, 1).flatten(1))


def _tied(width):
    model = nn.Sequential(nn.Linear(6, width), nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, 4))
    model[2].weight = model[1].weight
    return model


def _subclass(width):
    return nn.Sequential(Standardized(6, width), nn.ReLU(), nn.Linear(width, 4))


def _weight_normed(width):
    with warnings.catch_warnings(action="ignore"):
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(6, width)), nn.ReLU(), nn.Linear(width, 4))


def _over_sequences(width):
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(5, 4))


def _pooled(channels, *, early):
    pool = nn.MaxPool2d(2)
    middle = (pool, nn.Conv2d(channels, 4, 1)) if early else (nn.Conv2d(channels, 4, 1), pool)
    return nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), *middle, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Scaled(nn.Module):
    """Has a parameter beside its layers."""

    def __init__(self, width):
        super().__init__()
        self.layers, self.scale = mlp(width), nn.Parameter(torch.ones(4))

    def forward(self, x):
        return self.layers(x) * self.scale


class OneLogit(nn.Module):
    """Multiplies its only logit, [N], by a parameter."""

    def __init__(self, width):
        super().__init__()
        self.layers, self.scale = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 1)), Scale()

    def forward(self, x):
        return self.scale(self.layers(x).squeeze(1))


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.factor * x


class OverFrequencies(nn.Module):
    """Scales complex numbers by a layer of its own."""

    def __init__(self, width):
        super().__init__()
        self.first, self.scale, self.last = nn.Linear(6, width), Scale(), nn.Linear(width, 4)

    def forward(self, x):
        return self.last(torch.fft.irfft(self.scale(torch.fft.rfft(self.first(x)))))


class OverWords(nn.Module):
    """Looks up its input, rounded to integers by a layer with a parameter."""

    def __init__(self, width):
        super().__init__()
        self.round = Round()
        self.words, self.last = nn.Embedding(8, width), nn.Linear(width, 4)

    def forward(self, x):
        return self.last(self.words(self.round(x)).mean(1))


class Round(Scale):
    def forward(self, x):
        return (8 * super().forward(x)).long().clamp(0, 7)


class OnlyForward(torch.autograd.Function):
    """A step that cannot be differentiated, as cuDNN's recurrent layers cannot in eval mode."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError("no backward pass")


class Recurrent(nn.Module):
    """Starts with a layer that returns several tensors, behind which nothing can be differentiated."""

    def __init__(self, width):
        super().__init__()
        self.first, self.last = nn.GRU(6, width), nn.Linear(width, 4)

    def forward(self, x):
        return self.last(OnlyForward.apply(self.first(x)[0]))


def _colors(count=512, seed=0):
    return torch.rand(count, *COLOR.shape, generator=torch.Generator().manual_seed(seed))


def _residual(given, wanted):
    """What no linear function of the given rows can give."""
    return wanted - given @ torch.linalg.lstsq(given, wanted).solution


# ------------------------------------------------------------------------------------------ which students


def test_a_teacher_with_fewer_channels_is_found_whatever_lies_between_its_layers():
    assert pruned(mlp(), mlp(4)).description == "3 layers of the teacher, pruned to the student's widths"
    assert pruned(mlp(), mlp(8, 3)) is not None
    assert pruned(_conv_net(), _conv_net(3, 4), COLOR).description.startswith("4 layers")
    assert pruned(LeNet5(), LeNet5Half(), GRAY).description.startswith("5 layers")


@pytest.mark.parametrize(
    ("teacher", "student", "spec"),
    [
        (mlp(), mlp(), VECTOR),
        (mlp(), mlp(10, 3), VECTOR),
        (mlp(), nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 4)), VECTOR),
        (_conv_net(), nn.Sequential(nn.Flatten(), mlp(3, inputs=189)), COLOR),
        (_conv_net(padding_mode="circular"), _conv_net(3, padding_mode="circular"), COLOR),
        (Repeating(8), Repeating(4), VECTOR),
        (Scaled(8), Scaled(4), VECTOR),
        (torch.jit.script(mlp()), mlp(4), VECTOR),
        (_tied(8), _tied(4), VECTOR),
        (_subclass(8), _subclass(4), VECTOR),
        (_weight_normed(8), _weight_normed(4), VECTOR),
        (_over_sequences(8), _over_sequences(4), InputSpec((5, 6))),
        (
            nn.Sequential(_pooled(8, early=True), nn.Linear(4, 4)),
            nn.Sequential(_pooled(4, early=False), nn.Linear(4, 4)),
            COLOR,
        ),
        (ChannelsLast(8), ChannelsLast(4), COLOR),
        (OneLogit(8), OneLogit(4), VECTOR),
        (OverFrequencies(8), OverFrequencies(4), VECTOR),
        (OverWords(8), OverWords(4), VECTOR),
        (Recurrent(8), Recurrent(4), VECTOR),
    ],
    ids=[
        *("equal widths", "a wider layer", "fewer layers", "other kinds", "circular padding"),
        *("a layer called twice", "a parameter beside the layers", "no modules"),
        *("tied weights", "a layer of another kind", "weights made of others", "sequences", "maps of another size"),
        *("channels last", "one logit", "complex numbers", "integers", "a layer without a backward pass"),
    ],
)
def test_any_other_student_keeps_its_own_weights(teacher, student, spec):
    assert pruned(teacher, student, spec) is None


# ---------------------------------------------------------------------------------------------- the weights


@pytest.mark.parametrize(
    ("teacher", "student", "dead", "x", "spec"),
    [
        (mlp(), mlp(5, 4, seed=1), [[0, 3, 7], [1, 2]], vectors(512), VECTOR),
        (_conv_net(), _conv_net(4, 5, seed=1), [[1, 4], [0, 6, 7]], _colors(), COLOR),
    ],
    ids=["linear layers", "convolutions and normalization"],
)
def test_a_teacher_whose_other_channels_add_nothing_is_reproduced(teacher, student, dead, x, spec):
    teacher = without(teacher, dead)
    student = started(teacher, student, x, spec)
    with labeling(teacher):
        torch.testing.assert_close(student(x), teacher(x), rtol=1e-2, atol=1e-2)


def test_a_layer_is_fitted_to_what_the_student_gives_it():
    """So it makes up for channels that are missing before: its logits are the best that a linear layer can give."""
    teacher, student, x = mlp(16, 12), mlp(6, 5, seed=1), vectors(512)
    started(teacher, student, x)
    with labeling(teacher):
        wanted, given = teacher(x), F.pad(student[:4](x), (0, 1), value=1.0)
        best = _residual(given, wanted).square().sum(0)
        torch.testing.assert_close((student(x) - wanted).square().sum(0), best, rtol=1e-2, atol=1e-4)
    assert (best > 0.01).all()


@pytest.mark.parametrize("size", [1, 3])
def test_the_channel_is_dropped_that_the_next_layer_can_dowithout(size):
    """Its output is computed from the other channels by least squares, so one that equals their sum is not needed."""
    x = torch.randn(200, 4 * size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 3
    x[:, 2 * size : 3 * size] += x[:, :size] - 2 * x[:, 3 * size :]
    weight = torch.randn(7, 4 * size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def squares(kept):
        given = torch.cat([x[:, c * size : (c + 1) * size] for c in kept] + [x.new_ones(200, 1)], 1)
        return float(_residual(given, x @ weight.T).square().sum())

    moments, left = Moments(), list(range(4))
    moments.add(x.float())
    while len(left) > 1:
        left = min(([c for c in left if c != dropped] for dropped in left), key=squares)
        assert kept_channels([(moments.covariance(), weight.float())], 4, len(left)).tolist() == left


def test_a_teacher_in_sixteen_bits_gives_a_student_in_thirty_two_its_weights():
    student = started(without(mlp(), [[0, 3, 7], [1, 2]]).bfloat16(), mlp(5, 4, seed=1), vectors(512))
    with labeling(wanted := without(mlp(), [[0, 3, 7], [1, 2]])):
        torch.testing.assert_close(student(vectors(64)), wanted(vectors(64)), rtol=0.1, atol=0.05)


@pytest.mark.parametrize("scale", [1e-3, 255.0])
def test_the_unit_of_the_inputs_does_not_matter(scale):
    teacher = without(mlp(), [[0, 3, 7], [1, 2]])
    teacher[0].weight.data /= scale
    student = started(teacher, mlp(5, 4, seed=1), scale * vectors(512))
    with labeling(teacher):
        torch.testing.assert_close(student(scale * vectors(64)), teacher(scale * vectors(64)), rtol=1e-2, atol=1e-2)


def test_as_many_inputs_are_asked_for_as_a_fit_needs():
    """A fit on as many inputs as a unit has would be exact there and useless elsewhere."""
    spec, widths = InputSpec((20,)), (1500, 700)
    assert pruned(mlp(inputs=20), mlp(4, inputs=20), spec).num_inputs == 4096
    assert pruned(mlp(1500, inputs=20), mlp(700, inputs=20), spec).num_inputs == 7 * 750
    x = torch.randn(7 * 750 + 512, 20, generator=torch.Generator().manual_seed(0))
    teacher, student = (mlp(width, inputs=20) for width in widths)
    started(teacher, student, x[512:], spec)
    with labeling(teacher):
        wanted = teacher(x[:512])
        assert (student(x[:512]) - wanted).square().mean() < 0.05 * wanted.var(0).mean()


@pytest.mark.parametrize(("index", "name"), [(0, "weight"), (1, "weight"), (1, "bias"), (4, "bias")])
def test_a_layer_with_a_frozen_parameter_keeps_all_of_its_own(index, name):
    student = _conv_net(4, 5, seed=1)
    student[index].get_parameter(name).requires_grad_(False)
    before = copy.deepcopy(student[index].state_dict())
    norm = copy.deepcopy(student[1].state_dict())
    started(_conv_net(), student, _colors(), COLOR)
    kept = [(before, index), *([(norm, 1)] if index == 0 else [])]  # a normalization belongs to what is before it
    for state, place in kept:
        parameters = dict(student[place].named_parameters())
        assert all(torch.equal(parameters[key], state[key]) for key in parameters)


def test_normalization_that_stays_in_eval_mode_gets_the_statistics_of_the_channels_kept():
    teacher, student = without(_conv_net(), [[1, 4]]), _conv_net(4, 5, seed=1)
    teacher[1].running_mean.copy_(torch.arange(6.0))
    student[1].eval().train = lambda mode=True: student[1]
    started(teacher, student, _colors(), COLOR)
    assert student[1].running_mean.tolist() == [0, 2, 3, 5]
    assert torch.equal(student[1].weight, teacher[1].weight[[0, 2, 3, 5]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_frozen_layers_and_the_teacher_stay_as_they_are(dtype):
    teacher, student = mlp().to(dtype), mlp(8, 3, seed=1)
    student[0].requires_grad_(False)
    before = copy.deepcopy(teacher.state_dict()), student[0].weight.clone(), student[2].weight.clone()
    started(teacher, student, vectors(512))
    assert all(torch.equal(before[0][name], tensor) for name, tensor in teacher.state_dict().items())
    assert torch.equal(student[0].weight, before[1]) and not torch.equal(student[2].weight, before[2])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in (*teacher, *student))
