"""Noise that is drawn by id: the start of an impression, and the fresh noise in the student's batches."""

import math

import torch

from zskd_fast import ops
from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.recipe import NoiseRecipe
from zskd_fast.errors import InputError
from zskd_fast.runtime import seeds

# Draws per leaf: center (2), half-axes (2) and angle; one gray value per channel follows.
_DRAWS = 5


def start_noise(
    ids: torch.Tensor,
    recipe: NoiseRecipe,
    input_spec: InputSpec,
    *,
    seed: int,
    stream: int = seeds.START_NOISE,
    clamp: bool = False,
) -> torch.Tensor:
    """Return one noise input per id: ids[N] int64 -> [N, *shape] float32 in the raw range, on the device of ids.

    A row depends on (seed, id, stream) and on the recipe only. ``clamp`` clamps it to the valid range. Raises
    InputError if dead leaves are wanted for inputs that are no images [C, H, W].
    """
    check_noise(recipe, input_spec)
    if recipe.kind == "dead_leaves":
        noise = _dead_leaves(ids, recipe, input_spec.shape, seed, stream)
    else:
        count = math.prod(input_spec.shape)
        noise = ops.philox(ids, count, seed=seed, stream=stream, distribution=recipe.kind)
    noise = noise.mul_(recipe.scale).add_(recipe.shift).reshape(len(ids), *input_spec.shape)
    return input_spec.to_raw(noise.clamp_(0, 1) if clamp else noise, clamp=clamp)


def check_noise(recipe: NoiseRecipe, input_spec: InputSpec) -> None:
    """Raise InputError if dead leaves are wanted for inputs that are no images [C, H, W]."""
    if recipe.kind == "dead_leaves" and not input_spec.is_image:
        raise InputError(
            f"inputs of shape {list(input_spec.shape)} are no images [C, H, W], so the noise cannot be "
            "dead_leaves; use uniform or normal"
        )


def pixel_centers(count: int, device: torch.device) -> torch.Tensor:
    """Return the centers of ``count`` pixels between -1 and 1: float32 [count]."""
    return (2 * torch.arange(count, dtype=torch.float32, device=device) + 1) / count - 1


def _dead_leaves(
    ids: torch.Tensor, recipe: NoiseRecipe, shape: tuple[int, ...], seed: int, stream: int
) -> torch.Tensor:
    """Draw ellipses and boxes that occlude one another on an empty ground: [N, C, H, W] in [0, 1].

    Like photographs, and unlike white noise, such images have edges and flat regions (the dead leaves model of
    Matheron, 1968; Baradad et al., NeurIPS 2021, train vision models on them without photographs).
    """
    channels, height, width = shape
    draws = ops.philox(ids, recipe.leaves * (_DRAWS + channels), seed=seed, stream=stream)
    draws = draws.reshape(len(ids), recipe.leaves, _DRAWS + channels, 1, 1)
    rows = pixel_centers(height, ids.device).reshape(1, height, 1)
    columns = pixel_centers(width, ids.device).reshape(1, 1, width)
    image = torch.zeros((len(ids), *shape), dtype=torch.float32, device=ids.device)
    for leaf in range(recipe.leaves):
        covers = _box_covers if leaf % 2 else _ellipse_covers
        covered = covers(*_leaf_coordinates(draws[:, leaf, :_DRAWS], rows, columns, recipe.leaf_size))
        image = torch.where(covered.unsqueeze(1), draws[:, leaf, _DRAWS:], image)
    return image


def _leaf_coordinates(
    draws: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, leaf_size: tuple[float, float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return every pixel's coordinates along the two axes of a leaf, [N, H, W] each, in units of its half-axes."""
    smallest, largest = leaf_size
    # Lengths are in halves of the image's height and width.
    center_row, center_column = 2 * draws[:, 0] - 1, 2 * draws[:, 1] - 1
    half_axes = smallest + (largest - smallest) * draws[:, 2:4]
    angle = math.pi * draws[:, 4]
    cos, sin = torch.cos(angle), torch.sin(angle)
    down, right = rows - center_row, columns - center_column
    # Division before the sums, while rows and columns are still one-dimensional.
    along = cos / half_axes[:, 0] * right + sin / half_axes[:, 0] * down
    across = cos / half_axes[:, 1] * down - sin / half_axes[:, 1] * right
    return along, across


def _ellipse_covers(along: torch.Tensor, across: torch.Tensor) -> torch.Tensor:
    return torch.addcmul(along.square_(), across, across) < 1


def _box_covers(along: torch.Tensor, across: torch.Tensor) -> torch.Tensor:
    return torch.maximum(along.abs_(), across.abs_()) < 1
