"""Rounding of impressions to the values that their store can hold."""

import math

import torch

from zskd_fast.errors import InputError


def limits_in(dtype: torch.dtype, low: float, high: float) -> tuple[float, float]:
    """Return the lowest and highest value of a floating-point type inside [low, high]; either end may be infinite.

    Raises InputError if the type does not reach an end, or has no value between them.
    """
    ends = torch.tensor([low, high], dtype=torch.float32)
    nearest = ends.to(dtype)
    if not torch.equal(nearest.isinf(), ends.isinf()):
        raise InputError(f"{_name(dtype)} ends at {torch.finfo(dtype).max:g}, short of [{low}, {high}]")
    # Where the nearest value is outside, the next one inward is inside.
    inner = torch.nextafter(nearest, torch.tensor([math.inf, -math.inf], dtype=dtype))
    outside = torch.stack([nearest[0] < ends[0], nearest[1] > ends[1]])
    first, last = torch.where(outside, inner, nearest).tolist()
    if first > last:
        raise InputError(f"{_name(dtype)} has no value from {low} to {high}")
    return first, last


def round_(x: torch.Tensor, dtype: torch.dtype, limits: tuple[float, float]) -> None:
    """Round float32 x in place to the nearest values of a type, inside the limits from ``limits_in``."""
    if dtype != x.dtype:
        x.copy_(x.to(dtype)).clamp_(*limits)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
