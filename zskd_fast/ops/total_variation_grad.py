"""The gradient of the total-variation prior on a batch of impressions."""

import torch
from torch import Tensor

from zskd_fast._extension import _C
from zskd_fast.ops._dispatch import can_bypass_dispatcher, is_mapped_or_differentiated, needs_grad


@torch.library.custom_op("zskd_fast::total_variation_grad_", mutates_args=("grad",))
def _op(grad: Tensor, x: Tensor, weight: float) -> None:
    _C.total_variation_grad_(grad, x, weight)


@_op.register_fake
def _fake(grad: Tensor, x: Tensor, weight: float) -> None:
    return None


def total_variation_grad_(grad: Tensor, x: Tensor, weight: float) -> None:
    """Add to grad, in place, the gradient of weight * sum (x_i - x_j)^2 over the neighboring pixels i, j of each image.

    Neighbors are next to one another in a row or column of a channel. Unlike that of the absolute difference, the
    gradient of the square vanishes as the image gets smooth. All of it is one pass over memory. A pixel depends on its
    neighbors only: not on N, the memory layout or the number of threads.

    Args:
        grad: [N, C, H, W], changed in place; float16, bfloat16, float32 or float64. Fastest if it is contiguous or
            channels-last, and x is in the same layout.
        x: impressions, in the shape, dtype and device of grad. Not changed.
        weight: of the prior.

    Raises:
        ValueError: Wrong shape.
        TypeError: Wrong dtype or device.
        RuntimeError: torch.func maps over an argument or differentiates with respect to it.
    """
    if can_bypass_dispatcher(grad, x) and not needs_grad(grad, x):
        _C.total_variation_grad_(grad, x, weight)
        torch.autograd.graph.increment_version((grad,))
        return
    if is_mapped_or_differentiated(grad, x):
        raise RuntimeError(
            "total_variation_grad_: an argument is transformed by torch.func, which an update in place does not "
            "support; update outside of the transform, or call zskd_fast.reference.total_variation_grad_"
        )
    _op(grad, x, float(weight))
