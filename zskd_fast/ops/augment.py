"""Random variation of a batch, in one pass."""

import torch
from torch import Tensor

from zskd_fast._extension import _C
from zskd_fast.ops._dispatch import can_bypass_dispatcher, needs_grad
from zskd_fast.ops.philox import check_seed


@torch.library.custom_op("zskd_fast::augment", mutates_args=())
def _op(
    x: Tensor,
    positions: Tensor,
    seed: int,
    stream: int,
    rotation_sigma: float,
    scale_sigma: float,
    shift_sigma: float,
    flip_probability: float,
    mix_probability: float,
    noise_max: float,
    clamp: bool,
    low: float,
    high: float,
) -> Tensor:
    sigmas = rotation_sigma, scale_sigma, shift_sigma
    return _C.augment(
        x, positions, seed, stream, *sigmas, flip_probability, mix_probability, noise_max, clamp, low, high
    )


@_op.register_fake
def _fake(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def augment(
    x: Tensor,
    positions: Tensor,
    *,
    seed: int,
    stream: int,
    rotation_sigma: float = 0.0,
    scale_sigma: float = 0.0,
    shift_sigma: float = 0.0,
    flip_probability: float = 0.0,
    mix_probability: float = 0.0,
    noise_max: float = 0.0,
    clamp: bool = False,
    low: float = 0.0,
    high: float = 1.0,
) -> Tensor:
    """Return a varied copy of a batch: rotated, zoomed, shifted and flipped, mixed, with noise, clamped; in this order.

    Images are sampled between pixels as by `torch.nn.functional.grid_sample` with align_corners=False; outside of an
    image lies `low`. Then a row a may be mixed with the next row b of the batch, moved by its own map: w*a + (1-w)*b
    with w uniform on (0, 1); next to the last row is the first. Then normal noise is added. A variation whose number is
    0 is left out. The draws of a row depend on seed, stream and its position only, and its result depends on the next
    row, too: not on the number of threads or the instruction set of the machine. A CPU and a CUDA device give the same
    bits. The random numbers are those of `philox` (Salmon et al., SC 2011).

    Args:
        x: [N, ...] float32; [N, C, H, W] if pixels are moved. Not changed.
        positions: [N] int64, the ids of the draws.
        seed: 0 <= seed < 2^63.
        stream: 0 <= stream <= 2^28 - 5. The draws use this stream of `philox` and the next four: for the map, the flip,
            the mixture, the deviation of the noise, and the noise.
        rotation_sigma: standard deviation of the rotation angle, in radians.
        scale_sigma: standard deviation of the logarithm of the zoom.
        shift_sigma: standard deviation of the shift along each axis, as a fraction of half the width or height.
        flip_probability: of a left-right flip.
        mix_probability: of the mixture.
        noise_max: the deviation of a row's noise is uniform on (0, noise_max), in units of high - low.
        clamp: clamp the result between low and high.
        low, high: the valid range.

    Returns:
        [N, ...] float32, contiguous. Not differentiable.

    Raises:
        ValueError: Wrong shape, or a number outside of its range; x requires grad.
        TypeError: Wrong dtype or device.

    NaN stays NaN, and it or an infinite value spreads to the pixels that are sampled beside it.
    """
    if needs_grad(x):
        raise ValueError("augment: x requires grad, but the variation is not differentiable; pass .detach()")
    check_seed("augment", seed)
    vary = _C.augment if can_bypass_dispatcher(x, positions) else _op
    sigmas = rotation_sigma, scale_sigma, shift_sigma
    return vary(x, positions, seed, stream, *sigmas, flip_probability, mix_probability, noise_max, clamp, low, high)
