"""What an impression is before its first step: noise drawn by its id, from white noise to dead leaves."""

import math

import torch

from zskd_fast import ops
from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.recipe import StartRecipe
from zskd_fast.errors import InputError
from zskd_fast.runtime import seeds as streams

# Place, half-axes and angle of a leaf; one grey value per channel follows.
_DRAWS = 5


def start_noise(
    ids: torch.Tensor,
    recipe: StartRecipe,
    input_spec: InputSpec,
    *,
    seed: int,
    stream: int = streams.START_NOISE,
    clamp: bool = False,
) -> torch.Tensor:
    """The start of each impression: ids[N] int64 -> [N, *shape] float32 in the raw range, on the device of ids.

    With ``clamp`` it is in the valid range. A start depends on (seed, id, stream) and on the recipe, on nothing else.
    Raises InputError if dead leaves are wanted of inputs that are not images [C, H, W].
    """
    check_start(recipe, input_spec)
    if recipe.noise == "dead_leaves":
        noise = _dead_leaves(ids, recipe, input_spec.shape, seed, stream)
    else:
        count = math.prod(input_spec.shape)
        noise = ops.philox(ids, count, seed=seed, stream=stream, distribution=recipe.noise)
    noise = noise.mul_(recipe.scale).add_(recipe.shift).reshape(len(ids), *input_spec.shape)
    return noise.clamp_(*input_spec.valid_range) if clamp else noise


def check_start(recipe: StartRecipe, input_spec: InputSpec) -> None:
    """Raises InputError if dead leaves are wanted of inputs that are not images [C, H, W]."""
    if recipe.noise == "dead_leaves" and not input_spec.is_image:
        raise InputError(
            f"inputs of shape {list(input_spec.shape)} are no images [C, H, W], so the start noise cannot be "
            "dead_leaves; use uniform or normal"
        )


def _dead_leaves(ids, recipe, shape, seed, stream):
    """Ellipses and boxes that cover one another on an empty ground, [N, C, H, W] in [0, 1].

    Their edges, flat parts and outlines are what photographs share and white noise lacks (the dead leaves model
    of Matheron, 1968; images of it train vision models without photographs: Baradad et al., NeurIPS 2021).
    """
    channels, height, width = shape
    draws = ops.philox(ids, recipe.leaves * (_DRAWS + channels), seed=seed, stream=stream)
    draws = draws.reshape(len(ids), recipe.leaves, _DRAWS + channels, 1, 1)
    rows = pixel_centres(height, ids.device).reshape(1, height, 1)
    columns = pixel_centres(width, ids.device).reshape(1, 1, width)
    image = torch.zeros((len(ids), *shape), device=ids.device)
    for leaf in range(recipe.leaves):
        shape_of = _box if leaf % 2 else _ellipse
        inside = shape_of(*_own_axes(draws[:, leaf, :_DRAWS], rows, columns, recipe.leaf_size))
        image = torch.where(inside.unsqueeze(1), draws[:, leaf, _DRAWS:], image)
    return image


def _own_axes(draws, rows, columns, leaf_size):
    """The place of every pixel along the two axes of a leaf, [N, H, W] each, in units of its half-axes."""
    smallest, largest = leaf_size
    # Lengths are in halves of the image's height and width.
    middle_row, middle_column = 2 * draws[:, 0] - 1, 2 * draws[:, 1] - 1
    half_axes = smallest + (largest - smallest) * draws[:, 2:4]
    angle = math.pi * draws[:, 4]
    cos, sin = torch.cos(angle), torch.sin(angle)
    down, right = rows - middle_row, columns - middle_column
    # The divisions come before the sums, while rows and columns are still apart.
    along = cos / half_axes[:, 0] * right + sin / half_axes[:, 0] * down
    across = cos / half_axes[:, 1] * down - sin / half_axes[:, 1] * right
    return along, across


def _ellipse(along, across):
    return torch.addcmul(along.square_(), across, across) < 1


def _box(along, across):
    return torch.maximum(along.abs_(), across.abs_()) < 1


def pixel_centres(count, device):
    """The middle of each of `count` pixels on the way from -1 to 1: float32 [count]."""
    return (2 * torch.arange(count, dtype=torch.float32, device=device) + 1) / count - 1
