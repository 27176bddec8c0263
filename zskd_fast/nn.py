"""The losses as torch modules."""

from torch import Tensor, nn

from zskd_fast import ops


class SoftCrossEntropyLoss(nn.Module):
    """`ops.soft_cross_entropy` with a fixed temperature, called with logits [N, K] and target [N, K]."""

    def __init__(self, temperature: float = 1.0, reduction: str = "mean") -> None:
        super().__init__()
        self.temperature = temperature
        self.reduction = reduction

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return ops.soft_cross_entropy(logits, target, self.temperature, reduction=self.reduction)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, reduction={self.reduction!r}"


class DistillationLoss(nn.Module):
    """`ops.distillation_loss` with a fixed temperature, called with student_logits and teacher_logits, both [N, K]."""

    def __init__(self, temperature: float = 4.0, reduction: str = "batchmean") -> None:
        super().__init__()
        self.temperature = temperature
        self.reduction = reduction

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        return ops.distillation_loss(student_logits, teacher_logits, self.temperature, reduction=self.reduction)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, reduction={self.reduction!r}"
