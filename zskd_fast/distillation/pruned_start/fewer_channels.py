"""The first weights of a student that is its teacher with fewer channels: the teacher's, pruned to its widths.

Which channels a layer keeps is decided as in channel pruning (He et al., ICCV 2017; ThiNet, Luo et al., ICCV 2017):
those, chosen one at a time, from which the outputs of the next layers can be computed best. Each layer is then fitted
by least squares to what the teacher's gives there, on the inputs that the student itself makes, so that it makes up
for the layers before.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import nn

from zskd_fast.distillation.pruned_start.layers import Inputs, calls, copy_weights, is_frozen
from zskd_fast.distillation.pruned_start.least_squares import Moments, kept_channels
from zskd_fast.distillation.pruned_start.pairs import Pair, matrix, pairs_of, width
from zskd_fast.errors import InputError
from zskd_fast.models.classifier import Classifier
from zskd_fast.runtime.precision import full_float32
from zskd_fast.runtime.progress import progress_bar
from zskd_fast.synthesis.batch_norm import on_batch_statistics

_POSITIONS = 8  # in the map of a convolution, per input
# Rows for each input of a unit of the student; the choice of channels needs half as many for those of the teacher.
_ROWS = 7
_LEAST_ROWS = 4096
_SHOWN_AFTER_SECONDS = 5.0


class FewerChannels:
    """Sets the weights of a student that is its teacher with fewer channels, before it learns.

    Their layers with weights are convolutions without groups, linear layers and batch normalization, of the same kinds
    in the same order. They follow one another, or are added to one another, as the blocks of a residual network; those
    then keep the same channels.
    """

    def __init__(self, teacher: Classifier, student: Classifier, pairs: list[Pair]):
        self._teacher, self._student, self._pairs = teacher, student, pairs
        self._fitted = [index for index, pair in enumerate(pairs) if not pair.is_normalization]
        self.description = f"{len(self._fitted)} layers of the teacher, pruned to the student's widths"
        """For a summary."""
        self.num_inputs = max(_LEAST_ROWS, *(_rows_needed(pairs[index]) for index in self._fitted))

    @classmethod
    def of(cls, teacher: Classifier, student: Classifier) -> FewerChannels | None:
        """Return what sets the weights; None if the student is not its teacher with fewer channels."""
        pairs = pairs_of(calls(teacher), calls(student), teacher.input_spec.shape[0])
        return cls(teacher, student, pairs) if pairs else None

    @torch.no_grad()
    def set_weights(
        self, inputs: Inputs, projection: nn.Module | None = None, *, on_batch: bool = False, shown: bool = False
    ) -> None:
        """Set the weights; see `PrunedStart`."""
        layers = len(self._pairs)
        bar = progress_bar("pruned start", total=layers, unit="layer", shown=shown, delay=_SHOWN_AFTER_SECONDS)
        with full_float32(), bar:
            with on_batch_statistics(self._teacher.model) if on_batch else contextlib.nullcontext():
                kept = self._kept(inputs)
                targets = self._targets(inputs, kept, wants_features=projection is not None)
            left_alone: set[int] = set()
            for index, pair in enumerate(self._pairs):
                channels = kept.get(pair.writes, slice(None))
                layer = pair.student if projection is None or index < self._fitted[-1] else projection
                if is_frozen(layer) or (pair.is_normalization and pair.sources & left_alone):
                    left_alone.add(index)
                elif pair.is_normalization:
                    copy_weights(pair.teacher, layer, channels)
                else:
                    _fit(layer, self._student, inputs, targets[index], seed=self._fitted.index(index))
                bar.update()

    def _kept(self, inputs: Inputs) -> dict[int, torch.Tensor]:
        """Return which channels are kept, by their number."""
        narrower = {pair.writes for pair in self._pairs if pair.is_narrower}
        readers = {index: Moments() for index in self._fitted if self._pairs[index].reads in narrower}
        for index, given, _ in self._rows(inputs):
            if index in readers:
                readers[index].add(given)
        kept = {}
        for number in narrower:
            own = [index for index in readers if self._pairs[index].reads == number]
            matrices = [(readers[index].covariance(), matrix(self._pairs[index].teacher)) for index in own]
            pair = self._pairs[number]
            kept[number] = kept_channels(matrices, width(pair.teacher), width(pair.student))
        return kept

    def _targets(
        self, inputs: Inputs, kept: dict[int, torch.Tensor], *, wants_features: bool
    ) -> dict[int, torch.Tensor]:
        """Return what each fitted layer of the teacher gives in the channels that are kept: rows [S, channels].

        ``wants_features`` takes the input of the last layer in the place of its output.
        """
        targets: dict[int, list[torch.Tensor]] = {index: [] for index in self._fitted}
        for index, given, answer in self._rows(inputs):
            is_feature = wants_features and index == self._fitted[-1]
            channels = kept.get(self._pairs[index].writes, slice(None))
            targets[index].append(given if is_feature else answer[:, channels])
        return {index: torch.cat(parts) for index, parts in targets.items()}

    def _rows(self, inputs: Inputs) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """Run the teacher on each batch; give the position of each fitted layer, and rows of its input and output."""
        layers = [self._pairs[index].teacher for index in self._fitted]
        for answers in _calls(self._teacher, inputs, layers):
            for seed, (index, layer, (given, answer)) in enumerate(zip(self._fitted, layers, answers, strict=True)):
                yield index, _inputs(layer, given, seed=seed), _outputs(layer, answer, seed=seed)


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


class _Seen(Exception):
    """Ends a forward pass of which no more is needed."""


def _calls(
    classifier: Classifier, inputs: Inputs, layers: list[nn.Module]
) -> Iterable[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Run the model on each batch, up to the last of these layers, and give their inputs and outputs.

    Raises InputError if one of them is not called.
    """
    seen: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}

    def store(layer: nn.Module, given: tuple[torch.Tensor, ...], answer: torch.Tensor) -> None:
        seen[layer] = given[0], answer.clone()  # which a ReLU may change in place
        if layer is layers[-1]:
            raise _Seen

    with contextlib.ExitStack() as undo:
        for layer in layers:
            undo.callback(layer.register_forward_hook(store).remove)
        for x in inputs():
            seen.clear()
            with contextlib.suppress(_Seen):
                classifier.logits(x)
            if len(seen) < len(layers):
                raise InputError(
                    f"the {classifier.role} leaves out a layer in train mode, which has to be fitted: set the recipe's "
                    "distillation.pruned_start to false"
                )
            yield [seen[layer] for layer in layers]


def _rows_needed(pair: Pair) -> int:
    """Return how many inputs its fit and the choice of the channels before it need."""
    positions = _POSITIONS if isinstance(pair.teacher, nn.Conv2d) else 1
    wanted = max(matrix(pair.student).shape[1], matrix(pair.teacher).shape[1] / 2)
    return math.ceil(_ROWS * wanted / positions)
