"""Adam with pixel priors and a clamp, one line for each term of the definition."""

import math

import torch
from torch import Tensor


@torch.no_grad()
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
    """Compute `ops.impression_update_` in the dtype of the moments."""
    beta1, beta2 = betas
    work = x.to(exp_avg.dtype)
    g = grad.to(work.dtype) + l1 * work.sign() + 2 * l2 * work
    exp_avg.copy_(beta1 * exp_avg + (1 - beta1) * g)
    exp_avg_sq.copy_(beta2 * exp_avg_sq + (1 - beta2) * g * g)
    m_hat = exp_avg / (1 - beta1 ** float(step))
    v_hat = exp_avg_sq / (1 - beta2 ** float(step))
    moved = work - float(lr) * m_hat / (v_hat.sqrt() + eps)
    bounds = [_per_channel(bound, work) for bound in (lo, hi)]
    x.copy_(torch.minimum(torch.maximum(moved, bounds[0]), bounds[1]))


def _per_channel(bound: float | Tensor, x: Tensor) -> Tensor:
    bound = torch.as_tensor(bound, dtype=x.dtype)
    return bound if bound.dim() == 0 else bound.reshape(1, -1, *[1] * (x.dim() - 2))
