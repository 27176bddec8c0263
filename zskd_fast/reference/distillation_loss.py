"""The distillation loss, computed from its definition."""

import torch
from torch import Tensor

from zskd_fast.reference.soft_cross_entropy import reduce


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float, *, reduction: str = "batchmean"
) -> Tensor:
    """Compute `ops.distillation_loss` in the dtype of the logits."""
    log_student = torch.log_softmax(student_logits / temperature, dim=-1)
    log_teacher = torch.log_softmax(teacher_logits / temperature, dim=-1)
    impossible = log_teacher == -torch.inf
    difference = log_teacher.masked_fill(impossible, 0.0) - log_student.masked_fill(impossible, 0.0)
    divergence = (log_teacher.exp() * difference).sum(dim=-1)
    return reduce(temperature**2 * divergence, reduction, "batchmean")
