"""Sets units of the student going again that their rectifier has silenced."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from zskd_fast.config.recipe import RecyclingRecipe
from zskd_fast.models.classifier import Classifier, frozen
from zskd_fast.runtime.processes import World

_RECTIFIERS = {F.relu, torch.relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_}
# Of a unit's deviation, how much it is raised above the value from which on it is to fire: inputs that silence all of
# the layer before give the same value, often the largest, and would else stay at 0.
_MARGIN = 1e-3
# Which argument is the weight, which the bias, and which axis of the output counts the units.
_CONVOLUTION = (1, 2, 1)
_LAYERS = {
    torch.conv1d: _CONVOLUTION,
    torch.conv2d: _CONVOLUTION,
    torch.conv3d: _CONVOLUTION,
    F.linear: (1, 2, -1),
    F.batch_norm: (3, 4, 1),
}


def recycle(student: Classifier, x: torch.Tensor, recipe: RecyclingRecipe, world: World) -> int:
    """Wakes the units that hardly ever fire on the inputs x[n, *shape] (raw range); returns how many there were.

    A unit is a channel of a convolution or of a batch normalisation, or an output of a linear layer, that goes straight
    into a ReLU. Where the ReLU lets less than ``recipe.least_active`` of a unit's values through, next to no gradient
    reaches the unit and it does not come back by itself (dormant units, "ReDo": Sokar et al., ICML 2023). Its bias is
    moved so that the largest ``recipe.woken_active`` of its values pass. A unit may have grown loud before it fell
    silent: weights and bias are made so small that its deviation is ``recipe.woken_scale`` times that of the layer's
    median unit which fires, if it was more. Sokar et al. draw new weights and silence what reads them, which must be
    known for that. Units without a bias are left alone. In a process group all processes are given their shares of the
    inputs.
    """
    watch = _Watch(student.model, recipe, world)
    with frozen(student.model), torch.no_grad(), watch:
        student.logits(x)
    return watch.woken


@dataclass(frozen=True)
class _Layer:
    """What a layer gave, and what it was made of."""

    output: torch.Tensor
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    axis: int
    """Of the output: that of the units."""


class _Watch(TorchFunctionMode):
    """Sees which layer's output a ReLU is given, and gives it that output with the silent units awake."""

    def __init__(self, student: nn.Module, recipe: RecyclingRecipe, world: World):
        super().__init__()
        self.woken = 0
        self._recipe, self._world = recipe, world
        self._own = {id(parameter) for parameter in student.parameters()}
        self._last: _Layer | None = None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in _RECTIFIERS and args and self._can_wake(args[0]):
            args = (self._awake(self._last), *args[1:])
        result = func(*args, **kwargs)
        if func in _LAYERS:
            weight, bias, axis = _LAYERS[func]
            found = (_argument(args, kwargs, *each) for each in ((weight, "weight"), (bias, "bias")))
            self._last = _Layer(result, *found, axis)
        return result

    def _can_wake(self, output):
        last = self._last
        return last and output is last.output and {id(last.weight), id(last.bias)} <= self._own

    def _awake(self, layer):
        values = layer.output.movedim(layer.axis, 0).flatten(1)
        is_silent = self._mean((values > 0).float().mean(1)) < self._recipe.least_active
        silent = is_silent.nonzero()[:, 0]
        if not len(silent):
            return layer.output
        self.woken += len(silent)
        deviation = self._mean(values.std(1, correction=0))
        threshold = self._mean(self._threshold(values[silent])) - _MARGIN * deviation[silent]
        scale = self._scale(deviation[silent], deviation[~is_silent])
        layer.weight[silent] *= scale.reshape(-1, *(1,) * (layer.weight.ndim - 1))
        layer.bias[silent] = scale * (layer.bias[silent] - threshold)
        awake = values.clone()
        awake[silent] = (values[silent] - threshold[:, None]) * scale[:, None]
        units_first = layer.output.movedim(layer.axis, 0)
        return awake.reshape(units_first.shape).movedim(0, layer.axis)

    def _scale(self, silent, firing):
        """Factor of each silent unit; none is made louder, nor quieter where no other fires."""
        if not len(firing):
            return torch.ones_like(silent)
        return (self._recipe.woken_scale * firing.median() / silent.clamp_min(1e-30)).clamp_max(1)

    def _threshold(self, values):
        below = math.ceil((1 - self._recipe.woken_active) * values.shape[1])
        return values.kthvalue(max(1, below)).values

    def _mean(self, tensor):
        """Over the processes."""
        return self._world.sum(tensor) / self._world.size


def _argument(args, kwargs, place, name):
    return args[place] if len(args) > place else kwargs.get(name)
