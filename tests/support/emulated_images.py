"""The ops that look at neighboring pixels or paint them, in the emulator."""

import math

import torch
from emulated import ALL_BLOCKS, DTYPES, Output, call
from emulated_params import Augmentation, AugmentParams, DeadLeavesParams, TotalVariationGradParams, Traffic
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
    out = Output((images, numbers - 5, height, width), torch.float32, offset)
    moved = call(
        "dead_leaves",
        DeadLeavesParams(
            numbers=leaves.data_ptr(),
            out=out.tensor.data_ptr(),
            images=images,
            leaves=count,
            channels=numbers - 5,
            height=height,
            width=width,
        ),
        **how,
    )
    if traffic is not None:
        traffic.append(moved)
    return out.checked()


def augment(
    x: Tensor,
    positions: Tensor,
    *,
    seed: int,
    stream: int,
    mix_probability: float = 0.0,
    noise_max: float = 0.0,
    clamp: bool = False,
    low: float = 0.0,
    high: float = 1.0,
    offset: int = 0,
    traffic: list[Traffic] | None = None,
    order: int = 0,
    most_blocks: int = ALL_BLOCKS,
    **moving: float,
) -> Tensor:
    """Return a varied copy of x; `moving` are the numbers of the map and the flip."""
    out = Output(tuple(x.shape), torch.float32, offset)
    moves = any(moving.values())
    channels, height, width = x.shape[1:] if moves else (1, 1, math.prod(x.shape[1:]))
    numbers = Augmentation(
        seed=(seed & 0xFFFFFFFF, seed >> 32),
        stream=stream,
        moves=moves,
        mix_probability=mix_probability,
        largest_deviation=noise_max * (high - low),
        background=low,
        lowest=low if clamp else -math.inf,
        highest=high if clamp else math.inf,
        **moving,
    )
    moved = call(
        "augment",
        AugmentParams(
            x=x.data_ptr(),
            positions=positions.data_ptr(),
            positions_stride=positions.stride(0),
            out=out.tensor.data_ptr(),
            rows=len(x),
            channels=channels,
            height=height,
            width=width,
            numbers=numbers,
        ),
        order=order,
        most_blocks=most_blocks,
    )
    if traffic is not None:
        traffic.append(moved)
    return out.checked()
