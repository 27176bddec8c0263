"""The distillation loss between the logits of a student and of a teacher."""

from typing import Any

import torch
from torch import Tensor

from zskd_fast._extension import _C
from zskd_fast.ops._dispatch import can_bypass_dispatcher, needs_grad
from zskd_fast.ops._row_loss import (
    check_constant,
    direct_loss,
    fake_loss_and_grad,
    save_grad,
    scale_grad,
)


@torch.library.custom_op("zskd_fast::distillation_loss", mutates_args=())
def _op(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float, reduction: str, with_grad: bool
) -> tuple[Tensor, Tensor]:
    return _C.distillation_loss(student_logits, teacher_logits, temperature, reduction, with_grad, None)


@_op.register_fake
def _fake(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float, reduction: str, with_grad: bool
) -> tuple[Tensor, Tensor]:
    return fake_loss_and_grad(student_logits, reduction, with_grad)


def _backward(ctx: Any, grad_loss: Tensor, _: Tensor | None) -> tuple[Tensor, None, None, None, None]:
    return scale_grad("distillation_loss", ctx, grad_loss), None, None, None, None


_op.register_autograd(_backward, setup_context=save_grad)


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float, *, reduction: str = "batchmean"
) -> Tensor:
    """tau^2 KL(softmax(teacher / tau) || softmax(student / tau)) (Hinton et al. 2015; paper section 3.4).

    The gradient is tau (p_student - p_teacher). The factor tau^2 keeps its size about the same for all large
    temperatures. Both softmaxes and the gradient are computed in one pass over memory.

    Args:
        student_logits: [N, K] float16, bfloat16, float32 or float64, any strides.
        teacher_logits: [N, K] on the same device, float16, bfloat16, float32 or float64; must not require grad.
        temperature: tau > 0, applied to both logits.
        reduction: "batchmean" (sum over classes, mean over rows; NaN for N = 0), "sum" or "none".

    Returns:
        The loss, a scalar or [N]; float32 for 16-bit student logits, otherwise in their dtype. Differentiable once,
        with respect to student_logits.

    Raises:
        ValueError: Wrong shape, temperature or reduction; teacher logits that require grad.
        TypeError: Wrong dtype or device.
    """
    check_constant("distillation_loss", "teacher_logits", teacher_logits)
    if can_bypass_dispatcher(student_logits, teacher_logits):
        return direct_loss(_C.distillation_loss, student_logits, teacher_logits, temperature, reduction)
    return _op(student_logits, teacher_logits, float(temperature), reduction, needs_grad(student_logits))[0]
