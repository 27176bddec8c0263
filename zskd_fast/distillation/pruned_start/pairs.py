"""The layers of a student beside those of its teacher, if it is its teacher with fewer channels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from zskd_fast.distillation.pruned_start.layers import INPUT, Call, Norm, has_plain_weight

_SAME = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
# Inputs of a unit. The matrix of all products of 4,608 takes 170 MB; there is one for each layer behind a pruned one.
_MOST_INPUTS = 4608


@dataclass(frozen=True)
class Pair:
    """A layer of the teacher and the student's in its place.

    Layers whose outputs are added have their channels in common, and so has a normalization with what it normalizes.
    """

    teacher: nn.Module
    student: nn.Module
    sources: frozenset[int]
    """Positions of the layers that it is given the outputs of, or `INPUT`."""
    reads: int
    """Which channels it is given: the position of the first layer that gives them, or `INPUT`."""
    writes: int
    """Which channels it gives, likewise."""

    @property
    def is_normalization(self) -> bool:
        return isinstance(self.teacher, Norm)

    @property
    def is_narrower(self) -> bool:
        return width(self.student) < width(self.teacher)


def width(layer: nn.Module) -> int:
    """Return the number of channels that a layer gives."""
    return layer.num_features if isinstance(layer, Norm) else len(matrix(layer))


def matrix(layer: nn.Module) -> torch.Tensor:
    """Return the weights [units, inputs] of a convolution or a linear layer."""
    return layer.get_parameter("weight").flatten(1)


def pairs_of(teacher: list[Call], student: list[Call], input_channels: int) -> list[Pair]:
    """Pair the layers; none if the student is not its teacher with fewer channels in one layer at least.

    Both are given inputs of the same channels.
    """
    if not teacher or [call.sources for call in teacher] != [call.sources for call in student]:
        return []
    if not all(map(_is_same_but_for_width, teacher, student)):
        return []
    numbers = _channel_numbers(teacher)
    pairs = [
        Pair(theirs.layer, mine.layer, theirs.sources, numbers[min(theirs.sources)], numbers[index])
        for index, (theirs, mine) in enumerate(zip(teacher, student, strict=True))
    ]
    return pairs if _fit_together(pairs, input_channels) and any(pair.is_narrower for pair in pairs) else []


def _channel_numbers(calls: list[Call]) -> list[int]:
    """Return a number for each output, and at last for the input; those with equal numbers have channels in common."""
    numbers = [*range(len(calls)), INPUT]
    for index, call in enumerate(calls):
        shared = {numbers[source] for source in call.sources}
        if isinstance(call.layer, Norm):
            shared.add(index)
        numbers = [min(shared) if number in shared else number for number in numbers]
    return numbers


def _fit_together(pairs: list[Pair], input_channels: int) -> bool:
    """Whether channels in common have one width, each is as many inputs of a layer in both models, and all are read."""
    widths: dict[int, tuple[int, int]] = {INPUT: (input_channels, input_channels)}
    for pair in pairs:
        both = width(pair.teacher), width(pair.student)
        if widths.setdefault(pair.writes, both) != both:
            return False
        if not pair.is_normalization:
            inputs = [matrix(layer).shape[1] for layer in (pair.teacher, pair.student)]
            (theirs, rest), (mine, no_rest) = map(divmod, inputs, widths[pair.reads])
            if theirs != mine or rest or no_rest:
                return False
    read = {pair.reads for pair in pairs if not pair.is_normalization}
    return all(pair.writes in read for pair in pairs if pair.is_narrower)


def _is_same_but_for_width(teacher: Call, student: Call) -> bool:
    """Whether both are normalizations, plain convolutions or linear layers over vectors; no wider in the student.

    Subclasses may compute anything, and weights that are made of other parameters are not to be set.
    """
    theirs, mine = teacher.layer, student.layer
    if isinstance(theirs, Norm):
        return isinstance(mine, type(theirs)) and theirs.affine == mine.affine and width(mine) <= width(theirs)
    if type(theirs) is not type(mine) or type(theirs) not in (nn.Conv2d, nn.Linear):
        return False
    if not (has_plain_weight(theirs) and has_plain_weight(mine)) or (theirs.bias is None) != (mine.bias is None):
        return False
    if isinstance(theirs, nn.Conv2d):
        plain = theirs.groups == 1 and theirs.dilation == (1, 1) and theirs.padding_mode == "zeros"
        same = all(getattr(theirs, name) == getattr(mine, name) for name in _SAME)
        if not (plain and same) or isinstance(theirs.padding, str):
            return False
    elif len(teacher.shape) != 1:
        return False
    has_one_size = teacher.shape[1:] == student.shape[1:]
    return has_one_size and width(mine) <= width(theirs) and matrix(theirs).shape[1] <= _MOST_INPUTS
