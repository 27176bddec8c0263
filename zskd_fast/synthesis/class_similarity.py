"""Class similarity from the weights of the classifier layer, and the Dirichlet concentrations that follow from it."""

import torch
from torch import nn

from zskd_fast.errors import InputError
from zskd_fast.models.classifier_layer import classifier_weight, find_classifier_layer
from zskd_fast.synthesis.plan import Plan

# Below this spread the similarities of a row differ by no more than the rounding of float32 weights.
_SMALLEST_SPREAD = 1e-6


def class_similarity(
    teacher_or_weight: nn.Module | torch.Tensor, *, layer: str | None = None, num_classes: int | None = None
) -> torch.Tensor:
    """Return how similar the classes are to the teacher: [K, K] float32, each row from 0 to 1, the diagonal 1.

    Row i holds the cosines of w_i with the weights w_j of every class in the classifier layer, min-max normalized over
    that row (section 3.2 of the paper). Takes a teacher, with ``layer`` and ``num_classes`` as in
    ``find_classifier_layer``, or the weights themselves, [K, D] with one class per row.

    Raises InputError that names the class if its weights hold NaN, are all zero or are equally similar to those of
    every class; or if K < 2.
    """
    if isinstance(teacher_or_weight, torch.Tensor):
        weight = teacher_or_weight
    else:
        weight = classifier_weight(find_classifier_layer(teacher_or_weight, num_classes, layer)[1])
    return _row_min_max(_cosine(_checked_weight(weight))).to(torch.float32)


def concentration(similarity: torch.Tensor, ids: torch.Tensor, plan: Plan, floor: float) -> torch.Tensor:
    """Return the Dirichlet concentration of each impression, beta * (c_k + floor): [N, K] float32.

    ``similarity`` is [K, K] and ``ids`` [N] int64 on the same device; class k and beta come from the plan (section 3.3
    of the paper).
    """
    beta = plan.beta_of(ids).unsqueeze(1)
    return beta * (similarity[plan.class_of(ids)] + floor)


def _checked_weight(weight: torch.Tensor) -> torch.Tensor:
    if weight.ndim != 2 or weight.shape[0] < 2 or weight.shape[1] < 1:
        raise InputError(f"the classifier weights must be [K, D], one class per row, K >= 2, got {list(weight.shape)}")
    # In float64, so that the float32 result hardly depends on the order in which a machine sums the products.
    weight = weight.detach().to(torch.float64)
    _refuse_rows(~torch.isfinite(weight).all(dim=1), "hold NaN or infinity")
    _refuse_rows((weight == 0).all(dim=1), "are all zero")
    return weight


def _cosine(weight: torch.Tensor) -> torch.Tensor:
    # The first division keeps the squares away from underflow and overflow.
    weight = weight / weight.abs().amax(dim=1, keepdim=True)
    unit = weight / weight.norm(dim=1, keepdim=True)
    return (unit @ unit.T).clamp(max=1.0).fill_diagonal_(1.0)


def _row_min_max(similarity: torch.Tensor) -> torch.Tensor:
    # keepdim matters: without it the extremes of class k would scale column k, as in some public implementations.
    low = similarity.amin(dim=1, keepdim=True)
    spread = similarity.amax(dim=1, keepdim=True) - low
    _refuse_rows(spread.squeeze(1) < _SMALLEST_SPREAD, "point the same way as those of every other class")
    return (similarity - low) / spread


def _refuse_rows(bad: torch.Tensor, problem: str) -> None:
    rows = bad.nonzero().flatten().tolist()
    if rows:
        raise InputError(f"the classifier weights of class {rows[0]} {problem}, so class similarity is undefined")
