"""Priors on an impression that the update kernel does not know, since they look at neighbouring pixels."""

import torch

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.recipe import SynthesisRecipe
from zskd_fast.errors import InputError


def check_priors(recipe: SynthesisRecipe, input_spec: InputSpec) -> None:
    """Raises InputError if a smoothness is wanted of inputs that are not images [C, H, W]."""
    if recipe.total_variation and not input_spec.is_image:
        raise InputError(
            f"inputs of shape {list(input_spec.shape)} are no images [C, H, W], so total_variation must be 0"
        )


def add_total_variation_(grad: torch.Tensor, x: torch.Tensor, weight: float) -> None:
    """Adds to grad, in place, the gradient of weight * sum (x_i - x_j)^2 over the neighbours i, j of each image.

    Both are [N, C, H, W]; neighbours stand beside or above one another in a channel. The square, unlike the
    absolute value, has a gradient that fades out as the image gets smooth.
    """
    for axis in (-2, -1):
        if x.shape[axis] > 1:
            step = x.diff(dim=axis)
            grad.narrow(axis, 1, x.shape[axis] - 1).add_(step, alpha=2 * weight)
            grad.narrow(axis, 0, x.shape[axis] - 1).sub_(step, alpha=2 * weight)
