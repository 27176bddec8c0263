"""What anyone who deploys a teacher knows about its input; nothing else about the data is ever asked for."""

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zskd_fast.errors import InputError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class InputSpec:
    """The teacher's input: its shape, the range of a raw value, and the normalisation put before the teacher.

    Impressions live in the raw (un-normalised) range; the teacher sees ``normalise(x)``.
    Raises InputError if a field cannot describe an input.
    """

    shape: tuple[int, ...]
    """Shape of one input without the batch axis, for instance 1 32 32; any rank from 1 up."""
    valid_range: tuple[float, float] = (0.0, 1.0)
    """Lowest and highest raw value of an input, before normalisation."""
    mean: tuple[float, ...] = ()
    """Mean that the teacher's normalisation subtracts: one value, or one per channel; empty for none."""
    std: tuple[float, ...] = ()
    """Standard deviation that the teacher's normalisation divides by: as many values as ``mean``."""

    def __post_init__(self):
        for name in ("shape", "valid_range", "mean", "std"):
            object.__setattr__(self, name, _as_tuple(name, getattr(self, name)))
        _check_shape(self.shape)
        _check_range(self.valid_range)
        _check_normalisation(self.mean, self.std, channels=self.shape[0])

    @property
    def is_image(self) -> bool:
        """Whether one input is [C, H, W], so that geometric augmentation has a meaning."""
        return len(self.shape) == 3

    def normalise(self, x: "torch.Tensor") -> "torch.Tensor":
        """(x - mean) / std per channel for x[N, *shape]; x itself if the teacher takes raw values."""
        if not self.mean:
            return x
        mean = _per_channel(self.mean, len(self.shape), x.dtype, x.device)
        std = _per_channel(self.std, len(self.shape), x.dtype, x.device)
        return (x - mean) / std


# Cached, since making a tensor from numbers is a copy from the host: on a GPU that would stall every step.
@functools.lru_cache(maxsize=64)
def _per_channel(values, rank, dtype, device):
    import torch  # only here: the command line shows its help without waiting for torch

    with torch.inference_mode(False):  # an inference tensor in the cache would break a later backward pass
        return torch.tensor(values, dtype=dtype, device=device).reshape(1, -1, *(1,) * (rank - 1))


def _as_tuple(name, values):
    try:
        return tuple(values)
    except TypeError:
        raise InputError(f"input {name} must be a sequence of numbers, got {values!r}") from None


def _check_shape(shape):
    if not shape or not all(type(size) is int and size >= 1 for size in shape):
        raise InputError(f"input shape must be one or more integers from 1 up (no batch axis), got {shape}")


def _check_range(valid_range):
    if len(valid_range) != 2 or not all(map(_is_finite, valid_range)) or not valid_range[0] < valid_range[1]:
        raise InputError(f"valid_range must be two finite numbers, the lower one first, got {valid_range}")


def _check_normalisation(mean, std, channels):
    if len(mean) != len(std) or len(mean) not in (0, 1, channels):
        raise InputError(
            f"mean and std must be both empty or both hold 1 or {channels} values (one per channel), "
            f"got {len(mean)} and {len(std)}"
        )
    if not all(map(_is_finite, mean)) or not all(_is_finite(value) and value > 0 for value in std):
        raise InputError(f"mean must be finite and std finite and above 0, got mean {mean} and std {std}")


def _is_finite(value):
    return isinstance(value, (int, float)) and math.isfinite(value)
