"""The layers of a model that have parameters: how they are connected, and copies of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from zskd_fast.models.classifier import Classifier, frozen
from zskd_fast.runtime.precision import full_float32

Norm = nn.modules.batchnorm._BatchNorm
Inputs = Callable[[], Iterable[torch.Tensor]]
"""Gives the same batches x[n, *shape] at each call."""


INPUT = -1
"""The model's input as a source of a layer."""


@dataclass(frozen=True)
class Call:
    """A call of a layer with parameters, the shape of what it gives for one input, and what it is given."""

    layer: nn.Module
    shape: torch.Size
    sources: frozenset[int]
    """Positions of the calls, or `INPUT`, whose outputs are added, channel by channel, to what this one is given."""


def own_layers(model: nn.Module) -> list[nn.Module]:
    """Return the modules that have parameters of their own.

    None of a model that runs without its modules, or in which two of them share a parameter.
    """
    layers = [layer for layer in model.modules() if list(layer.parameters(recurse=False))]
    parameters = [id(parameter) for layer in layers for parameter in layer.parameters(recurse=False)]
    is_plain = len(set(parameters)) == len(parameters)
    return layers if is_plain and not any(isinstance(layer, torch.jit.ScriptModule) for layer in layers) else []


def is_frozen(layer: nn.Module) -> bool:
    """Whether a parameter of the layer's own is not to be changed."""
    return not all(parameter.requires_grad for parameter in layer.parameters(recurse=False))


def is_same(teacher: nn.Module, student: nn.Module) -> bool:
    """Whether both are of one kind, with the same options and shapes."""
    shapes = [
        {name: parameter.shape for name, parameter in layer.named_parameters(recurse=False)}
        for layer in (teacher, student)
    ]
    return type(teacher) is type(student) and teacher.extra_repr() == student.extra_repr() and shapes[0] == shapes[1]


def has_plain_weight(layer: nn.Module) -> bool:
    """Whether the parameters of a layer are its weight and, if it has one, its bias: none that they are made of."""
    names = {name for name, _ in layer.named_parameters()}
    return "weight" in names and names <= {"weight", "bias"}


def copy_weights(source: nn.Module, layer: nn.Module, channels: torch.Tensor | slice | None = None) -> None:
    """Copy the parameters of a layer's own, or some channels of them; a layer with a frozen parameter keeps all.

    Batch normalization in eval mode gets the running statistics, too, since it will not learn any.
    """
    if is_frozen(layer):
        return
    names = [name for name, _ in layer.named_parameters(recurse=False)]
    if isinstance(layer, Norm) and layer.running_mean is not None and not layer.training:
        names += ["running_mean", "running_var"]
    for name in names:
        tensor = getattr(source, name)
        getattr(layer, name).copy_(tensor if channels is None else tensor[channels])


def called_layers(classifier: Classifier) -> list[nn.Module]:
    """Return the layers with parameters in the order of their calls, each once per call."""
    calls: list[nn.Module] = []
    with contextlib.ExitStack() as undo, frozen(classifier.model), torch.no_grad(), full_float32():
        for layer in own_layers(classifier.model):
            undo.callback(layer.register_forward_hook(lambda layer, given, answer: calls.append(layer)).remove)
        classifier.logits(classifier.probe_input())
    return calls


def calls(classifier: Classifier) -> list[Call]:
    """Return the calls of the layers with parameters, in order; none if the model is not understood.

    It is if each layer is called once and what is between them keeps channels apart and in order, as an activation, a
    pool or the sum of a residual block does, and if the logits depend on the last layer alone.
    """
    found: list[Call] = []
    outputs: list[torch.Tensor] = []
    sources: list[frozenset[int]] = []

    def enter(layer: nn.Module, given: tuple[Any, ...]) -> None:
        if all(sources):  # behind a break nothing is differentiated, which some layers allow in train mode only
            sources.append(_sources(given[0], outputs) if len(given) == 1 else frozenset())

    def leave(layer: nn.Module, given: tuple[Any, ...], answer: Any) -> Any:
        if not (all(sources) and _has_channels(answer)):
            sources.append(frozenset())
            return answer
        found.append(Call(layer, answer.shape[1:], sources[-1]))
        outputs.append(answer.detach().sigmoid().requires_grad_())  # positive: behind a ReLU, too, there are gradients
        return outputs[-1].clone()  # a leaf must not be changed in place, as by a ReLU

    own = own_layers(classifier.model)
    with contextlib.ExitStack() as undo, frozen(classifier.model), torch.enable_grad(), full_float32():
        for layer in own:
            undo.callback(layer.register_forward_pre_hook(enter).remove)
            undo.callback(layer.register_forward_hook(leave).remove)
        outputs.append(classifier.probe_input().clone().requires_grad_())
        logits = classifier.logits(outputs[0])
        is_understood = all(sources) and _used(logits, outputs) == {len(found) - 1}
    is_called_once = sorted(id(call.layer) for call in found) == sorted(map(id, own))
    return found if is_understood and is_called_once else []


def _has_channels(value: Any) -> bool:
    """Whether a value is a tensor [N, channels, ...] of real numbers."""
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim > 1


def _used(value: Any, outputs: list[torch.Tensor]) -> frozenset[int]:
    """Return which outputs take part in the value; the first is the model's input."""
    if not _has_channels(value) or not value.requires_grad:
        return frozenset()
    gradients = torch.autograd.grad(value.sum(), outputs, retain_graph=True, allow_unused=True)
    return frozenset(index for index, gradient in enumerate(gradients, start=INPUT) if gradient is not None)


def _sources(given: Any, outputs: list[torch.Tensor]) -> frozenset[int]:
    """Return which outputs take part in what a layer is given; none if one does otherwise than channel by channel."""
    used = _used(given, outputs)
    is_in_order = all(_is_in_order(given, outputs[index - INPUT]) for index in used)
    return used if is_in_order else frozenset()


def _is_in_order(given: torch.Tensor, output: torch.Tensor) -> bool:
    """Whether the first channel of an output makes up the first inputs of a layer, and the first half the first half.

    It does for the most part, since a normalization over channels mixes some. Maps that are flattened with the channels
    last, or concatenated, are not in order.
    """
    channels = output.shape[1]
    if given.shape[1] % channels:
        return False
    size = given.shape[1] // channels
    for first in {1, max(1, channels // 2)}:
        (gradient,) = torch.autograd.grad(given[:, : first * size].sum(), output, retain_graph=True)
        by_channel = gradient.abs().movedim(1, 0).flatten(1).sum(1)
        if not by_channel[:first].sum() > 0.75 * by_channel.sum():
            return False
    return True
