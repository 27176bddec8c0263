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
    """Wall-clock time of this call."""
    phase_seconds: dict[str, float]
    """Wall-clock time per phase."""
    notes: dict[str, str]
    """What followed from the two models, by caption: the first weights, the layers taken over, the use of batch
    normalization, and dropout that was off."""
