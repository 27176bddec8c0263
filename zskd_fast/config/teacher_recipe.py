"""Every number of a teacher's training; free of torch, since the command line reads it first."""

from dataclasses import dataclass

from zskd_fast.errors import InputError

__all__ = ["TeacherRecipe"]


@dataclass(frozen=True)
class TeacherRecipe:
    """AdamW with a one-cycle rate; the defaults made the shipped LeNet-5.

    They move no image: with the demo's recipe, a LeNet-5 trained on moved images taught its student 15 points less.
    """

    epochs: int = 16
    batch_size: int = 128
    max_learning_rate: float = 3e-3
    """Peak of the one-cycle schedule."""
    warm_up_fraction: float = 0.2
    """Share of all steps before the peak."""
    weight_decay: float = 0.1
    """Decoupled from the gradient (AdamW)."""
    label_smoothing: float = 0.0
    rotation_sigma: float = 0.0
    """Standard deviation of the random rotation, in radians."""
    scale_sigma: float = 0.0
    """Standard deviation of the random scale around 1."""
    shift_sigma: float = 0.0
    """Standard deviation of the random shift, as a fraction of half the width."""
    held_out: int = 0
    """Training images kept for validation; their accuracy is printed after each epoch."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.max_learning_rate > 0.0:
            raise InputError(f"max_learning_rate must be positive, got {self.max_learning_rate}")
        if not 0.0 < self.warm_up_fraction < 1.0:
            raise InputError(f"warm_up_fraction must lie between 0 and 1, got {self.warm_up_fraction}")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise InputError(f"label_smoothing must lie in [0, 1), got {self.label_smoothing}")
        for name in ("weight_decay", "rotation_sigma", "scale_sigma", "shift_sigma", "held_out"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} must not be negative, got {getattr(self, name)}")
