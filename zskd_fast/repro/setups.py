"""What can be repeated: which teacher, student, data and recipe, and what others have published of them."""

from dataclasses import dataclass, field
from pathlib import Path

from zskd_fast.cli.options import Student, Teacher
from zskd_fast.models.loading import ASSETS

__all__ = ["PAPER", "SETUPS", "Published", "Setup"]

PAPER = "paper: ZSKD"
"""Among what is published: the method of this package, by its authors."""

_FASHION_OF_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_STUDENT = Student("zskd_fast.models:LeNet5Half")


@dataclass(frozen=True)
class Published:
    """What others have given of a data set."""

    accuracy: float
    """On the test set, in percent."""
    impressions: int | None = None
    image_steps: int | None = None
    """Impressions times steps of the synthesis."""


@dataclass(frozen=True)
class Setup:
    """A teacher, a student, real data to measure them on, and a recipe; all but the recipe are of one data set."""

    data_set: str
    """Its name in tables."""
    recipe: str
    """Name of a recipe; of the sizes small, medium and large where it holds {size}."""
    teacher: Teacher
    test_data: Path
    """Folder of the test split, where the user names none."""
    student: Student = _STUDENT
    published: dict[str, Published] = field(default_factory=dict)
    """By who and what."""

    def recipe_name(self, size: str) -> str:
        """The recipe of this size."""
        return self.recipe.format(size=size)


_MNIST = {
    "data_set": "MNIST",
    "teacher": Teacher("zskd_fast.models:LeNet5", ASSETS / "lenet5-mnist.safetensors"),
    "test_data": ASSETS / "mnist-t10k",
    "published": {
        "paper: teacher": Published(99.34),
        "paper: student, real data, CE": Published(98.92),
        "paper: student, real data, KD": Published(99.25),
        PAPER: Published(98.77, 24_000, 36_000_000),
        "re-implementations: ZSKD": Published(97.92),
    },
}
_FASHION = {
    "data_set": "Fashion-MNIST",
    "teacher": Teacher("zskd_fast.models:LeNet5", ASSETS / "lenet5-fashion.safetensors"),
    "test_data": _FASHION_OF_DEBIAN,
    "published": {
        "paper: teacher": Published(90.84),
        "paper: student, real data, CE": Published(89.43),
        "paper: student, real data, KD": Published(89.66),
        PAPER: Published(79.62, 48_000, 72_000_000),
    },
}

SETUPS = {
    "fast-mnist": Setup(recipe="fast-{size}", **_MNIST),
    "fast-fashion": Setup(recipe="fast-{size}", **_FASHION),
    "paper-mnist": Setup(recipe="paper-mnist", **_MNIST),
    "paper-fashion": Setup(recipe="paper-fashion", **_FASHION),
}
