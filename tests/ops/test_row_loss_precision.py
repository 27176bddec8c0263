"""The 16-bit gradient of a row loss under a loss scale, compared with float64 and with torch's own gradient."""

import pytest
import torch
from row_losses import logits_of, targets_of

from zskd_fast import ops, reference

CASES = [
    *(("soft_cross_entropy", reduction) for reduction in ("mean", "sum", "none")),
    *(("distillation_loss", reduction) for reduction in ("batchmean", "sum", "none")),
]
LOSS_SCALE = 65536.0  # with which torch.amp.GradScaler begins


def scaled_grad(loss_fn, logits, other, temperature, reduction, upstream):
    """Return the gradient of the logits, [N, K], for this upstream gradient of the loss."""
    leaf = logits.detach().clone().requires_grad_()
    loss = loss_fn(leaf, other, temperature, reduction=reduction)
    return torch.autograd.grad(loss, leaf, torch.full_like(loss, upstream))[0]


def in_float32(loss_fn):
    """Return the loss as autocast computes it: in float32, so that torch rounds the gradient to 16 bits once."""
    return lambda logits, *rest, **how: loss_fn(logits.float(), *rest, **how)


def through_the_dispatcher(loss_fn):
    """Return the loss as torch.compile, AMP and profilers see it: by the custom op."""
    op = getattr(torch.ops.zskd_fast, loss_fn.__name__)
    return lambda logits, other, temperature, reduction: op(logits, other, temperature, reduction, True)[0]


def median_error(got: torch.Tensor, truth: torch.Tensor) -> float:
    """Return the median error relative to each wanted value: small gradients count as much as large ones."""
    return ((got.double() - truth).abs() / truth.abs()).median().item()


@pytest.mark.parametrize("rows, classes", [(512, 1000), (700, 10)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("how", [lambda loss_fn: loss_fn, through_the_dispatcher], ids=["direct", "dispatcher"])
@pytest.mark.parametrize("op, reduction", CASES)
def test_16_bit_gradient_under_a_loss_scale_is_rounded_once(op, reduction, how, dtype, rows, classes):
    logits, other = logits_of(rows, classes, dtype, scale=1.0), targets_of(rows, classes)
    # Without the mean, only a smaller scale keeps the largest gradients below 65504.
    # 384 is no power of two, so a gradient rounded before and after it shows two errors.
    upstream = LOSS_SCALE if "mean" in reduction else 384.0
    plain = getattr(reference, op)
    truth = scaled_grad(plain, logits.double(), other.double(), 20.0, reduction, upstream)
    assert truth.abs().max() < 65504
    got = scaled_grad(how(getattr(ops, op)), logits, other, 20.0, reduction, upstream)
    torchs = scaled_grad(in_float32(plain), logits, other, 20.0, reduction, upstream)
    assert got.dtype == dtype
    assert median_error(got, truth) <= 1.05 * median_error(torchs, truth) <= torch.finfo(dtype).eps
    # As torch's, but for the last bits of float32, which move a few values. A second rounding moves more than a tenth.
    assert (got != torchs).double().mean() < 0.05


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", ["soft_cross_entropy", "distillation_loss"])
def test_gradient_that_underflows_without_its_loss_scale(op, dtype):
    """A sum under a scale of 65536: the unscaled gradient of most classes is below the smallest 16-bit number."""
    logits, other = logits_of(64, 1000, dtype, scale=3.0), targets_of(64, 1000)
    other = other.log() if op == "distillation_loss" else other
    plain = getattr(reference, op)
    truth = scaled_grad(plain, logits.double(), other.double(), 1.0, "sum", LOSS_SCALE)
    got = scaled_grad(getattr(ops, op), logits, other, 1.0, "sum", LOSS_SCALE)
    torchs = scaled_grad(in_float32(plain), logits, other, 1.0, "sum", LOSS_SCALE)
    assert median_error(got, truth) <= 1.05 * median_error(torchs, truth) <= torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_value_and_grad_has_the_bits_of_backward(dtype):
    logits, target = logits_of(37, 100, dtype), targets_of(37, 100)
    for reduction in ("mean", "sum"):
        want = scaled_grad(ops.soft_cross_entropy, logits, target, 4.0, reduction, 1.0)
        _, grad = ops.soft_cross_entropy_value_and_grad(logits, target, 4.0, reduction=reduction)
        assert grad.dtype == dtype and torch.equal(grad, want)
        out = torch.empty(37, 100)
        ops.soft_cross_entropy_value_and_grad(logits, target, 4.0, reduction=reduction, out=out)
        assert torch.equal(out.to(dtype), want)
