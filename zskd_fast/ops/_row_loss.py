"""Common parts of the two row losses. Both compute the loss and its gradient in one pass and save the gradient.

For 16-bit logits the saved gradient is in float32, and is rounded to 16 bits once, after the multiplication by the
upstream gradient. Gradients of the mean, or of classes with a small probability, are often below the smallest float16
(6e-8): a loss scale, as of GradScaler, cannot bring back what was rounded away before it. A saved gradient in 16 bits
without the factor 1/N would still lose the small probabilities. The price is 2 more bytes written and read per element.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from zskd_fast._extension import _C
from zskd_fast.ops._dispatch import is_eager, needs_grad

Kernel = Callable[..., tuple[Tensor, Tensor]]
Loss = Callable[..., Tensor]
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def direct_loss(kernel: Kernel, logits: Tensor, other: Tensor, temperature: float, reduction: str) -> Tensor:
    """Call the extension's function directly, with its gradient rule if the logits require grad."""
    if needs_grad(logits):
        return _DirectLoss.apply(logits, other, temperature, reduction, kernel)
    return kernel(logits, other, temperature, reduction, False, None)[0]


class _DirectLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, other: Tensor, temperature: float, reduction: str, kernel: Kernel) -> Tensor:
        loss, grad = kernel(logits, other, temperature, reduction, True, unrounded_grad(logits))
        ctx.save_for_backward(grad)
        ctx.dtype = logits.dtype
        ctx.op = kernel.__name__
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None, None, None, None]:
        return scale_grad(ctx.op, ctx, grad_loss), None, None, None, None


def unrounded_grad(logits: Tensor) -> Tensor | None:
    """Return a float32 buffer for the gradient of 16-bit logits; None for others: the kernel allocates theirs."""
    if logits.dtype not in (torch.float16, torch.bfloat16):
        return None
    return torch.empty(logits.shape, dtype=torch.float32, device=logits.device)


def check_constant(op: str, argument: str, tensor: Tensor) -> None:
    """Raise ValueError if the tensor requires grad: its gradient is not computed."""
    if tensor.requires_grad:
        raise ValueError(f"{op}: {argument} requires grad, wanted a constant; pass {argument}.detach()")


def as_rows(op: str, logits: tuple[str, Tensor], other: tuple[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return two named tensors [..., K] as matrices [N, K]. Raise ValueError if their shapes differ."""
    check_shapes(op, logits, other)
    first, second = (each.unsqueeze(0) if each.dim() == 1 else each.flatten(0, -2) for _, each in (logits, other))
    return first, second


def plain_loss(
    op: str,
    reference: Loss,
    logits: tuple[str, Tensor],
    other: tuple[str, Tensor],
    temperature: float,
    reduction: str,
) -> Tensor:
    """Return the loss of two named tensors by the reference, in plain torch, which every transform can see through."""
    check_shapes(op, logits, other)
    for name, tensor in (logits, other):
        if tensor.dtype not in _DTYPES:
            raise TypeError(f"{op}: {name} is {tensor.dtype}, wanted float32, float64, float16 or bfloat16")
    if not 1e-18 <= temperature <= 1e18:  # as in csrc/ops/row_loss.cpp
        raise ValueError(f"{op}: temperature is {temperature}, wanted a number from 1e-18 to 1e18")
    dtype = torch.float64 if logits[1].dtype == torch.float64 else torch.float32
    return reference(logits[1].to(dtype), other[1].to(dtype), temperature, reduction=reduction)


def check_shapes(op: str, logits: tuple[str, Tensor], other: tuple[str, Tensor]) -> None:
    """Raise ValueError if two named tensors are not [..., K] of the same shape."""
    (name, a), (other_name, b) = logits, other
    if a.dim() == 0:
        raise ValueError(f"{op}: {name} is a single number, wanted [..., K]")
    if a.shape != b.shape:
        raise ValueError(f"{op}: {other_name} has shape {list(b.shape)}, wanted {list(a.shape)} as {name}")


def fake_loss_and_grad(logits: Tensor, reduction: str, with_grad: bool) -> tuple[Tensor, Tensor]:
    """Return empty tensors with the shapes and dtypes of the loss and its gradient, which is not yet rounded."""
    dtype = torch.float32 if logits.dtype in (torch.float16, torch.bfloat16) else logits.dtype
    loss = logits.new_empty(logits.shape[:1] if reduction == "none" else (), dtype=dtype)
    grad = torch.empty(logits.shape if with_grad else (0,), dtype=dtype, device=logits.device)
    return loss, grad


def save_grad(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Save the gradient for backward (the setup_context of the custom ops)."""
    ctx.set_materialize_grads(False)  # the second output has no upstream gradient: do not allocate zeros for it
    ctx.save_for_backward(output[1])
    ctx.dtype = inputs[0].dtype


def _may_change_saved(grad: Tensor, weight: Tensor) -> bool:
    """Return whether backward may scale the saved gradient in place: an eager call, after which the graph is freed.

    Under is_grads_batched the weight has no memory of its own. That of a negated view has the other sign.
    """
    return (
        is_eager(grad, weight)
        and torch._C._has_storage(weight)
        and not weight.is_neg()
        and weight.dim() == 0
        and (grad.dtype, grad.device) == (weight.dtype, weight.device)
        and grad.is_contiguous()
        and not torch._C._autograd._get_current_graph_task_keep_graph()
    )


def scale_grad(op: str, ctx: Any, grad_loss: Tensor) -> Tensor:
    """Return the gradient of the logits, [N, K], for the upstream gradient of the loss, a scalar or [N].

    In the common `loss.backward()` the upstream gradient is 1, and the saved gradient is returned without a pass over
    it (for 16-bit logits the rounding remains). On a CUDA device the kernel finds that out: the host does not wait.
    """
    (grad,) = ctx.saved_tensors
    if torch.is_grad_enabled():
        raise RuntimeError(f"{op}: double backward is not provided; use zskd_fast.reference.{op} where it is needed")
    if _may_change_saved(grad, grad_loss):
        _C.scale_grad_(grad, grad_loss)
        return grad.to(ctx.dtype)
    weight = grad_loss if grad_loss.dim() == 0 else grad_loss.unsqueeze(1)
    return (grad * weight).to(ctx.dtype)
