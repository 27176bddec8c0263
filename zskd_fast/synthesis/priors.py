"""Priors on an impression that look at neighboring pixels; the update op computes the priors on single pixels."""

import torch

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.recipe import ImpressionRecipe
from zskd_fast.errors import InputError


def check_priors(recipe: ImpressionRecipe, input_spec: InputSpec) -> None:
    """Raise InputError if total variation is wanted for inputs that are no images [C, H, W]."""
    if recipe.total_variation and not input_spec.is_image:
        raise InputError(
            f"inputs of shape {list(input_spec.shape)} are no images [C, H, W], so total_variation must be 0"
        )


def add_total_variation_(grad: torch.Tensor, x: torch.Tensor, weight: float) -> None:
    """Add to grad, in place, the gradient of weight * sum (x_i - x_j)^2 over the neighboring pixels i, j of each image.

    Both are [N, C, H, W]; neighbors are next to one another in a row or column of a channel. Unlike that of the
    absolute difference, the gradient of the square vanishes as the image gets smooth.
    """
    for axis in (-2, -1):
        if x.shape[axis] > 1:
            step = x.diff(dim=axis)
            grad.narrow(axis, 1, x.shape[axis] - 1).add_(step, alpha=2 * weight)
            grad.narrow(axis, 0, x.shape[axis] - 1).sub_(step, alpha=2 * weight)
