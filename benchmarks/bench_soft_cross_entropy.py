"""Loss and gradient of the soft cross-entropy, forward and backward together."""

import torch
import torch.nn.functional as F

from benchmarks import row_losses
from benchmarks.measure import Bench
from benchmarks.row_losses import QUICK_SHAPES, SHAPES, compiled, forward_backward  # noqa: F401 (read by conftest)
from zskd_fast import ops, reference

TEMPERATURE = 20.0


def _cross_entropy(logits, target, temperature):
    return F.cross_entropy(logits / temperature, target)


def _log_softmax(logits, target, temperature):
    return -(target * torch.log_softmax(logits / temperature, dim=1)).sum(dim=1).mean()


def _reused_buffer(logits, target):
    buffer = torch.empty_like(target)

    def call():
        return ops.soft_cross_entropy_value_and_grad(
            logits, target, TEMPERATURE, reduction="mean", out=buffer
        )

    return call


def _call(provider, logits, target, threads):
    if provider == "zskd_fast, out=":
        return _reused_buffer(logits, target)
    loss = {
        "zskd_fast": ops.soft_cross_entropy,
        "F.cross_entropy": _cross_entropy,
        "log_softmax, mul, sum": _log_softmax,
    }.get(provider) or compiled(_cross_entropy, tuple(logits.shape), threads)
    return forward_backward(loss, logits, target, TEMPERATURE)


PROVIDERS = ["zskd_fast", "zskd_fast, out=", "F.cross_entropy", "log_softmax, mul, sum", "torch.compile"]


def test_soft_cross_entropy(shape, threads, provider, bench: Bench):
    logits, _ = row_losses.inputs(shape, bench.device)
    target = row_losses.probabilities(shape, bench.device)
    call = _call(provider, logits, target, threads)
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
