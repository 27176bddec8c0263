"""Cross-entropy with soft targets and a temperature: the objective of a data impression."""

from typing import Any

import torch
from torch import Tensor

from zskd_fast._extension import _C
from zskd_fast.ops._dispatch import can_bypass_dispatcher, is_transformed, needs_grad
from zskd_fast.ops._row_loss import (
    as_rows,
    check_constant,
    check_shapes,
    direct_loss,
    fake_loss_and_grad,
    plain_loss,
    save_grad,
    scale_grad,
    unrounded_grad,
)
from zskd_fast.reference.soft_cross_entropy import soft_cross_entropy as _reference

_NAME = "soft_cross_entropy"


@torch.library.custom_op("zskd_fast::soft_cross_entropy", mutates_args=())
def _op(logits: Tensor, target: Tensor, temperature: float, reduction: str, with_grad: bool) -> tuple[Tensor, Tensor]:
    out = unrounded_grad(logits) if with_grad else None
    loss, grad = _C.soft_cross_entropy(logits, target, temperature, reduction, with_grad, out)
    return loss, grad if with_grad else grad.to(loss.dtype)


@_op.register_fake
def _fake(logits: Tensor, target: Tensor, temperature: float, reduction: str, with_grad: bool) -> tuple[Tensor, Tensor]:
    check_shapes(_NAME, ("logits", logits), ("target", target))
    return fake_loss_and_grad(logits, reduction, with_grad)


def _backward(ctx: Any, grad_loss: Tensor, _: Tensor | None) -> tuple[Tensor, None, None, None, None]:
    return scale_grad(_NAME, ctx, grad_loss), None, None, None, None


_op.register_autograd(_backward, setup_context=save_grad)


@torch.library.custom_op("zskd_fast::soft_cross_entropy_out", mutates_args=("grad",))
def _out_op(logits: Tensor, target: Tensor, temperature: float, reduction: str, grad: Tensor) -> Tensor:
    return _C.soft_cross_entropy(logits, target, temperature, reduction, True, grad)[0]


@_out_op.register_fake
def _out_fake(logits: Tensor, target: Tensor, temperature: float, reduction: str, grad: Tensor) -> Tensor:
    check_shapes(_NAME, ("logits", logits), ("target", target))
    return fake_loss_and_grad(logits, reduction, False)[0]


def soft_cross_entropy(logits: Tensor, target: Tensor, temperature: float, *, reduction: str = "mean") -> Tensor:
    """Cross-entropy of soft targets with softmax(logits / temperature) (paper section 3.2, equation 3).

    loss_i = sum_c y_ic (lse_i - z_ic / tau) with lse_i = log sum_c exp(z_ic / tau). The gradient,
    ((sum_c y_ic) p_ic - y_ic) / tau, is computed in the same pass over memory. A class with target 0 contributes
    nothing, even if its logit is -inf. The rows of the target need not sum to 1. A row with a NaN has loss NaN.

    Args:
        logits: [..., K], a row for each index of the leading axes; float16, bfloat16, float32 or float64, any strides.
            16-bit floats are converted to float32.
        target: [..., K] on the same device, float16, bfloat16, float32 or float64; must not require grad.
        temperature: tau, from 1e-18 to 1e18.
        reduction: "mean" over all rows (NaN if there are none), "sum" or "none".

    Returns:
        The loss, a scalar or [...]; float32 for 16-bit logits, otherwise in their dtype. Differentiable once, with
        respect to logits. Under torch.func and in forward mode it is computed by `reference.soft_cross_entropy`, as
        often differentiable as that.

    Raises:
        ValueError: Wrong shape, temperature or reduction; a target that requires grad.
        TypeError: Wrong dtype or device.
    """
    check_constant(_NAME, "target", target)
    if logits.dim() != 2:
        rows, target_rows = as_rows(_NAME, ("logits", logits), ("target", target))
        loss = soft_cross_entropy(rows, target_rows, temperature, reduction=reduction)
        return loss.reshape(logits.shape[:-1]) if reduction == "none" else loss
    if can_bypass_dispatcher(logits, target):
        return direct_loss(_C.soft_cross_entropy, logits, target, temperature, reduction)
    if is_transformed():
        return plain_loss(_NAME, _reference, ("logits", logits), ("target", target), temperature, reduction)
    return _op(logits, target, float(temperature), reduction, needs_grad(logits))[0]


def soft_cross_entropy_value_and_grad(
    logits: Tensor, target: Tensor, temperature: float, *, reduction: str = "sum", out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the loss of `soft_cross_entropy` and its gradient, without autograd.

    Use it in a loop that calls the backward pass of the model itself: `logits.backward(grad)`.

    Args:
        logits, target, temperature, reduction: As for `soft_cross_entropy`.
        out: [..., K] contiguous, in the dtype of logits, or float32 for 16-bit logits, and not in the memory of logits
            or target. The gradient is written to it instead of a new tensor.

    Returns:
        The loss, and the gradient of the reduced loss [..., K] in the dtype of logits or of `out`. With "none" that is
        the gradient of the sum, which itself is not computed.

    Raises:
        ValueError, TypeError: As `soft_cross_entropy`; or `out` does not fit.
    """
    logits, target = logits.detach(), target.detach()
    if logits.dim() != 2:
        return _value_and_grad_by_rows(logits, target, temperature, reduction, out)
    if can_bypass_dispatcher(logits, target, *(() if out is None else (out,))):
        return _C.soft_cross_entropy(logits, target, temperature, reduction, True, out)
    if out is None:
        loss, grad = _op(logits, target, float(temperature), reduction, True)
        return loss, grad.to(logits.dtype)
    return _out_op(logits, target, float(temperature), reduction, out), out


def _value_and_grad_by_rows(
    logits: Tensor, target: Tensor, temperature: float, reduction: str, out: Tensor | None
) -> tuple[Tensor, Tensor]:
    rows, target_rows = as_rows(_NAME, ("logits", logits), ("target", target))
    if out is not None and (out.shape != logits.shape or not out.is_contiguous()):
        raise ValueError(
            f"{_NAME}: out has shape {list(out.shape)} and strides {list(out.stride())}, "
            f"wanted a contiguous tensor of shape {list(logits.shape)} as logits"
        )
    out_rows = None if out is None else out.view(rows.shape)
    loss, grad = soft_cross_entropy_value_and_grad(rows, target_rows, temperature, reduction=reduction, out=out_rows)
    loss = loss.reshape(logits.shape[:-1]) if reduction == "none" else loss
    return loss, grad.view(logits.shape) if out is None else out
