"""What can be repeated: which teacher, student, data and recipe, and what others have published of them."""

from dataclasses import dataclass, field
from pathlib import Path

from zskd_fast.loading import ASSETS
from zskd_fast.options import Student, Teacher

__all__ = ["SETUPS", "Setup"]

_FASHION_OF_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_STUDENT = Student("zskd_fast.models:LeNet5Half")


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
    published: dict[str, float] = field(default_factory=dict)
    """Test accuracies in percent that others have given, by who and what."""

    def recipe_name(self, size: str) -> str:
        """The recipe of this size."""
        return self.recipe.format(size=size)


_MNIST = {
    "data_set": "MNIST",
    "teacher": Teacher("zskd_fast.models:LeNet5", ASSETS / "lenet5-mnist.safetensors"),
    "test_data": ASSETS / "mnist-t10k",
    "published": {
        "paper: teacher": 99.34,
        "paper: student, real data, CE": 98.92,
        "paper: student, real data, KD": 99.25,
        "paper: ZSKD": 98.77,
        "re-implementations: ZSKD": 97.92,
    },
}
_FASHION = {
    "data_set": "Fashion-MNIST",
    "teacher": Teacher("zskd_fast.models:LeNet5", ASSETS / "lenet5-fashion.safetensors"),
    "test_data": _FASHION_OF_DEBIAN,
    "published": {
        "paper: teacher": 90.84,
        "paper: student, real data, CE": 89.43,
        "paper: student, real data, KD": 89.66,
        "paper: ZSKD": 79.62,
    },
}

SETUPS = {
    "fast-mnist": Setup(recipe="fast-{size}", **_MNIST),
    "fast-fashion": Setup(recipe="fast-{size}", **_FASHION),
    "paper-mnist": Setup(recipe="paper-mnist", **_MNIST),
    "paper-fashion": Setup(recipe="paper-fashion", **_FASHION),
}
