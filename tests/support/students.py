"""Small students, distilled in a moment."""

import torch
from small_models import VECTOR, distillation_recipe, vector_classifier
from torch import nn

from zskd_fast.distillation.distiller import Distiller
from zskd_fast.distillation.history import DistillationHistory

# Forward passes of each model before the first step: those of the probe.
PROBED = 2


def vectors(count=16, *, seed=0) -> torch.Tensor:
    """Inputs of a small classifier of 6 values."""
    return torch.rand(count, 6, generator=torch.Generator().manual_seed(seed))


def images(count=16, *, seed=0) -> torch.Tensor:
    """Inputs of a small classifier of 1x8x8 images."""
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def distilled(
    impressions=None, *, student=None, teacher=None, input_spec=VECTOR, seed=1, fit=None, **recipe
) -> tuple[nn.Module, DistillationHistory]:
    """Distill a small student with dropout, or the one given; return it with the history."""
    teacher = vector_classifier() if teacher is None else teacher
    student = vector_classifier(seed=5) if student is None else student
    distiller = Distiller(teacher, student, input_spec, distillation_recipe(**recipe), seed=seed)
    impressions = vectors() if impressions is None else impressions
    return student, distiller.fit(impressions, **{"progress": False} | (fit or {}))


def recorded(module: nn.Module) -> list[torch.Tensor]:
    """Return a list to which every input of the module is appended."""
    inputs: list[torch.Tensor] = []
    module.register_forward_hook(lambda module, args, output: inputs.append(args[0].detach().clone()))
    return inputs


class Stopped(BaseException):
    """Stands for a kill: nothing in the package catches it."""


def stop_at(call: int):
    """An evaluation that stops the run at its nth call."""

    def evaluate(student):
        evaluate.calls += 1
        if evaluate.calls == call:
            raise Stopped
        return 0.25

    evaluate.calls = 0
    return evaluate
