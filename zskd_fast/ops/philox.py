"""Uniform and normal noise, each row drawn from its own name."""

import torch
from torch import Tensor

from zskd_fast._extension import _C
from zskd_fast.ops._plain import is_plain


@torch.library.custom_op("zskd_fast::philox", mutates_args=())
def _op(ids: Tensor, count: int, seed: int, stream: int, distribution: str, dtype: torch.dtype) -> Tensor:
    return _C.philox(ids, count, seed, stream, distribution, dtype)


@_op.register_fake
def _fake(ids, count, seed, stream, distribution, dtype):
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
    """`count` variates for each id: U(0, 1) without its ends, or N(0, 1) (Box and Muller).

    Row i depends on (seed, ids[i], stream) alone, and its first n variates do not depend on count. The words are
    those of Philox4x32-10 (Salmon et al., SC 2011) with key = seed and counter = (id, block, stream); never those of
    `dirichlet`.

    Args:
        ids: [N] int64.
        count: 0 <= count < 2^34.
        seed: 0 <= seed < 2^63.
        stream: 0 <= stream < 2^28; tells apart the uses of one id, for example the steps of a loop.
        distribution: "uniform" or "normal".
        dtype: float32 (23 random bits a uniform variate) or float64 (32).

    Returns:
        [N, count].

    Raises:
        ValueError: shape, count, seed, stream or distribution.
        TypeError: dtype or device.
    """
    draw = _C.philox if is_plain(ids) else _op
    return draw(ids, count, seed, stream, distribution, dtype)
