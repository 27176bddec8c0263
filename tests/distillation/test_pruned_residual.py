"""The first weights of a student that is a residual teacher with fewer channels."""

import pytest
import torch
from pruned import labeling, pruned, started
from students import vectors
from torch import nn

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.distillation.pruned_start.least_squares import Moments, kept_channels
from zskd_fast.models import ResNet20, ResNet20Half

COLOR = InputSpec(shape=(3, 9, 7))


class Layers(nn.Module):
    """Three linear layers; a subclass says how they are connected."""

    def __init__(self, width, seed=0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first, self.second = nn.Linear(6, width), nn.Linear(width, width)
            self.last = nn.Linear(self.features(width), 4)

    @staticmethod
    def features(width):
        return width


class Skipping(Layers):
    def forward(self, x):
        hidden = self.first(x).relu()
        return self.last(hidden + self.second(hidden))


class Gated(Layers):
    def forward(self, x):
        hidden = self.first(x).relu()
        return self.last(hidden * self.second(hidden).sigmoid())


class Reversing(Layers):
    def forward(self, x):
        hidden = self.first(x).relu()
        return self.last(hidden + self.second(hidden).flip(1))


class Rolling(Layers):
    def forward(self, x):
        return self.last(self.second(self.first(x)).roll(1, dims=1))


class Concatenating(Layers):
    @staticmethod
    def features(width):
        return 2 * width

    def forward(self, x):
        hidden = self.first(x).relu()
        return self.last(torch.cat([hidden, self.second(hidden)], 1))


class Doubling(Concatenating):
    """Gives the last layer one output with both signs."""

    def forward(self, x):
        hidden = self.second(self.first(x).relu())
        return self.last(torch.cat([hidden.relu(), (-hidden).relu()], 1))


class Ending(Layers):
    """Adds to the logits what is no layer's input."""

    def forward(self, x):
        hidden = self.second(self.first(x).relu())
        return self.last(hidden) + hidden.mean(1, keepdim=True)


class Unused(Layers):
    """Calls a layer for nothing."""

    def forward(self, x):
        hidden = self.first(x).relu()
        self.second(hidden)
        return self.last(hidden)


class InputAdded(nn.Module):
    """Adds its input to a hidden layer of as many channels."""

    def __init__(self, width):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, width), nn.Linear(width, 6), nn.Linear(6, 4)

    def forward(self, x):
        return self.last(x + self.second(self.first(x).relu()))


class ResidualNet(nn.Module):
    """A stem, a block beside the identity, and one beside a convolution that halves the map; with normalization."""

    def __init__(self, first=6, second=8, seed=0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.stem = self._layers(3, first)
            self.identity = nn.Sequential(*self._layers(first, first), nn.ReLU(True), *self._layers(first, first))
            self.halving = nn.Sequential(*self._layers(first, second, 2), nn.ReLU(), *self._layers(second, second))
            self.shortcut = nn.Sequential(nn.Conv2d(first, second, 1, stride=2, bias=False), nn.BatchNorm2d(second))
            self.last = nn.Linear(second, 4)
        for norm in self.modules():
            if isinstance(norm, nn.BatchNorm2d):  # as if they had been trained
                norm.weight.data.copy_(torch.linspace(0.5, 1.5, norm.num_features))
                norm.bias.data.copy_(torch.linspace(0.3, -0.3, norm.num_features))

    @staticmethod
    def _layers(inputs, outputs, stride=1):
        conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x):
        x = self.stem(x).relu()
        x = (x + self.identity(x)).relu_()
        return self.last((self.shortcut(x) + self.halving(x)).relu().mean((2, 3)))


def _without(readers, channels):
    """Let some of their channels add nothing to what the next layers give."""
    for reader in readers:
        reader.weight.data[:, channels] = 0


# ------------------------------------------------------------------------------------------ which students


