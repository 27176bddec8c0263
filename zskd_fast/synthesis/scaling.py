"""How the numbers of an impression follow the number of classes K; with at most 10 classes they stay as they are.

The recipes were chosen on teachers of 10 classes. Two of their numbers mean something else with more classes:

- A target's own class has concentration beta, and each of the K - 1 others a share of beta that is about its class
  similarity. With 10 classes the own class gets a fifth of the target on average; with 1,775 a thousandth, and the
  target is nearly uniform. So the concentrations of the other classes are multiplied by 9 / (K - 1): together
  they then weigh as much as the nine others of 10 classes, whatever K.
- To give its own class half of the softmax, a teacher must answer with a logit that is temperature * ln(K - 1) above
  the others. So the temperature's excess over 1 is multiplied by ln 9 / ln(K - 1), which keeps that gap.
"""

import dataclasses
import math

from zskd_fast.config.recipe import SynthesisRecipe

_CLASSES = 10
"""Number of classes up to which nothing is scaled."""


def others_factor(num_classes: int) -> float:
    """Return the factor of the concentrations of all classes but the impression's own: min(1, 9 / (K - 1))."""
    return min(1.0, (_CLASSES - 1) / (num_classes - 1))


def scaled_temperature(temperature: float, num_classes: int) -> float:
    """Return 1 + (temperature - 1) * ln 9 / ln(K - 1) with more than 10 classes; a temperature up to 1 stays."""
    if num_classes <= _CLASSES or temperature <= 1:
        return temperature
    return 1 + (temperature - 1) * math.log(_CLASSES - 1) / math.log(num_classes - 1)


def scaled_recipe(recipe: SynthesisRecipe, num_classes: int) -> SynthesisRecipe:
    """Return the recipe with the temperature for K classes."""
    return dataclasses.replace(recipe, temperature=scaled_temperature(recipe.temperature, num_classes))


def scaling_note(recipe: SynthesisRecipe, num_classes: int) -> str:
    """Return one line on what is scaled for K classes, from the recipe as it was given; empty if nothing is."""
    if num_classes <= _CLASSES:
        return ""
    changes = []
    temperature = scaled_temperature(recipe.temperature, num_classes)
    if temperature != recipe.temperature:
        changes.append(f"temperature {recipe.temperature:g} -> {temperature:.3g}")
    if recipe.targets == "dirichlet":
        changes.append(f"concentrations of the other classes x {others_factor(num_classes):.2g}")
    return f"for {num_classes:,} classes: {', '.join(changes)}" if changes else ""
