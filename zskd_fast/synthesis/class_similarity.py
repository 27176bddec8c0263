"""Class similarity from the weights of the classifier layer, and the concentrations drawn from it."""

from collections.abc import Callable

import torch
from torch import nn

from zskd_fast.errors import InputError
from zskd_fast.synthesis.plan import Plan

# Below this spread the similarities of a row differ by no more than the rounding of float32 weights.
_SMALLEST_SPREAD = 1e-6


def class_similarity(
    teacher_or_weight: nn.Module | torch.Tensor,
    *,
    layer: str | None = None,
    num_classes: int | None = None,
    forward: Callable[[], torch.Tensor] | None = None,
) -> torch.Tensor:
    """How alike the classes look to the teacher: [K, K] float32, each row from 0 to 1, the diagonal 1.

    Row i holds the cosines of w_i with every class's weights w_j in the classifier layer, min-max
    normalised over that row (section 3.2 of the paper). Takes a teacher, with ``layer``, ``num_classes`` and
    ``forward`` as in ``find_classifier_layer``, or the weights themselves, [K, D] with one class per row.

    Raises InputError that names the class if its weights hold NaN, are all zero or are equally similar to
    those of every class; or if K < 2.
    """
    if isinstance(teacher_or_weight, torch.Tensor):
        weight = teacher_or_weight
    else:
        _, module = find_classifier_layer(teacher_or_weight, num_classes, layer, forward=forward)
        weight = classifier_weight(module)
    return _row_min_max(_cosine(_checked_weight(weight))).to(torch.float32)


def concentration(similarity: torch.Tensor, ids: torch.Tensor, plan: Plan, floor: float) -> torch.Tensor:
    """Dirichlet concentration of each impression, beta * (c_k + floor): [N, K] float32.

    ``similarity`` is [K, K] and ``ids`` [N] int64 on the same device; class k and beta come from the plan
    (section 3.3 of the paper).
    """
    beta = plan.beta_of(ids).unsqueeze(1)
    return beta * (similarity[plan.class_of(ids)] + floor)


def find_classifier_layer(
    teacher: nn.Module,
    num_classes: int | None = None,
    name: str | None = None,
    *,
    forward: Callable[[], torch.Tensor] | None = None,
) -> tuple[str, nn.Module]:
    """The layer that yields the logits: (its name in the teacher, the module).

    A candidate is a Linear, a 1x1 convolution, or another module with such weights, K rows of them. With
    ``forward``, which runs the teacher once and returns its logits [N, K], the layer whose output is the
    logits is taken; else, or if something after the layer changes the logits, the only candidate. Without
    ``num_classes`` and ``forward``, K is that of the last such layer. ``name`` overrules the search.

    Raises InputError that lists the candidates if no layer or more than one fits, or if ``name`` does not.
    """
    layers = {path: module for path, module in teacher.named_modules() if _class_weight(module) is not None}
    if name is not None:
        return name, _named_layer(teacher, layers, name, num_classes)
    if forward is not None:
        layers, logits_layers, num_classes = _watch(layers, forward)
        if len(logits_layers) == 1:
            return next(iter(logits_layers.items()))
    elif num_classes is None and layers:
        num_classes = len(list(layers.values())[-1].weight)
    fitting = {path: layer for path, layer in layers.items() if len(layer.weight) == num_classes}
    if len(fitting) == 1:
        return next(iter(fitting.items()))
    problem = "more than one layer" if fitting else "no Linear layer or 1x1 convolution"
    raise InputError(
        f"{problem} could be the teacher's classifier of {num_classes} classes; name the layer or give its "
        f"weights as a matrix [K, D]. Candidates: {_listing(fitting or layers)}"
    )


def classifier_weight(module: nn.Module) -> torch.Tensor:
    """Weights of a classifier layer, detached, one class per row: [K, D]; InputError if it has none."""
    weight = _class_weight(module)
    if weight is None:
        raise InputError(f"{type(module).__name__} is neither a Linear layer nor a 1x1 convolution")
    return weight.detach().flatten(1)


def _class_weight(module):
    """The weight if it maps features to classes, by its shape, since an exported program has bare modules."""
    weight = getattr(module, "weight", None)
    transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
    if transposed or isinstance(module, nn.Embedding | nn.EmbeddingBag) or getattr(module, "groups", 1) != 1:
        return None
    if not isinstance(weight, torch.Tensor) or not weight.is_floating_point() or weight.ndim < 2:
        return None
    return weight if all(size == 1 for size in weight.shape[2:]) else None


def _named_layer(teacher, layers, name, num_classes):
    modules = dict(teacher.named_modules(remove_duplicate=False))
    if name not in modules:
        raise InputError(f"the teacher has no layer {name!r}; candidates: {_listing(layers)}")
    if _class_weight(modules[name]) is None:
        kind = type(modules[name]).__name__
        raise InputError(f"the layer {name!r} ({kind}) is no classifier; candidates: {_listing(layers)}")
    rows = len(modules[name].weight)
    if num_classes not in (None, rows):
        raise InputError(f"the layer {name!r} has {rows} rows, but the teacher has {num_classes} classes")
    return modules[name]


def _watch(layers, forward):
    """Runs the teacher; returns the layers that ran, those whose output is the logits, and K."""
    outputs: dict[str, torch.Tensor] = {}

    def keep(path):
        return lambda module, inputs, output: outputs.__setitem__(path, output.detach().clone())

    handles = [module.register_forward_hook(keep(path)) for path, module in layers.items()]
    try:
        with torch.no_grad():
            logits = forward()
    finally:
        for handle in handles:
            handle.remove()
    # Hooks of an exported program never run: then nothing is known about any layer, and none is ruled out.
    ran = {path: layers[path] for path in outputs} or layers
    same = {path: layers[path] for path, output in outputs.items() if _is_same(output, logits)}
    return ran, same, logits.shape[1]


def _is_same(output, logits):
    output = output.flatten(1).to(logits.dtype)
    return output.shape == logits.shape and torch.equal(output, logits)


def _listing(layers):
    rows = (
        f"{path} ({type(module).__name__}, {list(module.weight.shape)})" for path, module in layers.items()
    )
    return ", ".join(rows) or "none"


def _checked_weight(weight):
    if weight.ndim != 2 or weight.shape[0] < 2 or weight.shape[1] < 1:
        raise InputError(
            f"the classifier weights must be [K, D], one class per row, K >= 2, got {list(weight.shape)}"
        )
    # In float64, so that the float32 result hardly depends on the machine that sums the products.
    weight = weight.detach().to(torch.float64)
    _refuse_rows(~torch.isfinite(weight).all(dim=1), "hold NaN or infinity")
    _refuse_rows((weight == 0).all(dim=1), "are all zero")
    return weight


def _cosine(weight):
    weight = weight / weight.abs().amax(
        dim=1, keepdim=True
    )  # keeps the squares away from under- and overflow
    unit = weight / weight.norm(dim=1, keepdim=True)
    return (unit @ unit.T).clamp(max=1.0).fill_diagonal_(1.0)


def _row_min_max(similarity):
    # keepdim matters: without it the extremes of class k scale column k, and the rows keep no common range.
    low = similarity.amin(dim=1, keepdim=True)
    spread = similarity.amax(dim=1, keepdim=True) - low
    _refuse_rows(spread.squeeze(1) < _SMALLEST_SPREAD, "point the same way as those of every other class")
    return (similarity - low) / spread


def _refuse_rows(bad, problem):
    rows = bad.nonzero().flatten().tolist()
    if rows:
        raise InputError(
            f"the classifier weights of class {rows[0]} {problem}, so class similarity is undefined"
        )
