"""Adaptation of a recipe to the teacher's input: what needs an image is switched off for inputs that are none."""

from dataclasses import replace
from typing import Any, TypeVar, cast

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.recipe import DistillationRecipe, NoiseRecipe, SynthesisRecipe

_Recipe = TypeVar("_Recipe", SynthesisRecipe, DistillationRecipe)
_Noise = TypeVar("_Noise", bound=NoiseRecipe)
_GEOMETRIC = ("rotation_sigma", "scale_sigma", "shift_sigma", "flip_probability")


def adapt(recipe: _Recipe, spec: InputSpec) -> tuple[_Recipe, list[str]]:
    """Return the recipe that fits the input, and one phrase per change, to be shown to the user.

    For inputs that are no images [C, H, W], uniform noise replaces dead leaves, there is no total variation, and no
    pixels are moved. A recipe that fits is returned as it is.
    """
    if spec.is_image:
        return recipe, []
    adapted, notes = _synthesis(recipe) if isinstance(recipe, SynthesisRecipe) else _distillation(recipe)
    return cast(_Recipe, adapted), notes


def _synthesis(recipe: SynthesisRecipe) -> tuple[SynthesisRecipe, list[str]]:
    notes = []
    if recipe.start_noise.kind == "dead_leaves":
        notes.append("uniform start noise in place of dead leaves")
    if recipe.total_variation:
        notes.append("no total variation")
    return replace(recipe, start_noise=_without_leaves(recipe.start_noise), total_variation=0.0), notes


def _distillation(recipe: DistillationRecipe) -> tuple[DistillationRecipe, list[str]]:
    notes = []
    if recipe.fresh_noise.fraction and recipe.fresh_noise.kind == "dead_leaves":
        notes.append("uniform fresh noise in place of dead leaves")
    if recipe.augmentation.is_geometric:
        notes.append("no rotation, zoom, shift or flip")
    off: dict[str, Any] = dict.fromkeys(_GEOMETRIC, 0.0)
    augmentation = replace(recipe.augmentation, **off)
    return replace(recipe, fresh_noise=_without_leaves(recipe.fresh_noise), augmentation=augmentation), notes


def _without_leaves(noise: _Noise) -> _Noise:
    if noise.kind != "dead_leaves":
        return noise
    return replace(noise, kind="uniform", leaves=0, leaf_size=(0.0, 0.0))
