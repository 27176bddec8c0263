"""The losses as torch modules."""

import torch
from torch import Tensor, nn

from zskd_fast import ops
from zskd_fast.ops._dispatch import is_eager


class _RowLoss(nn.Module):
    """A loss of rows of logits along the axis `dim`, with a fixed temperature and reduction."""

    def __init__(self, temperature: float, reduction: str, dim: int) -> None:
        super().__init__()
        self.temperature = temperature
        self.reduction = reduction
        self.dim = dim

    def _rows(self, tensor: Tensor) -> Tensor:
        return tensor if self.dim == -1 else tensor.movedim(self.dim, -1)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, reduction={self.reduction!r}, dim={self.dim}"


class SoftCrossEntropyLoss(_RowLoss):
    """`ops.soft_cross_entropy` with a fixed temperature, called with logits and target.

    Logits have the classes along `dim`: by default [..., K], with dim=1 also [N, K, H, W]. The target has their shape,
    or their shape without the classes and an integer dtype: then it holds class indices, and as in
    `torch.nn.CrossEntropyLoss` an index equal to ignore_index adds neither to the loss nor to the rows of a mean.
    """

    def __init__(
        self, temperature: float = 1.0, reduction: str = "mean", dim: int = -1, ignore_index: int = -100
    ) -> None:
        super().__init__(temperature, reduction, dim)
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        rows = self._rows(logits)
        if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
            return ops.soft_cross_entropy(rows, self._rows(target), self.temperature, reduction=self.reduction)
        one_hot, kept = self._one_hot(rows, target)
        if self.reduction != "mean":
            return ops.soft_cross_entropy(rows, one_hot, self.temperature, reduction=self.reduction)
        return ops.soft_cross_entropy(rows, one_hot, self.temperature, reduction="sum") / kept.sum()

    def _one_hot(self, rows: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return class indices [...] as probabilities [..., K], zero where ignored, and which are not ignored."""
        if target.shape != rows.shape[:-1]:
            raise ValueError(
                f"SoftCrossEntropyLoss: target of class indices has shape {list(target.shape)}, wanted "
                f"{list(rows.shape[:-1])}; probabilities need a floating-point dtype and the shape of the logits"
            )
        index = target.long().unsqueeze(-1)
        kept = index != self.ignore_index
        index = index.where(kept, 0)
        _check_indices(index, rows.shape[-1])
        return rows.new_zeros(()).expand(rows.shape).scatter(-1, index, kept.to(rows.dtype)), kept


def _check_indices(index: Tensor, classes: int) -> None:
    """Raise IndexError for a class that does not exist, where its value can be read without waiting for a device."""
    if index.is_cpu and is_eager(index) and index.numel() > 0:
        lowest, highest = (int(bound) for bound in index.aminmax())
        if lowest < 0 or highest >= classes:
            wrong = lowest if lowest < 0 else highest
            raise IndexError(
                f"SoftCrossEntropyLoss: target holds class index {wrong}, wanted 0 to {classes - 1} or ignore_index"
            )


class DistillationLoss(_RowLoss):
    """`ops.distillation_loss` with a fixed temperature, called with student_logits and teacher_logits.

    Both have the classes along `dim`: by default [..., K], with dim=1 also [N, K, H, W].
    """

    def __init__(self, temperature: float = 4.0, reduction: str = "batchmean", dim: int = -1) -> None:
        super().__init__(temperature, reduction, dim)

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        student, teacher = self._rows(student_logits), self._rows(teacher_logits)
        return ops.distillation_loss(student, teacher, self.temperature, reduction=self.reduction)
