"""Dormant units of the student: units whose ReLU is almost never active are found and reset."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from zskd_fast.config.recipe import DormantUnitsRecipe
from zskd_fast.models.classifier import Classifier, frozen
from zskd_fast.runtime.processes import World

_RECTIFIERS = {F.relu, torch.relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_}
# The threshold is lowered by this share of the unit's deviation: all inputs that silence the whole layer before give
# the same value, which is often the largest, and would otherwise stay exactly at 0.
_MARGIN = 1e-3
# Position of the weight and of the bias among a layer's arguments, and the axis of the output that counts the units.
_CONVOLUTION = (1, 2, 1)
_LAYERS = {
    torch.conv1d: _CONVOLUTION,
    torch.conv2d: _CONVOLUTION,
    torch.conv3d: _CONVOLUTION,
    F.linear: (1, 2, -1),
    F.batch_norm: (3, 4, 1),
}


def reset_dormant_units(student: Classifier, x: torch.Tensor, recipe: DormantUnitsRecipe, world: World) -> int:
    """Reset the units that are dormant on the inputs x[n, *shape] (raw range); return how many there were.

    A unit is a channel of a convolution or batch normalization, or an output of a linear layer, that goes straight into
    a ReLU. It is dormant if the ReLU passes less than ``recipe.least_active`` of its values: it gets almost no gradient
    and does not recover by itself ("ReDo", Sokar et al., ICML 2023). Its bias is moved so that the largest
    ``recipe.reset_active`` of its values pass. Its weights and bias are scaled down if its standard deviation exceeds
    ``recipe.reset_scale`` times that of the layer's median active unit, since units often grow before they fall
    dormant. Sokar et al. draw new weights and zero the outgoing ones, which must be known for that. Units without a
    bias, or with frozen weights, are not reset. In a process group each process passes its share of the inputs.
    """
    reset = _Reset(student.model, recipe, world)
    with frozen(student.model), torch.no_grad(), reset:
        student.logits(x)
    return reset.count


@dataclass(frozen=True)
class _Layer:
    """A layer's output and its parameters."""

    output: torch.Tensor
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    axis: int
    """Axis of the output that counts the units."""


class _Reset(TorchFunctionMode):
    """Find the layers whose output goes into a ReLU, reset their dormant units, and pass the new output to the ReLU."""

    def __init__(self, student: nn.Module, recipe: DormantUnitsRecipe, world: World):
        super().__init__()
        self.count = 0
        self._recipe, self._world = recipe, world
        self._parameters = {id(parameter) for parameter in student.parameters() if parameter.requires_grad}
        self._last: _Layer | None = None

    def __torch_function__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _RECTIFIERS and args:
            args = (self._reset_output(args[0]), *args[1:])
        result = func(*args, **kwargs)
        if func in _LAYERS:
            weight, bias, axis = _LAYERS[func]
            weight, bias = _argument(args, kwargs, weight, "weight"), _argument(args, kwargs, bias, "bias")
            self._last = _Layer(result, weight, bias, axis)
        return result

    def _reset_output(self, output: torch.Tensor) -> torch.Tensor:
        """Return the output of the last layer with its dormant units reset; any other tensor as it is."""
        layer = self._last
        if layer is None or output is not layer.output or layer.weight is None or layer.bias is None:
            return output
        if not {id(layer.weight), id(layer.bias)} <= self._parameters:
            return output
        return self._reset_layer(layer, layer.weight, layer.bias)

    def _reset_layer(self, layer: _Layer, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        values = layer.output.movedim(layer.axis, 0).flatten(1)
        is_dormant = self._mean((values > 0).float().mean(1)) < self._recipe.least_active
        dormant = is_dormant.nonzero()[:, 0]
        if not len(dormant):
            return layer.output
        self.count += len(dormant)
        deviation = self._mean(values.std(1, correction=0))
        threshold = self._mean(self._threshold(values[dormant])) - _MARGIN * deviation[dormant]
        scale = self._scale(deviation[dormant], deviation[~is_dormant])
        weight[dormant] *= scale.reshape(-1, *(1,) * (weight.ndim - 1))
        bias[dormant] = scale * (bias[dormant] - threshold)
        reset = values.clone()
        reset[dormant] = (values[dormant] - threshold[:, None]) * scale[:, None]
        units_first = layer.output.movedim(layer.axis, 0)
        return reset.reshape(units_first.shape).movedim(0, layer.axis)

    def _scale(self, dormant: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
        """Return the factor of each dormant unit: at most 1, and 1 where no unit of the layer is active."""
        if not len(active):
            return torch.ones_like(dormant)
        return (self._recipe.reset_scale * active.median() / dormant.clamp_min(1e-30)).clamp_max(1)

    def _threshold(self, values: torch.Tensor) -> torch.Tensor:
        below = math.ceil((1 - self._recipe.reset_active) * values.shape[1])
        return values.kthvalue(max(1, below)).values

    def _mean(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the mean over the processes."""
        return self._world.sum(tensor) / self._world.size


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str) -> Any:
    return args[position] if len(args) > position else kwargs.get(name)
