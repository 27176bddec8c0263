"""Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011) and variates from its words, in numpy and float64."""

import numpy as np
import torch
from torch import Tensor

_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
GAMMA, STREAM = 0, 1  # purposes: the top four bits of the last counter word


def philox4x32_10(counter: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Return the random words [..., 4] of the counters [..., 4] under key [2], 32-bit words held as uint64."""
    c0, c1, c2, c3 = (counter[..., i].astype(np.uint64) for i in range(4))
    k0, k1 = (np.uint64(k) for k in key)
    for _ in range(10):
        a, b = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (b >> _SHIFT) ^ c1 ^ k0, b & _LOW, (a >> _SHIFT) ^ c3 ^ k1, a & _LOW
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & _LOW, (k1 + np.uint64(0xBB67AE85)) & _LOW
    return np.stack([c0, c1, c2, c3], axis=-1)


def words(ids: Tensor, index: np.ndarray, *, seed: int, purpose: int, step: int | np.ndarray) -> np.ndarray:
    """Return the random words of the counters (id, index, purpose, step) under key seed: [N, len(index), 4]."""
    id_bits = ids.cpu().numpy().astype(np.uint64)[:, None]
    counter = np.stack(
        np.broadcast_arrays(
            id_bits & _LOW,
            id_bits >> _SHIFT,
            index[None, :],
            np.uint64(purpose << 28) | np.asarray(step, np.uint64),
        ),
        axis=-1,
    )
    return philox4x32_10(counter, np.array([seed & 0xFFFFFFFF, seed >> 32], dtype=np.uint64))


def uniform(word: np.ndarray, bits: int = 32) -> np.ndarray:
    """Return the midpoint of one of 2^bits equal cells of (0, 1), chosen by the high bits of the word."""
    return ((word >> np.uint64(32 - bits)).astype(np.float64) + 0.5) * 2.0**-bits


def normal_pair(word0: np.ndarray, word1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return two independent standard normal variates (Box and Muller 1958)."""
    radius = np.sqrt(-2.0 * np.log(uniform(word0)))
    angle = 2.0 * np.pi * word1.astype(np.float64) * 2.0**-32
    return radius * np.cos(angle), radius * np.sin(angle)


def philox(
    ids: Tensor,
    count: int,
    *,
    seed: int,
    stream: int,
    distribution: str = "uniform",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Compute `ops.philox` in float64."""
    block = words(ids, np.arange((count + 3) // 4, dtype=np.uint64), seed=seed, purpose=STREAM, step=stream)
    if distribution == "uniform":
        values = uniform(block, bits=23 if dtype == torch.float32 else 32)
    elif distribution == "normal":
        pairs = normal_pair(block[..., 0], block[..., 1]), normal_pair(block[..., 2], block[..., 3])
        values = np.stack([*pairs[0], *pairs[1]], axis=-1)
    else:
        raise ValueError(f"distribution is {distribution!r}, wanted uniform or normal")
    return torch.from_numpy(values.reshape(len(ids), -1)[:, :count].copy()).to(ids.device, dtype)
