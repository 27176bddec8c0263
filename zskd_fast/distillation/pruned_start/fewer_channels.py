"""The first weights of a student that is its teacher with fewer channels: the teacher's, pruned to its widths.

Which channels a layer keeps is decided as in channel pruning (He et al., ICCV 2017; ThiNet, Luo et al., ICCV 2017):
those, chosen one at a time, from which the next layer's output can be computed best. Each layer is then fitted by least
squares to what the teacher's gives there, on the inputs that the student itself makes, so that it makes up for the
layers before.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from zskd_fast.distillation.pruned_start.layers import Inputs, Link, chain, is_frozen
from zskd_fast.distillation.pruned_start.least_squares import Moments, kept_channels
from zskd_fast.models.classifier import Classifier
from zskd_fast.runtime.precision import full_float32

_Norm = nn.modules.batchnorm._BatchNorm
_SAME = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
# Inputs of a unit; the matrix of all products of 4,608 takes 170 MB, and one is held for each layer that is pruned.
_MOST_INPUTS = 4608
_POSITIONS = 8  # in the map of a convolution, per input
# Rows for each input of a unit of the student; the choice of channels needs half as many for those of the teacher.
_ROWS = 7
_LEAST_ROWS = 4096


@dataclass(frozen=True)
class _Pair:
    """A convolution or linear layer of the teacher, the student's in its place, and the normalizations behind them."""

    teacher: nn.Module
    student: nn.Module
    norms: list[tuple[nn.Module, nn.Module]]

    @property
    def is_narrower(self) -> bool:
        return _units(self.student) < _units(self.teacher)


class FewerChannels:
    """Sets the weights of a student that is its teacher with fewer channels, before it learns.

    Both are chains, in which each layer depends on the one before it alone. Their layers with weights are convolutions
    without groups, linear layers and batch normalization, of the same kinds in the same order.
    """

    def __init__(self, pairs: list[_Pair]):
        self._pairs = pairs
        self.description = f"{len(pairs)} layers of the teacher, pruned to the student's widths"
        """For a summary."""
        self.num_inputs = max(_LEAST_ROWS, *map(_rows_needed, pairs))

    @classmethod
    def of(cls, teacher: Classifier, student: Classifier) -> FewerChannels | None:
        """Return what sets the weights; None if the student is not its teacher with fewer channels."""
        pairs = _pairs(chain(teacher), chain(student))
        return cls(pairs) if any(pair.is_narrower for pair in pairs) else None

    @torch.no_grad()
    def set_weights(
        self, teacher: Classifier, student: Classifier, inputs: Inputs, projection: nn.Module | None = None
    ) -> None:
        """Set the weights; see `PrunedStart`."""
        with full_float32():
            kept, targets = self._of_teacher(teacher, inputs, wants_features=projection is not None)
            for index, pair in enumerate(self._pairs):
                layer = pair.student if projection is None or pair is not self._pairs[-1] else projection
                if is_frozen(layer):
                    continue
                _fit(layer, student, inputs, targets[index][:, kept[index]], seed=index)
                for source, norm in pair.norms:
                    for name, parameter in norm.named_parameters() if not is_frozen(norm) else ():
                        parameter.copy_(source.get_parameter(name)[kept[index]])

    def _of_teacher(
        self, teacher: Classifier, inputs: Inputs, *, wants_features: bool
    ) -> tuple[list[torch.Tensor | slice], list[torch.Tensor]]:
        """Return which channels each layer keeps, and what it gives: rows [S, channels of the teacher].

        ``wants_features`` takes the input of the last layer in the place of its output.
        """
        layers = [pair.teacher for pair in self._pairs]
        targets: list[list[torch.Tensor]] = [[] for _ in layers]
        needed = {index: Moments() for index, pair in enumerate(self._pairs) if pair.is_narrower}
        for calls in _calls(teacher, inputs, layers):
            for index, (given, answer) in enumerate(calls):
                is_feature = wants_features and index == len(layers) - 1
                targets[index].append(given if is_feature else _outputs(layers[index], answer, seed=index))
            for index, moments in needed.items():  # of what the next layer is given
                moments.add(_inputs(layers[index + 1], calls[index + 1][0], seed=index + 1))
        kept: list[torch.Tensor | slice] = [slice(None)] * len(layers)
        for index, moments in needed.items():
            teacher_units, student_units = _widths(self._pairs[index])
            kept[index] = kept_channels(moments.covariance(), _matrix(layers[index + 1]), teacher_units, student_units)
        return kept, [torch.cat(parts) for parts in targets]


def _fit(layer: nn.Module, student: Classifier, inputs: Inputs, targets: torch.Tensor, *, seed: int) -> None:
    """Set weight and bias so that the layer gives the targets, rows of its output, for what the student gives it."""
    weight, moments, first = layer.get_parameter("weight"), Moments(), 0
    for ((given, _),) in _calls(student, inputs, [layer]):
        u = _inputs(layer, given, seed=seed)
        moments.add(u, targets[first : first + len(u)])
        first += len(u)
    fitted, bias = moments.fitted(has_bias=layer.bias is not None)
    weight.copy_(fitted.reshape(weight.shape))
    if layer.bias is not None:
        layer.get_parameter("bias").copy_(bias)


def _units(layer: nn.Module) -> int:
    return len(layer.get_parameter("weight"))


