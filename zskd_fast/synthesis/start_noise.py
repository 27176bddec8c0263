"""Noise that is drawn by id: the start of an impression, and the fresh noise in the student's batches."""

import functools
import math

import torch

from zskd_fast import ops
from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.recipe import NoiseRecipe
from zskd_fast.errors import InputError
from zskd_fast.runtime import seeds


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
    is_scaled = (recipe.scale, recipe.shift) != (1, 0)
    if is_scaled:
        noise.mul_(recipe.scale).add_(recipe.shift)
    if clamp and (is_scaled or recipe.kind == "normal"):  # all other noise is between 0 and 1
        noise.clamp_(0, 1)
    return input_spec.to_raw(noise.reshape(len(ids), *input_spec.shape), clamp=clamp)


def check_noise(recipe: NoiseRecipe, input_spec: InputSpec) -> None:
    """Raise InputError if dead leaves are wanted for inputs that are no images [C, H, W]."""
    if recipe.kind == "dead_leaves" and not input_spec.is_image:
        raise InputError(
            f"inputs of shape {list(input_spec.shape)} are no images [C, H, W], so the noise cannot be "
            "dead_leaves; use uniform or normal"
        )


def _dead_leaves(
    ids: torch.Tensor, recipe: NoiseRecipe, shape: tuple[int, ...], seed: int, stream: int
) -> torch.Tensor:
    """Draw ellipses and boxes that occlude one another on an empty ground: [N, C, H, W] in [0, 1].

    Like photographs, and unlike white noise, such images have edges and flat regions (the dead leaves model of
    Matheron, 1968; Baradad et al., NeurIPS 2021, train vision models on them without photographs).
    """
    channels, height, width = shape
    lowest, extent = _ranges(recipe.leaf_size, channels, ids.device)
    draws = ops.philox(ids, recipe.leaves * len(extent), seed=seed, stream=stream)
    leaves = draws.reshape(len(ids), recipe.leaves, len(extent)).mul_(extent).add_(lowest)
    return ops.dead_leaves(leaves, height, width)


@functools.lru_cache(maxsize=16)
def _ranges(leaf_size: tuple[float, float], channels: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the lowest value and the extent of each number of a leaf; kept, as a CUDA graph copies none from a host.

    The numbers are the center (2), the half-axes (2) and the angle, then a value per channel. Lengths are in halves of
    the image's height and width.
    """
    smallest, largest = leaf_size
    lowest = [-1.0, -1.0, smallest, smallest, 0.0, *[0.0] * channels]
    extent = [2.0, 2.0, largest - smallest, largest - smallest, math.pi, *[1.0] * channels]
    with torch.inference_mode(False):
        return torch.tensor(lowest, device=device), torch.tensor(extent, device=device)
