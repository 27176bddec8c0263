"""The layers of a model that have parameters, and how they are connected."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from zskd_fast.models.classifier import Classifier, frozen
from zskd_fast.runtime.precision import full_float32

Inputs = Callable[[], Iterable[torch.Tensor]]
"""Gives the same batches x[n, *shape] at each call."""


@dataclass(frozen=True)
class Link:
    """A layer of a chain, and the shape of what it gives for one input."""

    layer: nn.Module
    shape: torch.Size


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


def called_layers(classifier: Classifier) -> list[nn.Module]:
    """Return the layers with parameters in the order of their calls, each once per call."""
    calls: list[nn.Module] = []
    with contextlib.ExitStack() as undo, frozen(classifier.model), torch.no_grad(), full_float32():
        for layer in own_layers(classifier.model):
            undo.callback(layer.register_forward_hook(lambda layer, given, answer: calls.append(layer)).remove)
        classifier.logits(classifier.probe_input())
    return calls


def chain(classifier: Classifier) -> list[Link]:
    """Return the layers with parameters in the order of their calls; none if the model is not a chain of them.

    In a chain each is called once, and only its own output takes part in what the next one is given, channel after
    channel.
    """
    links: list[Link] = []
    outputs: list[torch.Tensor] = []
    are_linked: list[bool] = []

    def enter(layer: nn.Module, given: tuple[Any, ...]) -> None:
        are_linked.append(
            len(given) == 1 and _depends_on_last(given[0], outputs) and _is_in_order(given[0], outputs[-1])
        )

    def leave(layer: nn.Module, given: tuple[Any, ...], answer: Any) -> Any:
        if not isinstance(answer, torch.Tensor):
            are_linked.append(False)
            return answer
        links.append(Link(layer, answer.shape[1:]))
        outputs.append(answer.detach().requires_grad_())
        return outputs[-1].clone()  # a leaf must not be changed in place, as by a ReLU

    own = own_layers(classifier.model)
    with contextlib.ExitStack() as undo, frozen(classifier.model), torch.enable_grad(), full_float32():
        for layer in own:
            undo.callback(layer.register_forward_pre_hook(enter).remove)
            undo.callback(layer.register_forward_hook(leave).remove)
        x = classifier.probe_input().clone().requires_grad_()
        outputs.append(x)
        are_linked.append(_depends_on_last(classifier.logits(x), outputs))
    is_chain = all(are_linked) and sorted(id(link.layer) for link in links) == sorted(map(id, own))
    return links if is_chain else []


def _depends_on_last(value: Any, outputs: list[torch.Tensor]) -> bool:
    """Whether the last of the outputs takes part in the value, and none before it."""
    if not isinstance(value, torch.Tensor) or not value.requires_grad:
        return False
    *before, last = torch.autograd.grad(value.sum(), outputs, retain_graph=True, allow_unused=True)
    return last is not None and all(gradient is None for gradient in before)


def _is_in_order(given: torch.Tensor, output: torch.Tensor) -> bool:
    """Whether the first inputs of the next layer come from the first channel, at least for the most part.

    Inputs that are flattened with the channels last, or concatenated, do not. A normalization over channels mixes some.
    """
    size = given.shape[1] // output.shape[1]
    (gradient,) = torch.autograd.grad(given[:, : max(1, size)].sum(), output, retain_graph=True)
    by_channel = gradient.abs().movedim(1, 0).flatten(1).sum(1)
    return size >= 1 and bool(by_channel[0] >= by_channel.sum() / 2)
