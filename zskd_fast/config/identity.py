"""Identities: all that an impression, or a student, depends on.

Two runs with equal identities give equal results. How many impressions a store holds, and how fast they are made, is no
part of what an impression depends on, so a store can be extended and made on any number of threads.
"""

from dataclasses import dataclass

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.recipe import DistillationRecipe, ImpressionRecipe


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """A model, told apart from others by its weights."""

    name: str
    """Name of its class."""
    sha256: str
    """SHA-256 over name, dtype, shape and bytes of every parameter and buffer."""


@dataclass(frozen=True, kw_only=True)
class ImpressionIdentity:
    """All that an impression depends on, besides its id."""

    seed: int
    input: InputSpec
    teacher: ModelIdentity
    layer: str
    """Name of the teacher's classifier layer, or the hash of the weight matrix given in its place."""
    num_classes: int
    recipe: ImpressionRecipe


@dataclass(frozen=True, kw_only=True)
class StudentIdentity:
    """All that a student depends on, besides the impressions that it learns from."""

    seed: int
    input: InputSpec
    teacher: ModelIdentity
    student: ModelIdentity
    """The student before its first step."""
    recipe: DistillationRecipe


@dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """All that the result of a run depends on."""

    impressions: ImpressionIdentity
    num_impressions: int
    student: StudentIdentity
