"""Our classes beside those of torch in whose place they go, and the comparison of both."""

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from row_losses import assert_close, logits_of

import zskd_fast

TorchDirichlet, Dirichlet = torch.distributions.Dirichlet, zskd_fast.distributions.Dirichlet
TorchCrossEntropy, SoftCrossEntropy = torch.nn.CrossEntropyLoss, zskd_fast.nn.SoftCrossEntropyLoss
Distillation = zskd_fast.nn.DistillationLoss


class TorchDistillation(torch.nn.KLDivLoss):
    """The loss of published distillation loops: KLDivLoss of tempered softmaxes, "batchmean", times T^2."""

    def __init__(self, temperature=4.0, reduction="batchmean", dim=1):
        super().__init__(reduction=reduction)
        self.temperature, self.dim = temperature, dim

    def forward(self, student_logits, teacher_logits):
        log_student = F.log_softmax(student_logits / self.temperature, dim=self.dim)
        teacher = F.softmax(teacher_logits / self.temperature, dim=self.dim)
        return super().forward(log_student, teacher) * self.temperature**2


def pair(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Iterator[torch.Tensor]:
    """Two tensors of logits with this shape, the classes last."""
    rows = math.prod(shape[:-1])
    return (logits_of(rows, shape[-1], dtype, seed=seed).reshape(shape) for seed in (0, 1))


def value_and_grad(
    loss_fn: Callable[..., torch.Tensor], logits: torch.Tensor, other: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss and the gradient of its weighted sum."""
    leaf = logits.clone().requires_grad_()
    loss = loss_fn(leaf, other)
    weight = torch.linspace(-1, 2, loss.numel(), dtype=loss.dtype).reshape(loss.shape)
    (grad,) = torch.autograd.grad((loss * weight).sum() if loss.dim() else loss, leaf)
    return loss.detach(), grad


def assert_same(ours: tuple[torch.Tensor, ...], torchs: tuple[torch.Tensor, ...], tolerance: float = 1e-12) -> None:
    """Assert that our loss and gradient have the shapes, the values and the NaNs of torch's."""
    for got, want, what in zip(ours, torchs, ("loss", "gradient"), strict=True):
        assert got.shape == want.shape and torch.equal(got.isnan(), want.isnan()), what
        if got.numel():
            assert_close(got.nan_to_num(), want.nan_to_num(), tolerance, what)
