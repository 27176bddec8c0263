"""The ops that look at neighboring pixels or paint them, in the emulator."""

import torch
from emulated import DTYPES, DeadLeavesParams, Output, TotalVariationGradParams, Traffic, call
from torch import Tensor


def total_variation_grad_(
    grad: Tensor, x: Tensor, weight: float, *, offset: int = 0, traffic: list[Traffic] | None = None, **how: int
) -> None:
    """Update grad in place. Both are contiguous, or channels-last. `offset` shifts grad in memory."""
    last = not grad.is_contiguous()
    count, channels, height, width = grad.shape
    held = Output((grad.numel(),), grad.dtype, offset)
    shifted = held.tensor.as_strided(grad.shape, grad.stride())
    shifted.copy_(grad)
    moved = call(
        "total_variation_grad",
        TotalVariationGradParams(
            grad=held.tensor.data_ptr(),
            x=x.data_ptr(),
            dtype=DTYPES[x.dtype],
            planes=count if last else count * channels,
            height=height,
            row_length=width * channels if last else width,
            pixel_stride=channels if last else 1,
            weight=weight,
        ),
        **how,
    )
    held.checked()
    grad.copy_(shifted)
    if traffic is not None:
        traffic.append(moved)


def dead_leaves(
    leaves: Tensor, height: int, width: int, *, offset: int = 0, traffic: list[Traffic] | None = None, **how: int
) -> Tensor:
    images, count, numbers = leaves.shape
    out = Output((images, numbers - 6, height, width), torch.float32, offset)
    moved = call(
        "dead_leaves",
        DeadLeavesParams(
            numbers=leaves.data_ptr(),
            out=out.tensor.data_ptr(),
            images=images,
            leaves=count,
            channels=numbers - 6,
            height=height,
            width=width,
        ),
        **how,
    )
    if traffic is not None:
        traffic.append(moved)
    return out.checked()
