"""The result of a distillation, besides the student."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DistillationHistory:
    """The course of a call of ``Distiller.fit``."""

    loss: list[float]
    """Loss of each step."""
    learning_rate: list[float]
    """Learning rate of each step."""
    evaluations: list[tuple[int, float]]
    """(steps done, value of ``evaluate``), in order."""
    seconds: float
    """Wall-clock time, of the interrupted calls before this one too, as far as their last checkpoint."""
    phase_seconds: dict[str, float]
    """Wall-clock time per phase, likewise."""
    notes: dict[str, str]
    """What followed from the two models, by caption: the first weights, the layers taken over, the use of batch
    normalization, and dropout that was off."""
