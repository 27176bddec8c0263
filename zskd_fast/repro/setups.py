"""The setups that can be repeated: teacher, student, real data, recipe and published accuracies."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.models.user_models import ASSETS, ModelSource

PAPER = "paper: ZSKD"
"""The published figure of the method of this package, by its authors."""

_STUDENT = ModelSource(model="zskd_fast.models:LeNet5Half")
_INPUT = InputSpec((1, 32, 32))


@dataclass(frozen=True)
class Published:
    """A published result on a data set."""

    accuracy: float
    """On the test set, in percent."""
    impressions: int | None = None
    image_steps: int | None = None
    """Impressions times synthesis steps."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A teacher, a student, real data to measure both on, and a recipe."""

    data_set: str
    """Its name in tables."""
    recipe: str
    """Name of a recipe."""
    changes: Mapping[str, object] = field(default_factory=dict)
    """Options of the recipe that differ for this data set."""
    teacher: ModelSource
    """Without weights the user has to give them."""
    student: ModelSource = _STUDENT
    input_spec: InputSpec = _INPUT
    test_data: Path | None = None
    """Folder of the test split that is used unless the user gives another one; None: the user has to give one."""
    published: Mapping[str, Published] = field(default_factory=dict)
    """By source and method."""

    @property
    def title(self) -> str:
        """Data set and models, for tables."""
        return f"{self.data_set}, {self.teacher.name} to {self.student.name}"


_MNIST = Setup(
    data_set="MNIST",
    recipe="fast",
    teacher=ModelSource(model="zskd_fast.models:LeNet5", weights=ASSETS / "lenet5-mnist.safetensors"),
    test_data=ASSETS / "mnist-t10k",
    published={
        "paper: teacher": Published(99.34),
        "paper: student, real data, CE": Published(98.92),
        "paper: student, real data, KD": Published(99.25),
        PAPER: Published(98.77, 24_000, 36_000_000),
        "re-implementations: ZSKD": Published(97.92),
    },
)
_FASHION = Setup(
    data_set="Fashion-MNIST",
    recipe="fast",
    teacher=ModelSource(model="zskd_fast.models:LeNet5", weights=ASSETS / "lenet5-fashion.safetensors"),
    test_data=Path("/usr/share/datasets/fashion-mnist"),  # Debian's package dataset-fashion-mnist
    published={
        "paper: teacher": Published(90.84),
        "paper: student, real data, CE": Published(89.43),
        "paper: student, real data, KD": Published(89.66),
        PAPER: Published(79.62, 48_000, 72_000_000),
    },
)
_RESNET = Setup(
    data_set="CIFAR-10 (JPEG copy)",
    recipe="fast",
    changes={"synthesis.impressions": 2000, "distillation.steps": 5000},
    teacher=ModelSource(model="zskd_fast.models:ResNet20", weights=ASSETS / "resnet20-cifar10.safetensors"),
    student=ModelSource(model="zskd_fast.models:ResNet20Half"),
    input_spec=InputSpec((3, 32, 32)),
)
_ALEXNET = replace(
    _RESNET,
    teacher=ModelSource(model="zskd_fast.models:AlexNet"),
    student=ModelSource(model="zskd_fast.models:AlexNetHalf"),
    published={  # on the original images
        "paper: teacher": Published(83.03),
        "paper: student, real data, CE": Published(80.04),
        "paper: student, real data, KD": Published(80.08),
        PAPER: Published(69.56),
    },
)

SETUPS = {
    "fast-mnist": _MNIST,
    "fast-fashion": _FASHION,
    "fast-cifar10": _RESNET,
    "fast-cifar10-resnet8": replace(_RESNET, student=ModelSource(model="zskd_fast.models:ResNet8")),
    "fast-cifar10-alexnet": _ALEXNET,
    "paper-mnist": replace(_MNIST, recipe="paper"),
    "paper-fashion": replace(_FASHION, recipe="paper", changes={"synthesis.impressions": 48_000}),
}
