"""Inputs that no student has seen: on them recipes are told apart without any data."""

from __future__ import annotations

from torch import nn

from zskd_fast.config.recipe import Recipe
from zskd_fast.models.classifier import Classifier
from zskd_fast.real_data.evaluation import agreement
from zskd_fast.run.pipeline import Model, make_synthesizer
from zskd_fast.synthesis.start_noise import start_noise

__all__ = ["Probe"]

# No store reaches so far.
_IDS = range(2**40, 2**40 + 1000)


class Probe:
    """Held-out impressions of a recipe, and the start noise that they were made from; both depend on the seed."""

    def __init__(self, teacher: Model, recipe: Recipe, *, seed: int):
        self._teacher, self._spec = teacher, recipe.input
        made = make_synthesizer(teacher, recipe.input, recipe.synthesis, seed).run(_IDS)
        self.impressions = made.x
        self._noise = start_noise(made.id, recipe.synthesis.start, recipe.input, seed=seed, clamp=True)

    def agreements(self, student: nn.Module) -> tuple[float, float]:
        """On which share of the impressions, and of the noise, the student gives the teacher's class."""
        teacher = Classifier(self._teacher.module, self._spec, logits_fn=self._teacher.logits_fn)
        pair = teacher, Classifier(student, self._spec)
        return agreement(*pair, self.impressions), agreement(*pair, self._noise)
