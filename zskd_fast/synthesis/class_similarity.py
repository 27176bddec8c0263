"""Class similarity from the weights of the classifier layer, and the Dirichlet concentrations that follow from it."""

import torch
from torch import nn

from zskd_fast.errors import InputError
from zskd_fast.models.classifier_layer import classifier_weight, find_classifier_layer
from zskd_fast.synthesis.plan import Plan
from zskd_fast.synthesis.scaling import scaled_similarity

# Below this spread the similarities of a row differ by no more than the rounding of float32 weights.
_SMALLEST_SPREAD = 1e-6
# Rows computed at once, in float64: 40 MB with 20,000 classes.
_BLOCK = 256


class ClassSimilarity:
    """How similar the classes are to the teacher: rows of a [K, K] float32 matrix, computed when they are asked for.

    Row i holds the cosines of w_i with the weights w_j of every class in the classifier layer, min-max normalized over
    that row (section 3.2 of the paper); its own entry is 1. Only the weights are kept, since the matrix of 20,000
    classes takes 1.6 GB. ``weight`` is [K, D] with one class per row.

    Raises InputError that names the class if its weights hold NaN, are all zero or are equally similar to those of
    every class (the constructor looks at the first classes, the others are looked at with their rows); or if K < 2.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        self._unit = _unit(_checked_weight(weight))
        self._block(0)

    @classmethod
    def of(
        cls, teacher_or_weight: nn.Module | torch.Tensor, *, layer: str | None = None, num_classes: int | None = None
    ) -> "ClassSimilarity":
        """Return the class similarity of a teacher, or of weights; the arguments are those of ``class_similarity``."""
        if isinstance(teacher_or_weight, torch.Tensor):
            return cls(teacher_or_weight)
        return cls(classifier_weight(find_classifier_layer(teacher_or_weight, num_classes, layer)[1]))

    def __len__(self) -> int:
        """Return K."""
        return len(self._unit)

    def __getitem__(self, classes: torch.Tensor) -> torch.Tensor:
        """Return the rows of these classes: [n] int64 -> [n, K] float32, on the device of the weights."""
        classes = classes.to(self._unit.device)
        rows = torch.empty((len(classes), len(self)), dtype=torch.float32, device=classes.device)
        for block in (classes // _BLOCK).unique().tolist():
            wanted = classes // _BLOCK == block
            rows[wanted] = self._block(block)[classes[wanted] - block * _BLOCK]
        return rows

    def matrix(self, limit: int | None = None) -> torch.Tensor:
        """Return the whole matrix [K, K], or its first ``limit`` rows and columns."""
        size = min(limit or len(self), len(self))
        matrix = torch.empty((size, size), dtype=torch.float32, device=self._unit.device)
        for block, rows in enumerate(matrix.split(_BLOCK)):
            rows.copy_(self._block(block)[: len(rows), :size])
        return matrix

    def _block(self, block: int) -> torch.Tensor:
        """Return some neighboring rows. Their number is fixed, so that no row depends on what else is asked for."""
        first = block * _BLOCK
        cosine = (self._unit[first : first + _BLOCK] @ self._unit.T).clamp_(max=1.0)
        cosine.diagonal(first).fill_(1.0)
        return _row_min_max(cosine, first).to(torch.float32)


def class_similarity(
    teacher_or_weight: nn.Module | torch.Tensor, *, layer: str | None = None, num_classes: int | None = None
) -> torch.Tensor:
    """Return how similar the classes are to the teacher: [K, K] float32, each row from 0 to 1, the diagonal 1.

    See ``ClassSimilarity``. Takes a teacher, with ``layer`` and ``num_classes`` as in ``find_classifier_layer``, or the
    weights themselves, [K, D] with one class per row. Raises InputError as ``ClassSimilarity`` does.
    """
    return ClassSimilarity.of(teacher_or_weight, layer=layer, num_classes=num_classes).matrix()


def concentration(
    similarity: torch.Tensor | ClassSimilarity, ids: torch.Tensor, plan: Plan, floor: float
) -> torch.Tensor:
    """Return the Dirichlet concentration of each impression, beta * (c_k + floor): [N, K] float32.

    ``similarity`` is [K, K] and ``ids`` [N] int64 on the same device; class k and beta come from the plan (section 3.3
    of the paper). With more than 10 classes c_k is scaled, see ``scaling``.
    """
    classes = plan.class_of(ids)
    beta = plan.beta_of(ids).unsqueeze(1)
    return beta * (scaled_similarity(similarity[classes], classes) + floor)


def _checked_weight(weight: torch.Tensor) -> torch.Tensor:
    if weight.ndim != 2 or weight.shape[0] < 2 or weight.shape[1] < 1:
        raise InputError(f"the classifier weights must be [K, D], one class per row, K >= 2, got {list(weight.shape)}")
    # In float64, so that the float32 result hardly depends on the order in which a machine sums the products.
    weight = weight.detach().to(torch.float64)
    _refuse_rows(~torch.isfinite(weight).all(dim=1), "hold NaN or infinity")
    _refuse_rows((weight == 0).all(dim=1), "are all zero")
    return weight


def _unit(weight: torch.Tensor) -> torch.Tensor:
    # The first division keeps the squares away from underflow and overflow.
    weight = weight / weight.abs().amax(dim=1, keepdim=True)
    return weight / weight.norm(dim=1, keepdim=True)


def _row_min_max(similarity: torch.Tensor, first: int) -> torch.Tensor:
    # keepdim matters: without it the extremes of class k would scale column k, as in some public implementations.
    low = similarity.amin(dim=1, keepdim=True)
    spread = similarity.amax(dim=1, keepdim=True) - low
    _refuse_rows(spread.squeeze(1) < _SMALLEST_SPREAD, "point the same way as those of every other class", first)
    return (similarity - low) / spread


def _refuse_rows(bad: torch.Tensor, problem: str, first: int = 0) -> None:
    rows = bad.nonzero().flatten().tolist()
    if rows:
        raise InputError(
            f"the classifier weights of class {first + rows[0]} {problem}, so class similarity is undefined"
        )
