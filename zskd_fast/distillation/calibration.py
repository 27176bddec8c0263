"""Calibration of the student's batch normalization: running statistics that fit real inputs."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from zskd_fast.models.classifier import Classifier, modes_kept
from zskd_fast.store.mapped_rows import MappedRows
from zskd_fast.synthesis.batch_norm import batch_norms

# Impressions that are enough for a mean and a variance per channel.
_ROWS = 1024


@torch.no_grad()
def calibrate(student: Classifier, x: torch.Tensor | MappedRows, batch_size: int) -> None:
    """Set the running statistics of the student, which is in train mode, to those of the first impressions x.

    x is [N, *shape] with N >= 2. In training the running statistics follow augmented inputs and noise, which are unlike
    real inputs. Impressions that were made with the statistics prior have the teacher's statistics, so a student that
    answers like it has on them about those that it would have on real data. Layers in eval mode keep theirs. A later
    training step does not depend on the running statistics.
    """
    layers = [layer for layer in batch_norms(student.model) if layer.training]
    with modes_kept(student.model), _averaging(layers):
        student.model.eval()  # no dropout
        for layer in layers:
            layer.train()
        for rows in torch.arange(min(len(x), _ROWS)).split(max(batch_size, 2)):
            if len(rows) > 1:  # one row of features has no variance
                student.logits(x[rows].to(student.device))


@contextlib.contextmanager
def _averaging(layers: Sequence[nn.modules.batchnorm._BatchNorm]) -> Iterator[None]:
    """Make the running statistics of the layers, which are forgotten first, the mean over all batches inside."""
    momenta = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
