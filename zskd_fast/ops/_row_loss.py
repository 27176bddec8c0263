"""What the two row losses share: both compute loss and gradient in one pass and keep the gradient for backward."""

from collections.abc import Callable

import torch
from torch import Tensor

from zskd_fast.ops._plain import needs_grad


def plain_loss(kernel: Callable, logits: Tensor, other: Tensor, temperature: float, reduction: str) -> Tensor:
    """The loss of a call that `is_plain`: the extension's function, with its gradient rule where one is needed."""
    if needs_grad(logits):
        return _PlainLoss.apply(logits, other, temperature, reduction, kernel)
    return kernel(logits, other, temperature, reduction, False, None)[0]


class _PlainLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, other, temperature, reduction, kernel):
        loss, grad = kernel(logits, other, temperature, reduction, True, None)
        ctx.save_for_backward(grad)
        ctx.op = kernel.__name__
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        return scale_grad(ctx.op, ctx, grad_loss), None, None, None, None


def check_constant(op: str, argument: str, tensor: Tensor) -> None:
    """Their gradient is not computed; a silent None would train another objective."""
    if tensor.requires_grad:
        raise ValueError(f"{op}: {argument} requires grad, wanted a constant; pass {argument}.detach()")


def fake_loss_and_grad(logits: Tensor, reduction: str, with_grad: bool) -> tuple[Tensor, Tensor]:
    dtype = torch.float32 if logits.dtype in (torch.float16, torch.bfloat16) else logits.dtype
    loss = logits.new_empty(logits.shape[:1] if reduction == "none" else (), dtype=dtype)
    grad = torch.empty(logits.shape if with_grad else (0,), dtype=logits.dtype, device=logits.device)
    return loss, grad


def save_grad(ctx, inputs, output) -> None:
    ctx.set_materialize_grads(False)  # nobody differentiates the second output: no zeros [N, K] for it
    ctx.save_for_backward(output[1])


def _may_hand_over(grad_loss: Tensor) -> bool:
    """Whether the saved gradient is the answer as it is, and nobody can ask for it again.

    That saves a pass over [N, K] in the common `loss.backward()`. Reading the upstream gradient would make a GPU wait,
    and a traced graph cannot branch on it, so this is for eager CPU code alone.
    """
    if (
        torch.compiler.is_compiling()
        or type(grad_loss) is not Tensor
        or not grad_loss.is_cpu
        or grad_loss.dim() > 0
    ):
        return False
    return not torch._C._autograd._get_current_graph_task_keep_graph() and grad_loss.item() == 1.0


def scale_grad(op: str, ctx, grad_loss: Tensor) -> Tensor:
    """The gradient of the logits, for an upstream gradient of the loss: a scalar, or one number a row."""
    (grad,) = ctx.saved_tensors
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"{op}: double backward is not provided; use zskd_fast.reference.{op} where it is needed"
        )
    if _may_hand_over(grad_loss):
        return grad
    weight = grad_loss if grad_loss.dim() == 0 else grad_loss.unsqueeze(1)
    return (grad * weight).to(grad.dtype)
