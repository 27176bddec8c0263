"""The classifier layer of a teacher: the layer that yields its logits."""

from collections.abc import Callable, Mapping

import torch
from torch import nn

from zskd_fast.errors import InputError
from zskd_fast.models.answers import two_logits

Layer = nn.Module | torch.Tensor

# The cosine of a layer's output and the logits exceeds 1 - this if the layer is followed by a temperature or a softmax.
_SAME_DIRECTION = 1e-5


def find_classifier_layer(
    teacher: nn.Module,
    num_classes: int | None = None,
    name: str | None = None,
    *,
    forward: Callable[[], torch.Tensor] | None = None,
) -> tuple[str, Layer]:
    """Return the classifier layer: (its name in the teacher, the module).

    A candidate is a Linear, a 1x1 convolution, or another module with a weight of such a shape, [K, D] or [K, D, 1, 1];
    if none of K classes is there, a convolution of any kernel [K, D, H, W], and for K = 2 also a layer of one logit.
    ``forward`` runs the teacher once and returns its logits [N, K]: the layer whose output equals the logits is taken,
    or is a multiple of them, apart from a number per row (a temperature or a softmax follows). Without ``forward``, or
    if something else behind the layer changes the logits, the only candidate is taken. Without ``num_classes`` and
    ``forward``, K is that of the last candidate. ``name`` overrides the search; it may also name a parameter or buffer
    [K, D], such as prototypes, which is returned in place of a module.

    Raises InputError that lists the candidates if no layer or more than one fits, or if ``name`` does not.
    """
    layers = {path: module for path, module in teacher.named_modules() if _class_weight(module) is not None}
    if name is not None:
        return name, _named_layer(teacher, layers, name, num_classes)
    outputs: dict[str, torch.Tensor] = {}
    logits: torch.Tensor | None = None
    if forward is not None:
        layers, outputs, logits = _run_with_hooks(layers, forward)
        num_classes = logits.shape[1]
    pointwise = {path: layer for path, layer in layers.items() if _is_pointwise(layer)}
    if num_classes is None and pointwise:
        num_classes = _rows(list(pointwise.values())[-1])
    groups = [_with_rows(pointwise, num_classes), _with_rows(layers, num_classes)]
    if num_classes == 2:
        groups.append(_with_rows(layers, 1))
    for found in [_matching(group, outputs, logits) for group in groups] + groups:
        if len(found) == 1:
            return next(iter(found.items()))
        if found:
            raise _refusal("more than one layer", num_classes, _listing(found))
    raise _refusal("no Linear layer or convolution", num_classes, _listing(layers, teacher, num_classes))


def classifier_weight(layer: Layer) -> torch.Tensor:
    """Return the weights of a classifier layer, detached, one class per row: [K, D].

    ``layer`` is a module or the weights themselves. A single row w is that of one logit z, whose two classes have the
    logits (-z/2, z/2): their rows are -w and w. Raises InputError for modules of other kinds.
    """
    weight = layer if isinstance(layer, torch.Tensor) else _class_weight(layer)
    if weight is None:
        raise InputError(f"{type(layer).__name__} is neither a Linear layer nor a convolution")
    weight = weight.detach().flatten(1)
    return torch.cat([-weight, weight]) if len(weight) == 1 else weight


def _class_weight(module: nn.Module) -> torch.Tensor | None:
    """The weight if its shape maps features to classes; the modules of an exported program have no other mark.

    Of a convolution it is one for any kernel: before or after a mean over positions, it maps patches linearly.
    """
    weight = getattr(module, "weight", None)
    transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
    if transposed or isinstance(module, nn.Embedding | nn.EmbeddingBag) or getattr(module, "groups", 1) != 1:
        return None
    if not isinstance(weight, torch.Tensor) or not _is_matrix(weight):
        return weight if isinstance(module, nn.modules.conv._ConvNd) else None
    return weight


def _is_matrix(weight: torch.Tensor) -> bool:
    return weight.is_floating_point() and weight.ndim >= 2 and all(size == 1 for size in weight.shape[2:])


def _is_pointwise(layer: nn.Module) -> bool:
    weight = _class_weight(layer)
    return weight is not None and _is_matrix(weight)


def _rows(layer: nn.Module) -> int:
    weight = _class_weight(layer)
    return 0 if weight is None else len(weight)


def _with_rows(layers: dict[str, nn.Module], rows: int | None) -> dict[str, nn.Module]:
    return {path: layer for path, layer in layers.items() if _rows(layer) == rows}


