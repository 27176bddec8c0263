"""How the numbers of an impression follow the number of classes K; with at most 10 classes they stay as they are.

The recipes were chosen on teachers of 10 classes. Three of their numbers mean something else with more classes:

- Class similarity. A target's own class has concentration beta, each other class beta times its similarity. With
  10 classes the own class gets a fifth of the target on average; with 1,775 a thousandth, and the target is nearly
  uniform, or spread over classes that the teacher never confuses. So only the 9 most similar classes count, and theirs
  are scaled so that together they weigh as much as 9 classes of average similarity. Then the own class keeps the share
  1 / (1 + 9 * mean similarity), whatever K.
- The concentration floor, which every class has. It is multiplied by 9 / (K - 1), so that its sum stays.
- The temperature. To give its own class half of the softmax, a teacher must answer with a logit that is
  temperature * ln(K - 1) above the others. So the temperature's excess over 1 is multiplied by ln 9 / ln(K - 1), which
  keeps that gap.

The learning rate needs no scaling: Adam's steps do not depend on the size of the gradient.
"""

import dataclasses
import math

import torch

from zskd_fast.config.recipe import SynthesisRecipe

_CLASSES = 10
_OTHERS = _CLASSES - 1


def scaled_similarity(similarity: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Return the similarities that shape targets: [N, K] float32 from the rows of ``classes`` [N], where each is 1.

    With more than 10 classes only the 9 most similar other classes of a row are not 0.
    """
    num_classes = similarity.shape[1]
    if num_classes <= _CLASSES:
        return similarity
    own = classes.unsqueeze(1)
    others = similarity.scatter(1, own, 0.0)
    nearest, places = others.topk(_OTHERS, dim=1)
    wanted = others.sum(dim=1, keepdim=True) * (_OTHERS / (num_classes - 1))
    # Where all others are equally far, as after a perfect training, all of them are 0.
    share = wanted / nearest.sum(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return torch.zeros_like(others).scatter_(1, places, nearest * share).scatter_(1, own, 1.0)


def scaled_floor(floor: float, num_classes: int) -> float:
    """Return floor * min(1, 9 / (K - 1))."""
    return floor * min(1.0, _OTHERS / (num_classes - 1))


def scaled_temperature(temperature: float, num_classes: int) -> float:
    """Return 1 + (temperature - 1) * ln 9 / ln(K - 1) with more than 10 classes; a temperature up to 1 stays."""
    if num_classes <= _CLASSES or temperature <= 1:
        return temperature
    return 1 + (temperature - 1) * math.log(_OTHERS) / math.log(num_classes - 1)


def scaled_recipe(recipe: SynthesisRecipe, num_classes: int) -> SynthesisRecipe:
    """Return the recipe with the temperature and the concentration floor for K classes."""
    return dataclasses.replace(
        recipe,
        temperature=scaled_temperature(recipe.temperature, num_classes),
        concentration_floor=scaled_floor(recipe.concentration_floor, num_classes),
    )


def scaling_note(recipe: SynthesisRecipe, num_classes: int) -> str:
    """Return one line on what is scaled for K classes, from the recipe as it was given; empty if nothing is."""
    if num_classes <= _CLASSES:
        return ""
    changes = []
    scaled = scaled_recipe(recipe, num_classes)
    if scaled.temperature != recipe.temperature:
        changes.append(f"temperature {recipe.temperature:g} -> {scaled.temperature:.3g}")
    if recipe.targets == "dirichlet":
        changes.append(f"concentration_floor {recipe.concentration_floor:g} -> {scaled.concentration_floor:.2g}")
        changes.append(f"targets of the {_OTHERS} most similar classes")
    return f"for {num_classes:,} classes: {', '.join(changes)}" if changes else ""
