"""The facts about a teacher's input that anyone who deploys it knows; nothing else about the data is needed."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zskd_fast.config.checks import is_finite
from zskd_fast.errors import InputError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class InputSpec:
    """The teacher's input: its shape, the range of a raw value, and the normalization in front of the teacher.

    Impressions are in the raw range, before normalization; the teacher sees ``normalize(x)``.
    Raises InputError if a field cannot describe an input.
    """

    shape: tuple[int, ...]
    """Shape of one input without the batch axis, such as 1 32 32 for a gray image; one or more integers."""
    valid_range: tuple[float, float] = (0.0, 1.0)
    """Lowest and highest raw value of an input, before normalization."""
    mean: tuple[float, ...] = ()
    """Mean that the normalization subtracts, one value or one per channel; empty for no normalization."""
    std: tuple[float, ...] = ()
    """Standard deviation that the normalization divides by; as many values as the mean has."""

    def __post_init__(self) -> None:
        for name in ("shape", "valid_range", "mean", "std"):
            object.__setattr__(self, name, _as_tuple(name, getattr(self, name)))
        _check_shape(self.shape)
        _check_range(self.valid_range)
        _check_normalization(self.mean, self.std, channels=self.shape[0])
        low, high = self.valid_range
        if not all(low <= value <= high for value in self.mean):
            raise InputError(
                f"mean {self.mean} is outside of the valid range {self.valid_range}: both are raw values, so a mean of "
                "123 belongs to a range of 0 to 255"
            )

    @property
    def is_image(self) -> bool:
        """Whether one input is an image [C, H, W]; only images can be rotated, shifted or smoothed."""
        return len(self.shape) == 3

    def to_raw(self, unit: torch.Tensor, *, clamp: bool = False) -> torch.Tensor:
        """Map values in units of the valid range, 0 to 1, to raw values; x itself if the valid range is 0 to 1.

        Impressions are optimized in these units, so that the numbers of a recipe mean the same for every valid range.
        ``clamp`` keeps values from 0 to 1 inside the valid range, which rounding may otherwise leave, and 1 at its end.
        """
        low, high = self.valid_range
        if (low, high) == (0, 1):
            return unit
        raw = unit * (high - low) + low
        return raw.clamp_(low, high).masked_fill_(unit >= 1, high) if clamp else raw

    def to_unit(self, x: torch.Tensor) -> torch.Tensor:
        """Map raw values to units of the valid range: the inverse of ``to_raw``."""
        low, high = self.valid_range
        return x if (low, high) == (0, 1) else (x - low) / (high - low)

    def require_raw(self, x: torch.Tensor) -> None:
        """Raise InputError if x holds values outside the valid range, by more than a hundredth of it."""
        low, high = self.valid_range
        slack = (high - low) / 100
        if x.numel() and bool((x < low - slack).any() | (x > high + slack).any()):
            raise InputError(
                f"x holds values from {float(x.min()):g} to {float(x.max()):g}, the valid range is {low:g} to "
                f"{high:g}; give raw values, before normalization, or the range that they have"
            )

    def normalize(self, x: torch.Tensor) -> torch.Tensor:
        """Return (x - mean) / std per channel for x[N, *shape]; x itself if there is no normalization."""
        if not self.mean:
            return x
        mean = _per_channel(self.mean, len(self.shape), x.dtype, x.device)
        std = _per_channel(self.std, len(self.shape), x.dtype, x.device)
        return (x - mean) / std


# Cached: a tensor made of Python numbers is a copy from the host, for which a GPU would wait in every step.
@functools.lru_cache(maxsize=64)
def _per_channel(values: tuple[float, ...], rank: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    import torch  # imported here, so that the command line shows its help without loading torch

    with torch.inference_mode(False):  # an inference tensor in the cache would break a later backward pass
        return torch.tensor(values, dtype=dtype, device=device).reshape(1, -1, *(1,) * (rank - 1))


def _as_tuple(name: str, values: Any) -> tuple[Any, ...]:
    try:
        return tuple(values.tolist() if hasattr(values, "tolist") else values)  # numbers, not those of numpy or torch
    except TypeError:
        raise InputError(f"input {name} must be a sequence of numbers, got {values!r}") from None


def _check_shape(shape: Sequence[object]) -> None:
    if not shape or not all(type(size) is int and size >= 1 for size in shape):
        raise InputError(f"input shape must be one or more integers from 1 up (no batch axis), got {shape}")


def _check_range(valid_range: Sequence[float]) -> None:
    if len(valid_range) != 2 or not all(map(is_finite, valid_range)) or not valid_range[0] < valid_range[1]:
        raise InputError(f"valid_range must be two finite numbers, the lower one first, got {valid_range}")


def _check_normalization(mean: Sequence[float], std: Sequence[float], channels: int) -> None:
    if len(mean) != len(std) or len(mean) not in (0, 1, channels):
        values = "1 value" if channels == 1 else f"1 or {channels} values (one per channel)"
        raise InputError(f"mean and std must both be empty or both hold {values}, got {len(mean)} and {len(std)}")
    if not all(map(is_finite, mean)) or not all(is_finite(value) and value > 0 for value in std):
        raise InputError(f"mean must be finite and std finite and above 0, got mean {mean} and std {std}")
