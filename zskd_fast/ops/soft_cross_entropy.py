"""Cross-entropy of tempered logits with soft targets: the objective of a data impression."""

import torch
from torch import Tensor

from zskd_fast._extension import _C
from zskd_fast.ops._plain import is_plain, needs_grad
from zskd_fast.ops._row_loss import (
    check_constant,
    fake_loss_and_grad,
    plain_loss,
    save_grad,
    scale_grad,
)


@torch.library.custom_op("zskd_fast::soft_cross_entropy", mutates_args=())
def _op(
    logits: Tensor, target: Tensor, temperature: float, reduction: str, with_grad: bool
) -> tuple[Tensor, Tensor]:
    return _C.soft_cross_entropy(logits, target, temperature, reduction, with_grad, None)


@_op.register_fake
def _fake(logits, target, temperature, reduction, with_grad):
    return fake_loss_and_grad(logits, reduction, with_grad)


def _backward(ctx, grad_loss, _):
    return scale_grad("soft_cross_entropy", ctx, grad_loss), None, None, None, None


_op.register_autograd(_backward, setup_context=save_grad)


@torch.library.custom_op("zskd_fast::soft_cross_entropy_out", mutates_args=("grad",))
def _out_op(logits: Tensor, target: Tensor, temperature: float, reduction: str, grad: Tensor) -> Tensor:
    return _C.soft_cross_entropy(logits, target, temperature, reduction, True, grad)[0]


@_out_op.register_fake
def _out_fake(logits, target, temperature, reduction, grad):
    return fake_loss_and_grad(logits, reduction, False)[0]


def soft_cross_entropy(
    logits: Tensor, target: Tensor, temperature: float, *, reduction: str = "mean"
) -> Tensor:
    """Cross-entropy of soft targets with softmax(logits / temperature) (paper section 3.2, equation 3).

    loss_i = sum_c y_ic (lse_i - z_ic / tau) with lse_i = log sum_c exp(z_ic / tau); the gradient
    ((sum_c y_ic) p_ic - y_ic) / tau is computed in the same pass over memory. A target of zero contributes nothing,
    even where its logit is -inf; rows of the target need not sum to one; NaN stays NaN.

    Args:
        logits: [N, K] float16, bfloat16, float32 or float64, any strides; 16-bit floats are computed on as float32.
        target: [N, K] on the same device, any floating dtype; a constant.
        temperature: tau > 0.
        reduction: "mean" over the N rows (NaN for N = 0), "sum", or "none".

    Returns:
        The loss, a scalar or [N]; float32 for 16-bit logits, else in their dtype. Differentiable in logits, once.

    Raises:
        ValueError: shape, temperature or reduction; a target that requires grad.
        TypeError: dtype or device.
    """
    check_constant("soft_cross_entropy", "target", target)
    if is_plain(logits, target):
        return plain_loss(_C.soft_cross_entropy, logits, target, temperature, reduction)
    return _op(logits, target, float(temperature), reduction, needs_grad(logits))[0]


def soft_cross_entropy_value_and_grad(
    logits: Tensor, target: Tensor, temperature: float, *, reduction: str = "sum", out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The loss of `soft_cross_entropy` and its gradient, outside autograd.

    For a loop that calls the model's backward itself: `logits.backward(grad)`. With `out`, [N, K] contiguous in the
    dtype of logits, the gradient is written there and no memory is allocated for it.

    Returns:
        (loss, gradient of the reduced loss [N, K] in the dtype of logits, which is `out` where given).
    """
    logits, target = logits.detach(), target.detach()
    if is_plain(logits, target, *(() if out is None else (out,))):
        return _C.soft_cross_entropy(logits, target, temperature, reduction, True, out)
    if out is None:
        return _op(logits, target, float(temperature), reduction, True)
    return _out_op(logits, target, float(temperature), reduction, out), out