def _matrix(layer: nn.Module) -> torch.Tensor:
    return layer.get_parameter("weight").flatten(1)


def _inputs(layer: nn.Module, given: torch.Tensor, *, seed: int) -> torch.Tensor:
    """Return what a unit sees: one row per input for a linear layer, `_POSITIONS` for a convolution."""
    if not isinstance(layer, nn.Conv2d):
        return given
    assert not isinstance(layer.padding, str)
    (tall, wide), (down, right), (high, broad) = layer.kernel_size, layer.stride, layer.padding
    windows = F.pad(given, (broad, broad, high, high)).unfold(2, tall, down).unfold(3, wide, right)
    rows, columns = _positions(windows.shape[2], windows.shape[3], seed, given.device)
    return windows[:, :, rows, columns].movedim(2, 1).flatten(2).flatten(0, 1)


def _outputs(layer: nn.Module, answer: torch.Tensor, *, seed: int) -> torch.Tensor:
    """Return what the units give for the rows of `_inputs`."""
    if not isinstance(layer, nn.Conv2d):
        return answer
    rows, columns = _positions(answer.shape[2], answer.shape[3], seed, answer.device)
    return answer[:, :, rows, columns].movedim(2, 1).flatten(0, 1)


def _positions(height: int, width: int, seed: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows and columns of the positions of a map on which a layer is fitted."""
    chosen = torch.randperm(height * width, generator=torch.Generator().manual_seed(seed))[:_POSITIONS].to(device)
    return chosen // width, chosen % width


def _calls(classifier: Classifier, inputs: Inputs, layers: list[nn.Module]) -> Iterable[list[tuple[Any, Any]]]:
    """Run the model on each batch and give input and output of the layers."""
    seen: dict[nn.Module, tuple[Any, Any]] = {}

    def store(layer: nn.Module, given: tuple[Any, ...], answer: Any) -> None:
        seen[layer] = given[0], answer.clone()  # which a ReLU may change in place

    with contextlib.ExitStack() as undo:
        for layer in layers:
            undo.callback(layer.register_forward_hook(store).remove)
        for x in inputs():
            classifier.logits(x)
            yield [seen[layer] for layer in layers]


def _pairs(teacher: list[Link], student: list[Link]) -> list[_Pair]:
    """Pair the layers of two chains; nothing where one of the student's is not its teacher's with fewer channels."""
    if not teacher or len(teacher) != len(student):
        return []
    pairs: list[_Pair] = []
    for theirs, mine in zip(teacher, student, strict=True):
        source, layer = theirs.layer, mine.layer
        if isinstance(source, _Norm) and isinstance(layer, _Norm) and pairs:
            if source.affine != layer.affine or (source.num_features, layer.num_features) != _widths(pairs[-1]):
                return []
            pairs[-1].norms.append((source, layer))
        elif theirs.shape[1:] == mine.shape[1:] and _is_same_but_for_width(source, layer, theirs.shape):
            pairs.append(_Pair(source, layer, []))
        else:
            return []
    fit = all(_can_follow(pair, before) for before, pair in pairwise(pairs))
    ends = pairs[0].teacher, pairs[0].student, pairs[-1]
    fit = fit and _matrix(ends[0]).shape[1] == _matrix(ends[1]).shape[1] and not ends[2].is_narrower
    return pairs if fit else []


def _is_same_but_for_width(teacher: nn.Module, student: nn.Module, shape: torch.Size) -> bool:
    """Whether both are plain convolutions, or linear layers that give vectors, with fewer units or as many.

    ``shape`` is that of the teacher's output. Subclasses may compute anything, and weights that are made of other
    parameters are not to be set.
    """
    if type(teacher) is not type(student) or type(teacher) not in (nn.Conv2d, nn.Linear):
        return False
    names = [{name for name, _ in layer.named_parameters()} for layer in (teacher, student)]
    if "weight" not in names[0] or names[0] != names[1] or not names[0] <= {"weight", "bias"}:
        return False
    if isinstance(teacher, nn.Conv2d):
        plain = teacher.groups == 1 and teacher.dilation == (1, 1) and teacher.padding_mode == "zeros"
        same = all(getattr(teacher, name) == getattr(student, name) for name in _SAME)
        if not (plain and same) or isinstance(teacher.padding, str):
            return False
    elif len(shape) != 1:
        return False
    return _units(student) <= _units(teacher) and _matrix(teacher).shape[1] <= _MOST_INPUTS


def _rows_needed(pair: _Pair) -> int:
    """Return how many inputs its fit and the choice of the channels before it need."""
    positions = _POSITIONS if isinstance(pair.teacher, nn.Conv2d) else 1
    wanted = max(_matrix(pair.student).shape[1], _matrix(pair.teacher).shape[1] / 2)
    return math.ceil(_ROWS * wanted / positions)


def _widths(pair: _Pair) -> tuple[int, int]:
    return _units(pair.teacher), _units(pair.student)


def _can_follow(pair: _Pair, before: _Pair) -> bool:
    """Whether each channel of the layers before is as many inputs of both layers."""
    sizes = [
        _matrix(layer).shape[1] / width
        for layer, width in zip((pair.teacher, pair.student), _widths(before), strict=True)
    ]
    return sizes[0] == sizes[1] and sizes[0].is_integer()
