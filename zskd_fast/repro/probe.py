"""Inputs that no student has been trained on: they compare recipes without any data."""

from __future__ import annotations

from zskd_fast.config.recipe import Recipe
from zskd_fast.models.classifier import Classifier
from zskd_fast.real_data.evaluation import agreement
from zskd_fast.synthesis.start_noise import start_noise
from zskd_fast.synthesis.synthesizer import Synthesizer

# Above the ids of any store.
_IDS = range(2**40, 2**40 + 1000)


class Probe:
    """1,000 held-out impressions of a recipe and the start noise of the same ids; both depend on the seed."""

    def __init__(self, teacher: Classifier, recipe: Recipe, *, seed: int) -> None:
        self._teacher = teacher
        made = Synthesizer(teacher, teacher.input_spec, recipe.synthesis, seed=seed).run(_IDS)
        self.impressions = made.x
        spec, noise = teacher.input_spec, recipe.synthesis.start_noise
        self._noise = start_noise(made.id, noise, spec, seed=seed, clamp=True)

    def agreements(self, student: Classifier) -> tuple[float, float]:
        """Return the agreement of student and teacher on the impressions and on the start noise, from 0 to 1."""
        return (agreement(self._teacher, student, self.impressions), agreement(self._teacher, student, self._noise))
