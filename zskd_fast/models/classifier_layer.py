"""The classifier layer of a teacher: the layer that yields its logits."""

from collections.abc import Callable, Mapping

import torch
from torch import nn

from zskd_fast.errors import InputError


def find_classifier_layer(
    teacher: nn.Module,
    num_classes: int | None = None,
    name: str | None = None,
    *,
    forward: Callable[[], torch.Tensor] | None = None,
) -> tuple[str, nn.Module]:
    """Return the classifier layer: (its name in the teacher, the module).

    A candidate is a Linear, a 1x1 convolution, or another module with a weight of such a shape, [K, D] or [K, D, 1, 1].
    ``forward`` runs the teacher once and returns its logits [N, K]: the layer whose output equals the logits is taken.
    Without ``forward``, or if something behind the layer changes the logits, the only candidate is taken. Without
    ``num_classes`` and ``forward``, K is that of the last candidate. ``name`` overrides the search.

    Raises InputError that lists the candidates if no layer or more than one fits, or if ``name`` does not.
    """
    layers = {path: module for path, module in teacher.named_modules() if _class_weight(module) is not None}
    if name is not None:
        return name, _named_layer(teacher, layers, name, num_classes)
    if forward is not None:
        layers, logits_layers, num_classes = _run_with_hooks(layers, forward)
        if len(logits_layers) == 1:
            return next(iter(logits_layers.items()))
    elif num_classes is None and layers:
        num_classes = len(classifier_weight(list(layers.values())[-1]))
    fitting = {path: layer for path, layer in layers.items() if len(classifier_weight(layer)) == num_classes}
    if len(fitting) == 1:
        return next(iter(fitting.items()))
    problem = "more than one layer" if fitting else "no Linear layer or 1x1 convolution"
    raise InputError(
        f"{problem} could be the teacher's classifier of {num_classes} classes; name the layer or give its "
        f"weights as a matrix [K, D]. Candidates: {_listing(fitting or layers)}"
    )


def classifier_weight(module: nn.Module) -> torch.Tensor:
    """Return the weights of a classifier layer, detached, one class per row: [K, D]. Raises InputError for others."""
    weight = _class_weight(module)
    if weight is None:
        raise InputError(f"{type(module).__name__} is neither a Linear layer nor a 1x1 convolution")
    return weight.detach().flatten(1)


def _class_weight(module: nn.Module) -> torch.Tensor | None:
    """The weight if its shape maps features to classes; the modules of an exported program have no other mark."""
    weight = getattr(module, "weight", None)
    transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
    if transposed or isinstance(module, nn.Embedding | nn.EmbeddingBag) or getattr(module, "groups", 1) != 1:
        return None
    if not isinstance(weight, torch.Tensor) or not weight.is_floating_point() or weight.ndim < 2:
        return None
    return weight if all(size == 1 for size in weight.shape[2:]) else None


def _named_layer(teacher: nn.Module, layers: Mapping[str, nn.Module], name: str, num_classes: int | None) -> nn.Module:
    modules = dict(teacher.named_modules(remove_duplicate=False))
    if name not in modules:
        raise InputError(f"the teacher has no layer {name!r}; candidates: {_listing(layers)}")
    weight = _class_weight(modules[name])
    if weight is None:
        kind = type(modules[name]).__name__
        raise InputError(f"the layer {name!r} ({kind}) is no classifier; candidates: {_listing(layers)}")
    if num_classes not in (None, len(weight)):
        raise InputError(f"the layer {name!r} has {len(weight)} rows, but the teacher has {num_classes} classes")
    return modules[name]


def _run_with_hooks(
    layers: dict[str, nn.Module], forward: Callable[[], torch.Tensor]
) -> tuple[dict[str, nn.Module], dict[str, nn.Module], int]:
    """Run the teacher; return the layers that ran, those whose output is the logits, and K."""
    outputs: dict[str, torch.Tensor] = {}

    def keep(path: str) -> Callable[[nn.Module, object, torch.Tensor], None]:
        return lambda module, inputs, output: outputs.__setitem__(path, output.detach().clone())

    handles = [module.register_forward_hook(keep(path)) for path, module in layers.items()]
    try:
        with torch.no_grad():
            logits = forward()
    finally:
        for handle in handles:
            handle.remove()
    # Hooks of an exported program never run. Then nothing is known about any layer, and none is excluded.
    ran = {path: layers[path] for path in outputs} or layers
    same = {path: layers[path] for path, output in outputs.items() if _is_same(output, logits)}
    return ran, same, logits.shape[1]


def _is_same(output: torch.Tensor, logits: torch.Tensor) -> bool:
    output = output.flatten(1).to(logits.dtype)
    return output.shape == logits.shape and torch.equal(output, logits)


def _listing(layers: Mapping[str, nn.Module]) -> str:
    rows = (
        f"{path} ({type(module).__name__}, {list(classifier_weight(module).shape)})" for path, module in layers.items()
    )
    return ", ".join(rows) or "none"
