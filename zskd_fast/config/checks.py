"""Checks on the fields of a recipe."""

import math
from dataclasses import dataclass
from typing import Any

from zskd_fast.errors import InputError

__all__ = ["Check", "all_above_zero", "is_size_range"]


@dataclass(frozen=True)
class Check:
    """Checks on the fields of a recipe, each with a sentence that names the field."""

    recipe: Any
    where: str

    def that(self, name, wanted, holds):
        if not holds:
            got = getattr(self.recipe, name)
            raise InputError(f"recipe: {self.where}.{name} must be {wanted}, got {got!r}")

    def finite(self, *names):
        for name in names:
            self.that(name, "a finite number", is_finite(getattr(self.recipe, name)))

    def at_least(self, lowest, *names):
        self.finite(*names)
        for name in names:
            self.that(name, f"at least {lowest}", getattr(self.recipe, name) >= lowest)

    def above_zero(self, *names):
        self.finite(*names)
        for name in names:
            self.that(name, "above 0", getattr(self.recipe, name) > 0)

    def fraction(self, *names):
        self.finite(*names)
        for name in names:
            self.that(name, "between 0 and 1", 0 <= getattr(self.recipe, name) <= 1)

    def decays(self, name):
        pair = getattr(self.recipe, name)
        inside = len(pair) == 2 and all(is_finite(decay) and 0 <= decay < 1 for decay in pair)
        self.that(name, "two numbers from 0 up to, but not, 1", inside)


def is_finite(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def all_above_zero(values):
    return len(values) > 0 and all(is_finite(value) and value > 0 for value in values)


def is_size_range(pair):
    return len(pair) == 2 and all_above_zero(pair) and pair[0] <= pair[1]
