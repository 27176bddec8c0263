"""Uniform and normal noise that is determined by a seed, a stream and an id per row."""

import torch
from torch import Tensor

from zskd_fast._extension import _C
from zskd_fast.ops._dispatch import can_bypass_dispatcher

_SEEDS = 2**63


def check_seed(op: str, seed: int) -> None:
    """Raise ValueError for a seed of 64 bits, as of `torch.initial_seed()`, which the extension cannot be given."""
    if seed >= _SEEDS:
        raise ValueError(f"{op}: seed is {seed}, wanted 0 to 2^63 - 1")


@torch.library.custom_op("zskd_fast::philox", mutates_args=())
def _op(ids: Tensor, count: int, seed: int, stream: int, distribution: str, dtype: torch.dtype) -> Tensor:
    return _C.philox(ids, count, seed, stream, distribution, dtype)


@_op.register_fake
def _fake(ids: Tensor, count: int, seed: int, stream: int, distribution: str, dtype: torch.dtype) -> Tensor:
    return ids.new_empty((ids.shape[0], count), dtype=dtype)


def philox(
    ids: Tensor,
    count: int,
    *,
    seed: int,
    stream: int,
    distribution: str = "uniform",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw `count` variates for each id: U(0, 1) without 0 and 1, or N(0, 1) by the method of Box and Muller.

    Row i depends only on seed, ids[i] and stream, and its first n variates do not depend on count. The random words are
    those of Philox4x32-10 (Salmon et al., SC 2011) with key = seed and counter = (id, block, stream). `dirichlet` never
    uses the same words.

    Args:
        ids: [N] int64.
        count: 0 <= count < 2^34.
        seed: 0 <= seed < 2^63.
        stream: 0 <= stream < 2^28. Different uses of one id, for example the steps of a loop, need different streams.
        distribution: "uniform" or "normal".
        dtype: float32 (23 random bits per uniform variate) or float64 (32 bits).

    Returns:
        [N, count] in `dtype`, on the device of ids.

    Raises:
        ValueError: Wrong shape, count, seed, stream or distribution.
        TypeError: Wrong dtype or device.
    """
    check_seed("philox", seed)
    draw = _C.philox if can_bypass_dispatcher(ids) else _op
    return draw(ids, count, seed, stream, distribution, dtype)
