"""Calibration of the student's batch normalization: running statistics that fit real inputs."""

import torch

from zskd_fast.models.classifier import Classifier, modes_kept
from zskd_fast.store.mapped_rows import MappedRows
from zskd_fast.synthesis.batch_norm import batch_norms

# Impressions that are enough for a mean and a variance per channel.
_ROWS = 1024


@torch.no_grad()
def calibrate(student: Classifier, x: torch.Tensor | MappedRows, batch_size: int) -> None:
    """Set the running statistics of the student, which is in train mode, to those of the first impressions x.

    x is [N, *shape]. In training the running statistics follow augmented inputs and noise, which are unlike real
    inputs. Impressions that were made with the statistics prior have the teacher's statistics, so a student that
    answers like it has on them about those that it would have on real data. Layers in eval mode keep theirs. A later
    training step does not depend on the running statistics.
    """
    layers = [layer for layer in batch_norms(student.model) if layer.training]
    momenta = [layer.momentum for layer in layers]
    with modes_kept(student.model):
        student.model.eval()  # no dropout
        for layer in layers:
            layer.train().reset_running_stats()
            layer.momentum = None  # the mean over all batches
        for first in range(0, min(len(x), _ROWS), batch_size):
            rows = torch.arange(first, min(first + batch_size, len(x), _ROWS))
            if len(rows) > 1 or first == 0:
                student.logits(x[rows].to(student.device))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