def test_a_residual_teacher_with_fewer_channels_is_found():
    assert pruned(Skipping(8), Skipping(4)).description == "3 layers of the teacher, pruned to the student's widths"
    assert pruned(Gated(8), Gated(4)) is not None
    assert pruned(InputAdded(8), InputAdded(4)) is not None
    assert pruned(ResidualNet(), ResidualNet(4, 5), COLOR).description.startswith("7 layers")
    assert pruned(ResidualNet(), ResidualNet(6, 5), COLOR) is not None
    assert pruned(ResNet20(), ResNet20Half(), InputSpec((3, 32, 32))).description.startswith("22 layers")


@pytest.mark.parametrize("kind", [Reversing, Rolling, Concatenating, Doubling, Ending, Unused])
def test_a_student_in_which_channels_are_not_added_one_by_one_keeps_its_own_weights(kind):
    assert pruned(kind(8), kind(4)) is None


@pytest.mark.parametrize(("teacher", "student"), [(Skipping(8), Gated(4)), (Skipping(8), Concatenating(4))])
def test_a_gate_may_stand_for_a_sum_but_no_concatenation(teacher, student):
    """Both use the channels one by one; what the layers have to give is fitted."""
    assert (pruned(teacher, student) is not None) == isinstance(student, Gated)


# ---------------------------------------------------------------------------------------------- the weights


@pytest.mark.parametrize("kind", [Skipping, Gated])
def test_channels_that_add_nothing_to_any_layer_that_reads_them_are_dropped(kind):
    teacher, x = kind(8), vectors(512)
    _without([teacher.second, teacher.last], [0, 3, 7])
    student = started(teacher, kind(5, seed=1), x)
    torch.testing.assert_close(student(x), teacher(x), rtol=1e-2, atol=1e-2)


def test_a_channel_that_only_one_of_its_readers_needs_is_kept():
    teacher, x = Skipping(8), vectors(512)
    _without([teacher.last], [0, 3, 7])
    teacher.last.weight.data[:, 1] = 0
    _without([teacher.second], [1])
    student = started(teacher, Skipping(7, seed=1), x)
    torch.testing.assert_close(student(x), teacher(x), rtol=1e-2, atol=1e-2)


def test_a_residual_teacher_whose_other_channels_add_nothing_is_reproduced():
    teacher = ResidualNet()
    _without([teacher.identity[0], teacher.halving[0], teacher.shortcut[0]], [1, 4])
    _without([teacher.identity[3]], [0, 2])
    _without([teacher.halving[3]], [3, 5, 7])
    _without([teacher.last], [0, 6, 7])
    x = torch.rand(512, *COLOR.shape, generator=torch.Generator().manual_seed(0))
    student = started(teacher, ResidualNet(4, 5, seed=1), x, COLOR)
    with labeling(teacher):
        torch.testing.assert_close(student(x), teacher(x), rtol=1e-2, atol=1e-2)


def test_the_errors_of_all_layers_that_read_a_channel_count_relative_to_what_they_give():
    x = torch.randn(300, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[:, 2] += x[:, 0] - 2 * x[:, 4]
    mixing = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) / 3 + torch.eye(5)
    inputs = [x, (x @ mixing).relu()]
    draw = torch.Generator().manual_seed(1)
    weights = [scale * torch.randn(7, 5, dtype=torch.float64, generator=draw) for scale in (1, 100)]

    def error(kept):
        parts = []
        for given, weight in zip(inputs, weights, strict=True):
            centered = given - given.mean(0)
            wanted = centered @ weight.T
            fitted = torch.linalg.lstsq(centered[:, kept], wanted).solution
            parts.append(float((wanted - centered[:, kept] @ fitted).square().sum() / wanted.square().sum()))
        return sum(parts)

    readers = []
    for given, weight in zip(inputs, weights, strict=True):
        moments = Moments()
        moments.add(given.float())
        readers.append((moments.covariance(), weight.float()))
    left = list(range(5))
    while len(left) > 1:
        left = min(([channel for channel in left if channel != dropped] for dropped in left), key=error)
        assert kept_channels(readers, 5, len(left)).tolist() == left
