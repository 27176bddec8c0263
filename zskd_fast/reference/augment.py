"""Random variation of a batch, an effect at a time."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from zskd_fast.reference.dead_leaves import pixel_centers
from zskd_fast.reference.philox import philox

# The streams of the draws, counted from the first one of the op.
AFFINE, FLIP, MIX, DEVIATION, NOISE = range(5)


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
    """Compute `ops.augment` in the dtype of x."""
    draws = _Draws(positions, seed, stream, x.dtype)
    if any((rotation_sigma, scale_sigma, shift_sigma, flip_probability)):
        aspect = x.shape[-2] / x.shape[-1]
        matrices = _matrices(draws, rotation_sigma, scale_sigma, shift_sigma, flip_probability, aspect)
        # grid_sample pads with zeros.
        x = F.grid_sample(x - low, _grid(matrices, *x.shape[-2:]), padding_mode="zeros", align_corners=False) + low
    if mix_probability:
        x = _mixed(x, draws, mix_probability)
    if noise_max:
        deviation = draws.uniform(1, DEVIATION)[:, 0] * (noise_max * (high - low))
        x = x + _per_row(deviation, x) * draws.normal(math.prod(x.shape[1:]), NOISE).reshape(x.shape)
    return x.clamp(low, high) if clamp else x.clone()


class _Draws:
    """The draws of the rows, from uniform variates of 23 bits whatever the dtype."""

    def __init__(self, positions: Tensor, seed: int, stream: int, dtype: torch.dtype):
        self._positions, self._seed, self._stream, self._dtype = positions, seed, stream, dtype

    def uniform(self, count: int, purpose: int) -> Tensor:
        return philox(self._positions, count, seed=self._seed, stream=self._stream + purpose).to(self._dtype)

    def normal(self, count: int, purpose: int) -> Tensor:
        stream = self._stream + purpose
        return philox(self._positions, count, seed=self._seed, stream=stream, distribution="normal", dtype=self._dtype)


def _matrices(
    draws: _Draws,
    rotation_sigma: float,
    scale_sigma: float,
    shift_sigma: float,
    flip_probability: float,
    aspect: float,
) -> Tensor:
    """Return maps from output to input places, [N, 2, 3], in units of half the width and half the height."""
    angle, log_scale, shift_x, shift_y = draws.normal(4, AFFINE).unbind(1)
    zoom = torch.exp(log_scale * -scale_sigma)
    angle = angle * rotation_sigma
    cos, sin = zoom * torch.cos(angle), zoom * torch.sin(angle)
    flip = torch.where(draws.uniform(1, FLIP)[:, 0] < flip_probability, -1.0, 1.0).to(cos)
    # The aspect makes the map a rotation in pixels where height and width differ.
    row_x = torch.stack([flip * cos, -flip * sin * aspect, shift_x * shift_sigma], dim=1)
    row_y = torch.stack([sin / aspect, cos, shift_y * shift_sigma], dim=1)
    return torch.stack([row_x, row_y], dim=1)


def _grid(matrices: Tensor, height: int, width: int) -> Tensor:
    """Return where each output pixel is sampled, [N, H, W, 2]."""
    rows = pixel_centers(height, matrices).reshape(height, 1)
    columns = pixel_centers(width, matrices)
    by_column, by_row, shift = (part.reshape(-1, 2, 1, 1) for part in matrices.unbind(2))
    return (shift + by_row * rows + by_column * columns).permute(0, 2, 3, 1)


def _mixed(x: Tensor, draws: _Draws, probability: float) -> Tensor:
    chance, weight = draws.uniform(2, MIX).unbind(1)
    mixture = torch.lerp(x.roll(-1, 0), x, _per_row(weight, x))
    return torch.where(_per_row(chance < probability, x), mixture, x)


def _per_row(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(-1, *(1,) * (x.ndim - 1))
