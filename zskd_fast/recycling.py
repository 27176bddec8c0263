"""Sets units of the student going again that their rectifier has silenced."""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from zskd_fast.classifier import Classifier, frozen
from zskd_fast.distributed import World
from zskd_fast.recipe import RecyclingRecipe

_RECTIFIERS = {F.relu, torch.relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_}
_MARGIN = 1e-3
# Which argument is the bias, and which axis of the output counts the units.
_LAYERS = {
    torch.conv1d: (2, 1),
    torch.conv2d: (2, 1),
    torch.conv3d: (2, 1),
    F.linear: (2, -1),
    F.batch_norm: (4, 1),
}


def recycle(student: Classifier, x: torch.Tensor, recipe: RecyclingRecipe, world: World) -> int:
    """Wakes the units that hardly ever fire on the inputs x[n, *shape] (raw range); returns how many there were.

    A unit is a channel of a convolution or of a batch normalisation, or an output of a linear layer, that goes straight
    into a ReLU. Where the ReLU lets less than ``recipe.least_active`` of a unit's values through, next to no gradient
    reaches the unit and it does not come back by itself (dormant units, "ReDo": Sokar et al., ICML 2023). Its bias is
    moved so that the largest ``recipe.woken_active`` of its values pass. Sokar et al. draw the weights anew and silence
    what reads them; here the weights stay, so that it need not be known what reads them. Units without a bias are left
    alone. In a process group all processes are given their shares of the inputs.
    """
    watch = _Watch(student.model, recipe, world)
    with frozen(student.model), torch.no_grad(), watch:
        student.logits(x)
    return watch.woken


class _Watch(TorchFunctionMode):
    """Sees which layer's output a ReLU is given, and gives it that output with the silent units awake."""

    def __init__(self, student: nn.Module, recipe: RecyclingRecipe, world: World):
        super().__init__()
        self.woken = 0
        self._recipe, self._world = recipe, world
        self._own = {id(parameter) for parameter in student.parameters()}
        self._layer = (None, None, 0)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        output, bias, axis = self._layer
        if func in _RECTIFIERS and args and args[0] is output and id(bias) in self._own:
            args = (self._awake(output, bias, axis), *args[1:])
        result = func(*args, **kwargs)
        if func in _LAYERS:
            place, axis = _LAYERS[func]
            bias = args[place] if len(args) > place else kwargs.get("bias")
            self._layer = (result, bias, axis)
        return result

    def _awake(self, output, bias, axis):
        values = output.movedim(axis, 0).flatten(1)
        active = self._mean((values > 0).float().mean(1))
        silent = (active < self._recipe.least_active).nonzero()[:, 0]
        if not len(silent):
            return output
        self.woken += len(silent)
        threshold = self._mean(self._threshold(values[silent])).to(bias.dtype)
        bias[silent] -= threshold
        shift = torch.zeros_like(bias).index_put((silent,), -threshold)
        return (output.movedim(axis, -1) + shift).movedim(-1, axis)

    def _threshold(self, values):
        below = math.ceil((1 - self._recipe.woken_active) * values.shape[1])
        # Inputs that silence all of the layer before give the same value, often the largest: let them pass then.
        return values.kthvalue(max(1, below)).values - _MARGIN * values.std(1, correction=0)

    def _mean(self, tensor):
        """Over the processes."""
        return self._world.sum(tensor) / self._world.size