def _named_layer(teacher: nn.Module, layers: Mapping[str, nn.Module], name: str, num_classes: int | None) -> Layer:
    modules = dict(teacher.named_modules(remove_duplicate=False))
    tensors = {**dict(teacher.named_parameters(remove_duplicate=False)), **dict(teacher.named_buffers())}
    listing = _listing(layers, teacher, num_classes)
    layer: Layer
    if name in modules:
        layer = modules[name]
        if _class_weight(modules[name]) is None:
            kind = type(layer).__name__
            raise InputError(f"the layer {name!r} ({kind}) is no classifier; candidates: {listing}")
    elif name in tensors:
        layer = tensors[name]
        if not _is_matrix(layer):
            raise InputError(
                f"the tensor {name!r} of the teacher has shape {list(layer.shape)}, wanted [K, D], one row per class"
            )
    else:
        raise InputError(f"the teacher has no layer or parameter {name!r}; candidates: {listing}")
    rows = len(classifier_weight(layer))
    if num_classes not in (None, rows):
        raise InputError(f"the layer {name!r} has {rows} rows, but the teacher has {num_classes} classes")
    return layer


def _run_with_hooks(
    layers: dict[str, nn.Module], forward: Callable[[], torch.Tensor]
) -> tuple[dict[str, nn.Module], dict[str, torch.Tensor], torch.Tensor]:
    """Run the teacher; return the layers that may have run, the known outputs, and the logits."""
    outputs: dict[str, torch.Tensor] = {}
    ran: set[str] = set()

    def keep(path: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            ran.add(path)
            if isinstance(output, torch.Tensor):
                outputs[path] = output.detach().clone()

        return hook

    handles = []
    try:
        for path, module in layers.items():
            if isinstance(module, torch.jit.RecursiveScriptModule):  # it takes no hooks, so nothing is known of it
                ran.add(path)
            else:
                handles.append(module.register_forward_hook(keep(path)))
        with torch.no_grad():
            logits = forward()
    finally:
        for handle in handles:
            handle.remove()
    # Hooks of an exported program never run. Then nothing is known about any layer, and none is excluded.
    return {path: layer for path, layer in layers.items() if path in ran} or layers, outputs, logits


def _matching(
    layers: dict[str, nn.Module], outputs: dict[str, torch.Tensor], logits: torch.Tensor | None
) -> dict[str, nn.Module]:
    """Return the layer whose output is the logits, or has their direction; no layer if that is not exactly one."""
    if logits is None:
        return {}
    for is_match in (_is_same, _has_same_direction):
        found = {path: each for path, each in layers.items() if path in outputs and is_match(outputs[path], logits)}
        if len(found) == 1:
            return found
    return {}


def _as_logits(output: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    output = output.flatten(1).to(logits.dtype)
    return two_logits(output) if output.shape[1] == 1 else output


def _is_same(output: torch.Tensor, logits: torch.Tensor) -> bool:
    output = _as_logits(output, logits)
    return output.shape == logits.shape and torch.equal(output, logits)


def _has_same_direction(output: torch.Tensor, logits: torch.Tensor) -> bool:
    output = _as_logits(output, logits)
    if output.shape != logits.shape:
        return False
    mine, theirs = ((each - each.mean(dim=1, keepdim=True)).double().flatten() for each in (output, logits))
    return bool(mine @ theirs > (1 - _SAME_DIRECTION) * mine.norm() * theirs.norm())


def _refusal(problem: str, num_classes: int | None, listing: str) -> InputError:
    return InputError(
        f"{problem} could be the teacher's classifier of {num_classes} classes; name the layer, or a parameter [K, D], "
        f"or give its weights as a matrix [K, D]. Candidates: {listing}"
    )


def _listing(layers: Mapping[str, nn.Module], teacher: nn.Module | None = None, num_classes: int | None = None) -> str:
    """Return the layers with their shapes, and the teacher's other parameters of one row per class."""
    rows = [
        f"{path} ({type(module).__name__}, {list(classifier_weight(module).shape)})" for path, module in layers.items()
    ]
    for path, parameter in [] if teacher is None else teacher.named_parameters():
        if path.rpartition(".")[0] not in layers and _is_matrix(parameter) and len(parameter) == num_classes:
            rows.append(f"{path} (parameter, {list(parameter.shape)})")
    return ", ".join(rows) or "none"
