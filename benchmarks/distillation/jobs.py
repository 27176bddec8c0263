"""The pairs of teacher and student that are timed, split for the plain loop into features and last layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.distillation.plain_loop import Split, share_tail, use_batch_statistics
from zskd_fast.config.input_spec import InputSpec
from zskd_fast.models import AlexNet, AlexNetHalf, LeNet5, LeNet5Half, ResNet8, ResNet20


@dataclass(frozen=True)
class Pair:
    """Two models with random weights."""

    teacher: Callable[[], nn.Module]
    student: Callable[[], nn.Module]
    input_spec: InputSpec
    split: Callable[[Any], Split]
    """Takes either model apart where the student takes over the teacher's last layers."""
    steps: int
    """Student steps of one timed call."""

    def models(self, device: str = "cpu") -> tuple[nn.Module, nn.Module]:
        """Return teacher and student, the same at each call."""
        torch.manual_seed(0)
        return self.teacher().to(device).eval(), self.student().to(device)

    def split_models(self, teacher: nn.Module, student: nn.Module, seed: int = 0) -> tuple[Split, Split]:
        """Return both in the form that the plain loop trains; they are changed by it."""
        student.train()
        for module in student.modules():
            if isinstance(module, nn.Dropout):  # as in the recipe, off while the student learns
                module.eval()
        parts = self.split(teacher.eval().requires_grad_(False)), self.split(student)
        use_batch_statistics(parts[0])
        share_tail(*parts, seed)
        return parts


def _split_lenet(model: Any) -> Split:
    return Split(nn.Sequential(model.features, *model.classifier[:2]), model.classifier[2:])


def _split_alexnet(model: Any) -> Split:
    return Split(nn.Sequential(model.features, *model.classifier[:-1]), model.classifier[-1])


def _split_resnet(model: Any) -> Split:
    return Split(model.features, nn.Sequential(model.pool, model.classifier))


_GRAY, _COLOR = InputSpec((1, 32, 32)), InputSpec((3, 32, 32))
PAIRS = {
    "LeNet-5 to LeNet-5-Half": Pair(LeNet5, LeNet5Half, _GRAY, _split_lenet, 100),
    "AlexNet to AlexNetHalf": Pair(AlexNet, AlexNetHalf, _COLOR, _split_alexnet, 3),
    "ResNet-20 to ResNet-8": Pair(ResNet20, ResNet8, _COLOR, _split_resnet, 5),
}
