"""Which priors fit which inputs; their gradients are ops."""

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.recipe import ImpressionRecipe
from zskd_fast.errors import InputError


def check_priors(recipe: ImpressionRecipe, input_spec: InputSpec) -> None:
    """Raise InputError if total variation is wanted for inputs that are no images [C, H, W]."""
    if recipe.total_variation and not input_spec.is_image:
        raise InputError(
            f"inputs of shape {list(input_spec.shape)} are no images [C, H, W], so total_variation must be 0"
        )
