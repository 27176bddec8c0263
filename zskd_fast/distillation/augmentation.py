"""Augmentation: random variation of a batch before the teacher labels it (section 3.4 of the paper)."""

import math

import torch
import torch.nn.functional as F

from zskd_fast import ops
from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.recipe import AugmentationRecipe
from zskd_fast.errors import InputError
from zskd_fast.reference.dead_leaves import pixel_centers
from zskd_fast.runtime import seeds


def augment(
    x: torch.Tensor, positions: torch.Tensor, recipe: AugmentationRecipe, *, seed: int, input_spec: InputSpec
) -> torch.Tensor:
    """Return a varied copy of the batch x[N, *shape] (raw range): affine map and flip, mixing, noise, clamp.

    ``positions`` [N] int64 are the places of the rows in the run, each used once. The draws of a row depend on
    (seed, position) only; with mixing a row also depends on the next row of the batch. Raises InputError if the recipe
    moves pixels of inputs that are no images [C, H, W].
    """
    check_augmentation(recipe, input_spec)
    low, high = input_spec.valid_range
    if recipe.is_geometric:
        x = _move(x, positions, recipe, seed, background=low)
    if recipe.mix_probability:
        x = _mix(x, positions, recipe.mix_probability, seed)
    if recipe.noise_max:
        x = _add_noise(x, positions, recipe.noise_max * (high - low), seed)
    return x.clamp(low, high) if recipe.clamp else x


def check_augmentation(recipe: AugmentationRecipe, input_spec: InputSpec) -> None:
    """Raise InputError if the recipe moves pixels of inputs that are no images [C, H, W]."""
    if recipe.is_geometric and not input_spec.is_image:
        raise InputError(
            f"inputs of shape {list(input_spec.shape)} are no images [C, H, W], so the recipe's "
            "rotation_sigma, scale_sigma, shift_sigma and flip_probability must be 0"
        )


def _move(
    x: torch.Tensor, positions: torch.Tensor, recipe: AugmentationRecipe, seed: int, background: float
) -> torch.Tensor:
    matrices = _affine_matrices(positions, recipe, seed, aspect=x.shape[-2] / x.shape[-1])
    grid = _grid(matrices.to(x.dtype), x.shape[-2], x.shape[-1])
    # grid_sample pads with zeros; the background is the lowest valid value.
    moved = F.grid_sample(x - background, grid, padding_mode="zeros", align_corners=False)
    return moved.add_(background)


def _grid(matrices: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return where each output pixel is sampled, [N, H, W, 2]; faster than affine_grid, which multiplies matrices."""
    rows = pixel_centers(height, matrices).reshape(height, 1)
    columns = pixel_centers(width, matrices)
    by_column, by_row, shift = (part.reshape(-1, 2, 1, 1) for part in matrices.unbind(2))
    places = torch.addcmul(torch.addcmul(shift, by_row, rows), by_column, columns)
    return places.permute(0, 2, 3, 1)


def _affine_matrices(positions: torch.Tensor, recipe: AugmentationRecipe, seed: int, aspect: float) -> torch.Tensor:
    """Return maps from output to input places, [N, 2, 3], in units of half the width and half the height."""
    normal = ops.philox(positions, 4, seed=seed, stream=seeds.AFFINE, distribution="normal")
    angle, log_scale, shift_x, shift_y = normal.unbind(1)
    # The logarithm keeps every scale positive, and zooming in as likely as zooming out.
    zoom = torch.exp(log_scale * -recipe.scale_sigma)
    angle = angle * recipe.rotation_sigma
    cos, sin = zoom * torch.cos(angle), zoom * torch.sin(angle)
    flip = torch.ones_like(cos)
    if recipe.flip_probability:
        uniform = ops.philox(positions, 1, seed=seed, stream=seeds.FLIP)[:, 0]
        flip = torch.where(uniform < recipe.flip_probability, -1.0, 1.0)
    # The aspect makes the map a rotation in pixels where height and width differ.
    row_x = torch.stack([flip * cos, -flip * sin * aspect, shift_x * recipe.shift_sigma], dim=1)
    row_y = torch.stack([sin / aspect, cos, shift_y * recipe.shift_sigma], dim=1)
    return torch.stack([row_x, row_y], dim=1)


def _mix(x: torch.Tensor, positions: torch.Tensor, probability: float, seed: int) -> torch.Tensor:
    uniform = ops.philox(positions, 2, seed=seed, stream=seeds.MIX)
    weight = torch.where(uniform[:, 0] < probability, uniform[:, 1], 1.0)
    # The batch is in random order, so the next row is a random partner.
    return torch.lerp(x.roll(-1, 0), x, _per_row(weight, x))


def _add_noise(x: torch.Tensor, positions: torch.Tensor, largest: float, seed: int) -> torch.Tensor:
    sigma = ops.philox(positions, 1, seed=seed, stream=seeds.NOISE_SIGMA)[:, 0] * largest
    count = math.prod(x.shape[1:])
    noise = ops.philox(positions, count, seed=seed, stream=seeds.NOISE, distribution="normal")
    return torch.addcmul(x, noise.reshape(x.shape), _per_row(sigma, x))


def _per_row(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return values.to(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))
