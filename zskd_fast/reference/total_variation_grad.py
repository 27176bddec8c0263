"""The gradient of the total-variation prior, an axis at a time."""

import torch
from torch import Tensor


@torch.no_grad()
def total_variation_grad_(grad: Tensor, x: Tensor, weight: float) -> None:
    """Compute `ops.total_variation_grad_`."""
    for axis in (-2, -1):
        if x.shape[axis] > 1:
            step = x.diff(dim=axis)
            grad.narrow(axis, 1, x.shape[axis] - 1).add_(step, alpha=2 * weight)
            grad.narrow(axis, 0, x.shape[axis] - 1).sub_(step, alpha=2 * weight)
