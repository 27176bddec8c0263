"""Loss and gradient of the soft cross-entropy, forward and backward together."""

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import Bench
from benchmarks.ops import row_losses
from benchmarks.ops.row_losses import QUICK_SHAPES, SHAPES, Call, Loss  # noqa: F401 (read by conftest)
from zskd_fast import ops, reference

TEMPERATURE = 20.0


def _cross_entropy(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    return F.cross_entropy(logits / temperature, target)


def _log_softmax(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    return -(target * torch.log_softmax(logits / temperature, dim=1)).sum(dim=1).mean()


def _into_buffer(logits: Tensor, target: Tensor) -> Call:
    buffer = torch.empty_like(target)
    return lambda: ops.soft_cross_entropy_value_and_grad(logits, target, TEMPERATURE, reduction="mean", out=buffer)


LOSSES: dict[str, Loss] = {
    "zskd_fast": ops.soft_cross_entropy,
    "F.cross_entropy": _cross_entropy,
    "log_softmax, mul, sum": _log_softmax,
}
PROVIDERS = ["zskd_fast", "zskd_fast, out=", "F.cross_entropy", "log_softmax, mul, sum", "torch.compile"]


def test_soft_cross_entropy(shape: tuple[int, int], threads: int, provider: str, bench: Bench) -> None:
    logits, _ = row_losses.inputs(shape, bench.device)
    target = row_losses.probabilities(shape, bench.device)
    if provider == "zskd_fast, out=":
        call = _into_buffer(logits, target)
    else:
        loss = LOSSES.get(provider) or row_losses.compiled(_cross_entropy, shape, threads)
        call = row_losses.forward_backward(loss, logits, target, TEMPERATURE)
    bench(
        call,
        check=lambda got: row_losses.check(got, reference.soft_cross_entropy, logits, target, TEMPERATURE),
        op="soft_cross_entropy",
        setting="tau=20, forward and backward",
        provider=provider,
        shape="{}x{}".format(*shape),
        items=shape[0],
        # Logits and target are read, the gradient is written.
        least_bytes=3 * logits.numel() * logits.element_size(),
        count_traffic=provider != "torch.compile",
    )
