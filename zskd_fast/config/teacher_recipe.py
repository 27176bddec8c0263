"""Every number of a teacher's training; free of torch, since the command line reads it first."""

from dataclasses import dataclass

from zskd_fast.config.checks import Check


@dataclass(frozen=True)
class TeacherRecipe:
    """AdamW with a one-cycle schedule; the defaults trained the shipped LeNet-5 teachers.

    The defaults do not move the images: with the demo's recipe, the student of a LeNet-5 that was trained on moved
    images scored 15 points less.
    """

    epochs: int = 16
    """Passes over the training images."""
    batch_size: int = 128
    """Images per step."""
    max_learning_rate: float = 3e-3
    """Peak learning rate of the one-cycle schedule (AdamW)."""
    warmup_fraction: float = 0.2
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = 0.1
    """Weight decay of AdamW."""
    label_smoothing: float = 0.0
    """Share of each label that is spread evenly over all classes."""
    rotation_sigma: float = 0.0
    """Standard deviation of the rotation angle of an image, in radians."""
    scale_sigma: float = 0.0
    """Standard deviation of the scale of an image, around 1."""
    shift_sigma: float = 0.0
    """Standard deviation of the shift along each axis, as a fraction of half the width."""
    flip_probability: float = 0.0
    """Probability that an image is mirrored left to right; 0.5 suits photographs, not digits."""
    held_out: int = 0
    """Number of training images held out for validation; their accuracy is printed after each epoch."""

    def __post_init__(self) -> None:
        check = Check(self, "")
        check.at_least(1, "epochs", "batch_size")
        check.above_zero("max_learning_rate")
        check.at_least(0, "weight_decay", "rotation_sigma", "scale_sigma", "shift_sigma", "held_out")
        check.that("warmup_fraction", "between 0 and 1, both excluded", 0 < self.warmup_fraction < 1)
        check.fraction("flip_probability")
        check.that("label_smoothing", "in [0, 1)", 0 <= self.label_smoothing < 1)
