"""Loss and gradient of the distillation loss, forward and backward together."""

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import Bench
from benchmarks.ops import row_losses
from benchmarks.ops.row_losses import QUICK_SHAPES, SHAPES, Loss  # noqa: F401 (read by conftest)
from zskd_fast import ops, reference

TEMPERATURE = 4.0


def _kl_div(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The usual lines of distillation code."""
    log_student = torch.log_softmax(student / temperature, dim=1)
    divergence = F.kl_div(log_student, torch.softmax(teacher / temperature, dim=1), reduction="batchmean")
    return temperature**2 * divergence


def _kl_div_log_target(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    log_student = torch.log_softmax(student / temperature, dim=1)
    log_teacher = torch.log_softmax(teacher / temperature, dim=1)
    divergence = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return temperature**2 * divergence


LOSSES: dict[str, Loss] = {
    "zskd_fast": ops.distillation_loss,
    "F.kl_div": _kl_div,
    "F.kl_div, log_target": _kl_div_log_target,
}
PROVIDERS = [*LOSSES, "torch.compile"]


def test_distillation_loss(shape: tuple[int, int], threads: int, provider: str, bench: Bench) -> None:
    student, teacher = row_losses.inputs(shape, bench.device)
    loss = LOSSES.get(provider) or row_losses.compiled(_kl_div, shape, threads)
    bench(
        row_losses.forward_backward(loss, student, teacher, TEMPERATURE),
        check=lambda got: row_losses.check(got, reference.distillation_loss, student, teacher, TEMPERATURE),
        op="distillation_loss",
        setting="tau=4, forward and backward",
        provider=provider,
        shape="{}x{}".format(*shape),
        items=shape[0],
        # Both logits are read, the gradient is written.
        least_bytes=3 * student.numel() * student.element_size(),
        count_traffic=provider != "torch.compile",
    )
