"""Checks of a dataclass's fields, each with a sentence that names the field."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from zskd_fast.errors import InputError


@dataclass(frozen=True)
class Check:
    """Check fields of `owner`; every method raises InputError that names the field, the value and what was wanted."""

    owner: object
    where: str
    """Put before the name of the field, such as ``recipe: synthesis.``."""

    def that(self, name: str, wanted: str, holds: bool) -> None:
        """Raise unless `holds`; `wanted` describes a valid value."""
        if not holds:
            raise InputError(f"{self.where}{name} must be {wanted}, got {getattr(self.owner, name)!r}")

    def finite(self, *names: str) -> None:
        """Each field is a finite number."""
        for name in names:
            self.that(name, "a finite number", is_finite(getattr(self.owner, name)))

    def integer(self, *names: str) -> None:
        """Each field is an int."""
        for name in names:
            self.that(name, "an integer", type(getattr(self.owner, name)) is int)

    def at_least(self, lowest: float, *names: str) -> None:
        """Each field is a finite number from `lowest` up."""
        self.finite(*names)
        for name in names:
            self.that(name, f"at least {lowest}", getattr(self.owner, name) >= lowest)

    def above_zero(self, *names: str) -> None:
        """Each field is a finite number above 0."""
        self.finite(*names)
        for name in names:
            self.that(name, "above 0", getattr(self.owner, name) > 0)

    def fraction(self, *names: str) -> None:
        """Each field is a number from 0 to 1."""
        self.finite(*names)
        for name in names:
            self.that(name, "between 0 and 1", 0 <= getattr(self.owner, name) <= 1)

    def decays(self, name: str) -> None:
        """The field is a pair of Adam's decay rates, each in [0, 1)."""
        pair = getattr(self.owner, name)
        inside = len(pair) == 2 and all(is_finite(decay) and 0 <= decay < 1 for decay in pair)
        self.that(name, "two numbers in [0, 1)", inside)

    def one_of(self, name: str, choices: Sequence[str]) -> None:
        """The field is one of some words."""
        self.that(name, f"one of {', '.join(choices)}", getattr(self.owner, name) in choices)


def is_finite(value: object) -> bool:
    """Whether a value is a finite number; booleans are no numbers."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def all_above_zero(values: Sequence[float]) -> bool:
    """Whether there are values and all are finite and above 0."""
    return len(values) > 0 and all(is_finite(value) and value > 0 for value in values)


def is_size_range(pair: Sequence[float]) -> bool:
    """Whether a pair is a range of sizes: both above 0, the smaller one first."""
    return len(pair) == 2 and all_above_zero(pair) and pair[0] <= pair[1]
