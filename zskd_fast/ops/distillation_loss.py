"""The distillation loss between the logits of a student and of a teacher."""

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
from zskd_fast.reference.distillation_loss import distillation_loss as _reference

_NAME = "distillation_loss"


@torch.library.custom_op("zskd_fast::distillation_loss", mutates_args=())
def _op(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float, reduction: str, with_grad: bool
) -> tuple[Tensor, Tensor]:
    out = unrounded_grad(student_logits) if with_grad else None
    loss, grad = _C.distillation_loss(student_logits, teacher_logits, temperature, reduction, with_grad, out)
    return loss, grad if with_grad else grad.to(loss.dtype)


@_op.register_fake
def _fake(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float, reduction: str, with_grad: bool
) -> tuple[Tensor, Tensor]:
    check_shapes(_NAME, ("student_logits", student_logits), ("teacher_logits", teacher_logits))
    return fake_loss_and_grad(student_logits, reduction, with_grad)


def _backward(ctx: Any, grad_loss: Tensor, _: Tensor | None) -> tuple[Tensor, None, None, None, None]:
    return scale_grad(_NAME, ctx, grad_loss), None, None, None, None


_op.register_autograd(_backward, setup_context=save_grad)


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float, *, reduction: str = "batchmean"
) -> Tensor:
    """tau^2 KL(softmax(teacher / tau) || softmax(student / tau)) (Hinton et al. 2015; paper section 3.4).

    The gradient is tau (p_student - p_teacher). The factor tau^2 keeps its size about the same for all large
    temperatures. Both softmaxes and the gradient are computed in one pass over memory.

    Args:
        student_logits: [..., K], a row for each index of the leading axes; float16, bfloat16, float32 or float64, any
            strides.
        teacher_logits: [..., K] on the same device, float16, bfloat16, float32 or float64; must not require grad.
        temperature: tau, from 1e-18 to 1e18, applied to both logits.
        reduction: "batchmean" (the sum over all rows, divided by the size of the first axis as in
            `torch.nn.KLDivLoss`: for [N, K] the mean over rows; NaN for N = 0), "sum" or "none" (summed over classes).

    Returns:
        The loss, a scalar or [...]; float32 for 16-bit student logits, otherwise in their dtype. Differentiable once,
        with respect to student_logits. Under torch.func and in forward mode it is computed by
        `reference.distillation_loss`, as often differentiable as that.

    Raises:
        ValueError: Wrong shape, temperature or reduction; teacher logits that require grad.
        TypeError: Wrong dtype or device.
    """
    check_constant(_NAME, "teacher_logits", teacher_logits)
    if student_logits.dim() != 2:
        return _loss_by_rows(student_logits, teacher_logits, temperature, reduction)
    if can_bypass_dispatcher(student_logits, teacher_logits):
        return direct_loss(_C.distillation_loss, student_logits, teacher_logits, temperature, reduction)
    if is_transformed():
        named = ("student_logits", student_logits), ("teacher_logits", teacher_logits)
        return plain_loss(_NAME, _reference, *named, temperature, reduction)
    return _op(student_logits, teacher_logits, float(temperature), reduction, needs_grad(student_logits))[0]


def _loss_by_rows(student_logits: Tensor, teacher_logits: Tensor, temperature: float, reduction: str) -> Tensor:
    shape = student_logits.shape
    student, teacher = as_rows(_NAME, ("student_logits", student_logits), ("teacher_logits", teacher_logits))
    if reduction != "batchmean":
        loss = distillation_loss(student, teacher, temperature, reduction=reduction)
        return loss.reshape(shape[:-1]) if reduction == "none" else loss
    if len(shape) == 1:
        raise ValueError(f"{_NAME}: student_logits has shape {list(shape)}, wanted [N, ..., K] for batchmean; use sum")
    return distillation_loss(student, teacher, temperature, reduction="sum") / shape[0]
