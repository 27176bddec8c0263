"""The layers of a model that have parameters, and how they are connected."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import nn

from zskd_fast.models.classifier import Classifier, frozen
from zskd_fast.runtime.precision import full_float32


def own_layers(model: nn.Module) -> list[nn.Module]:
    """Return the modules that have parameters of their own; none of a model that runs without its modules."""
    layers = [layer for layer in model.modules() if list(layer.parameters(recurse=False))]
    return [] if any(isinstance(layer, torch.jit.ScriptModule) for layer in layers) else layers


def called_layers(classifier: Classifier) -> list[nn.Module]:
    """Return the layers with parameters in the order of their calls, a layer that is called twice twice."""
    calls: list[nn.Module] = []
    with contextlib.ExitStack() as undo, frozen(classifier.model), torch.no_grad(), full_float32():
        for layer in own_layers(classifier.model):
            undo.callback(layer.register_forward_hook(lambda layer, given, answer: calls.append(layer)).remove)
        classifier.logits(classifier.probe_input())
    return calls


def chained_layers(classifier: Classifier) -> list[nn.Module]:
    """Return the layers with parameters in the order of their calls; none if the model is not a chain of them.

    In a chain each is called once, and only its own output takes part in what the next one is given.
    """
    layers: list[nn.Module] = []
    outputs: list[torch.Tensor] = []
    links: list[bool] = []

    def enter(layer: nn.Module, given: tuple[Any, ...]) -> None:
        links.append(len(given) == 1 and _depends_on_last(given[0], outputs))

    def leave(layer: nn.Module, given: tuple[Any, ...], answer: Any) -> Any:
        if not isinstance(answer, torch.Tensor):
            links.append(False)
            return answer
        layers.append(layer)
        outputs.append(answer.detach().requires_grad_())
        return outputs[-1].clone()  # a leaf must not be changed in place, as by a ReLU

    own = own_layers(classifier.model)
    with contextlib.ExitStack() as undo, frozen(classifier.model), torch.enable_grad(), full_float32():
        for layer in own:
            undo.callback(layer.register_forward_pre_hook(enter).remove)
            undo.callback(layer.register_forward_hook(leave).remove)
        x = classifier.probe_input().clone().requires_grad_()
        outputs.append(x)
        links.append(_depends_on_last(classifier.logits(x), outputs))
    is_chain = all(links) and sorted(map(id, layers)) == sorted(map(id, own))
    return layers if is_chain else []


def _depends_on_last(value: Any, outputs: list[torch.Tensor]) -> bool:
    """Whether the last of the outputs takes part in the value, and none before it."""
    if not isinstance(value, torch.Tensor) or not value.requires_grad:
        return False
    *before, last = torch.autograd.grad(value.sum(), outputs, retain_graph=True, allow_unused=True)
    return last is not None and all(gradient is None for gradient in before)
