"""Augmentation: random variation of a batch before the teacher labels it (section 3.4 of the paper)."""

import torch

from zskd_fast import ops
from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.recipe import AugmentationRecipe
from zskd_fast.errors import InputError
from zskd_fast.runtime import seeds


def augment(
    x: torch.Tensor, positions: torch.Tensor, recipe: AugmentationRecipe, *, seed: int, input_spec: InputSpec
) -> torch.Tensor:
    """Return a varied copy of the batch x[N, *shape] (raw range): affine map and flip, mixing, noise, clamp.

    ``positions`` [N] int64 are the places of the rows in the run, each used once. The draws of a row depend on
    (seed, position) only; with mixing a row also depends on the next row of the batch, a random partner, as the batch
    is in random order. Raises InputError if the recipe moves pixels of inputs that are no images [C, H, W].
    """
    check_augmentation(recipe, input_spec)
    low, high = input_spec.valid_range
    return ops.augment(x, positions, seed=seed, stream=seeds.AUGMENTATION, low=low, high=high, **vars(recipe))


def check_augmentation(recipe: AugmentationRecipe, input_spec: InputSpec) -> None:
    """Raise InputError if the recipe moves pixels of inputs that are no images [C, H, W]."""
    if recipe.is_geometric and not input_spec.is_image:
        raise InputError(
            f"inputs of shape {list(input_spec.shape)} are no images [C, H, W], so the recipe's "
            "rotation_sigma, scale_sigma, shift_sigma and flip_probability must be 0"
        )
