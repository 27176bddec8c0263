"""An Adam step on a batch of impressions, with pixel priors and a clamp to the valid input range."""

import math

import torch
from torch import Tensor

from zskd_fast._extension import _C
from zskd_fast.ops._dispatch import can_bypass_dispatcher, is_mapped_or_differentiated, needs_grad


@torch.library.custom_op("zskd_fast::impression_update_", mutates_args=("x", "exp_avg", "exp_avg_sq"))
def _op(
    x: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    lr: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    l1: float,
    l2: float,
    lo: Tensor,
    hi: Tensor,
) -> None:
    _C.impression_update_(x, grad, exp_avg, exp_avg_sq, step, lr, beta1, beta2, eps, l1, l2, lo, hi)


@_op.register_fake
def _fake(x: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, *numbers: Tensor | float) -> None:
    return None


def _as_tensor(value: float | Tensor) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)


def impression_update_(
    x: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int | Tensor,
    *,
    lr: float | Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    l1: float = 0.0,
    l2: float = 0.0,
    lo: float | Tensor = -math.inf,
    hi: float | Tensor = math.inf,
) -> None:
    """Update x in place by one Adam step (Kingma and Ba 2015, algorithm 1) with pixel priors and a clamp.

    The gradient of the priors l1 sum |x| + l2 sum x^2, which is l1 sign(x) + 2 l2 x, is added to grad. After the step x
    is clamped to [lo, hi]. All of it is one pass over memory. Without priors and clamp this is `torch.optim.Adam`.

    Args:
        x: impressions [N, ...], changed in place; float16, bfloat16, float32 or float64, any strides.
        grad: gradient of the summed loss; shape, dtype and device of x. Not changed.
        exp_avg, exp_avg_sq: first and second moment, changed in place; shape of x, float32 for a 16-bit x, otherwise
            the dtype of x. Zeros before step 1.
        step: number of this update, counted from 1; an int or a tensor of one element.
        lr: learning rate; a number or a tensor of one element. If step or lr is on the CUDA device of x, the kernel
            reads it there: it is not checked, and each replay of a captured CUDA graph sees its current value.
        betas, eps, l1, l2: the decay rates of the moments, Adam's epsilon, and the weights of the priors.
        lo, hi: bounds of a valid input; a number, or [C] for dimension 1 of x. NaN in x stays NaN.

    Raises:
        ValueError: Wrong shape, step, lr, betas, eps, l1 or l2.
        TypeError: Wrong dtype or device.
        RuntimeError: torch.func maps over an argument or differentiates with respect to it.
    """
    beta1, beta2 = betas
    tensors = x, grad, exp_avg, exp_avg_sq, _as_tensor(step), _as_tensor(lr)
    bounds = _as_tensor(lo), _as_tensor(hi)
    if can_bypass_dispatcher(*tensors, *bounds) and not needs_grad(*tensors, *bounds):
        _C.impression_update_(*tensors, beta1, beta2, eps, l1, l2, *bounds)
        torch.autograd.graph.increment_version((x, exp_avg, exp_avg_sq))
        return
    if is_mapped_or_differentiated(*tensors, *bounds):
        raise RuntimeError(
            "impression_update_: an argument is transformed by torch.func, which an update in place does not support; "
            "update outside of the transform, or call zskd_fast.reference.impression_update_"
        )
    _op(*tensors, beta1, beta2, eps, l1, l2, *bounds)
