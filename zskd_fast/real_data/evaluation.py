"""Accuracy on labeled real images, the only use of test data, and agreement of two classifiers without labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.errors import InputError
from zskd_fast.models.classifier import Classifier, frozen
from zskd_fast.real_data.image_sets import load_folder, to_input


@dataclass(frozen=True)
class TestSet:
    """inputs: float32 [N, *shape] in the raw range of the teacher; labels: int64 [N]; source: their origin."""

    __test__ = False  # pytest takes classes named Test... for tests

    inputs: torch.Tensor
    labels: torch.Tensor
    source: str


def load_test_set(folder: str | Path, input_spec: InputSpec, source: str = "") -> TestSet:
    """Read the test split of a folder as raw inputs of a teacher, zero-padded to its height and width.

    `source` says in words where the images come from (default: the folder).
    Raises InputError if the images do not fit the teacher's input.
    """
    images = load_folder(folder, "test")
    channels = images.images.shape[1]
    if not input_spec.is_image or input_spec.shape[0] != channels or len(set(input_spec.shape[1:])) != 1:
        wanted = list(input_spec.shape)
        raise InputError(f"{folder}: images of {channels} channels do not fit the teacher's input {wanted}")
    low, high = input_spec.valid_range
    inputs = to_input(images.images, input_spec.shape[-1]).mul_(high - low).add_(low)
    return TestSet(inputs, images.labels, source or str(images.source))


def accuracy(classifier: Classifier, inputs: torch.Tensor, labels: torch.Tensor, *, batch_size: int = 1000) -> float:
    """Return the share of rows of `inputs` [N, *shape] whose largest logit is at `labels` [N]; between 0 and 1.

    The model is evaluated in eval mode on its own device. Raises InputError if N = 0.
    """
    if not len(labels):
        raise InputError("accuracy of no images is undefined: got 0 labels, wanted at least 1")
    right = _classes(classifier, inputs, batch_size) == labels.to(classifier.device)
    return right.sum().item() / len(labels)


def agreement(teacher: Classifier, student: Classifier, x: torch.Tensor, *, batch_size: int = 1000) -> float:
    """Return the share of the inputs x[N, *shape] (raw range) that both assign to the same class; between 0 and 1.

    On inputs that the student was not trained on, this compares recipes without any data. Raises InputError if N = 0.
    """
    if not len(x):
        raise InputError("agreement on no inputs is undefined: got 0 rows, wanted at least 1")
    same = _classes(teacher, x, batch_size) == _classes(student, x, batch_size)
    return same.sum().item() / len(x)


def _classes(classifier: Classifier, x: torch.Tensor, batch_size: int) -> torch.Tensor:
    with frozen(classifier.model), torch.no_grad():
        batches = (part.to(classifier.device) for part in x.split(batch_size))
        return torch.cat([classifier.logits(batch).argmax(dim=1) for batch in batches])
