"""How good a student is: on labelled real images, the only use of test data, and against its teacher without any."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.errors import InputError
from zskd_fast.models.classifier import Classifier, frozen
from zskd_fast.real_data.images import load_folder, to_input

__all__ = ["TestSet", "accuracy", "agreement", "load_test_set"]


@dataclass(frozen=True)
class TestSet:
    """inputs: float32 [N, *shape] in the raw range of the teacher; labels: int64 [N]; source: where from."""

    __test__ = False  # not a test of pytest

    inputs: torch.Tensor
    labels: torch.Tensor
    source: str


def load_test_set(folder: str | Path, input_spec: InputSpec, source: str = "") -> TestSet:
    """Read the test split of a folder as raw inputs of a teacher, zero-padded to its height and width.

    `source` says in words where the images come from; by default it is the folder.
    Raises InputError when the images do not fit the teacher's input.
    """
    images = load_folder(folder, "test")
    channels = images.images.shape[1]
    if not input_spec.is_image or input_spec.shape[0] != channels or len(set(input_spec.shape[1:])) != 1:
        wanted = list(input_spec.shape)
        raise InputError(f"{folder}: images of {channels} channels do not fit the teacher's input {wanted}")
    low, high = input_spec.valid_range
    inputs = to_input(images.images, input_spec.shape[-1]).mul_(high - low).add_(low)
    return TestSet(inputs, images.labels, source or str(images.source))


def accuracy(
    model: nn.Module,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    *,
    forward: Callable[[torch.Tensor], torch.Tensor] | None = None,
    batch_size: int = 1000,
) -> float:
    """Share of rows of `inputs` [N, ...] whose largest logit is at `labels` [N]; between 0 and 1.

    `forward` gives the logits if calling the model does not. The model is in eval mode meanwhile and as it
    was afterwards; batches go to the device of its first parameter. Raises InputError without any rows.
    """
    if not len(labels):
        raise InputError("accuracy of no images is undefined: got 0 labels, wanted at least 1")
    first = next(model.parameters(), None)
    device = inputs.device if first is None else first.device
    correct = torch.zeros((), dtype=torch.int64, device=device)
    with frozen(model), torch.no_grad():
        for x, y in zip(inputs.split(batch_size), labels.split(batch_size), strict=True):
            correct += ((forward or model)(x.to(device)).argmax(dim=1) == y.to(device)).sum()
    return correct.item() / len(labels)


def agreement(teacher: Classifier, student: Classifier, x: torch.Tensor, *, batch_size: int = 1000) -> float:
    """Share of the inputs x[N, *shape] (raw range) to which both give the same class; between 0 and 1.

    On inputs that the student has not seen it tells recipes apart without any data. Raises InputError without rows.
    """
    if not len(x):
        raise InputError("agreement on no inputs is undefined: got 0 rows, wanted at least 1")
    same = torch.zeros((), dtype=torch.int64, device=x.device)
    with frozen(teacher.model), frozen(student.model), torch.no_grad():
        for part in x.split(batch_size):
            same += (teacher.logits(part).argmax(dim=1) == student.logits(part).argmax(dim=1)).sum()
    return same.item() / len(x)
