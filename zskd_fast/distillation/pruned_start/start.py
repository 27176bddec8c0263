"""The choice of a student's first weights."""

from __future__ import annotations

from typing import Protocol

from torch import nn

from zskd_fast.distillation.pruned_start.fewer_channels import FewerChannels
from zskd_fast.distillation.pruned_start.fewer_layers import FewerLayers
from zskd_fast.distillation.pruned_start.layers import Inputs
from zskd_fast.models.classifier import Classifier


class PrunedStart(Protocol):
    """Sets the weights of a student before it learns, from those of its teacher."""

    description: str
    """Where they come from, for a summary."""
    num_inputs: int
    """Inputs that are needed; 0 if nothing is fitted."""

    def set_weights(
        self, inputs: Inputs, projection: nn.Module | None = None, *, on_batch: bool = False, shown: bool = False
    ) -> None:
        """Set the weights of the student, which is in train mode; a layer with a frozen parameter keeps its own.

        ``projection`` takes the place of the student's last layer and is fitted to the input of the teacher's, where
        anything is fitted. ``on_batch`` fits to what the teacher gives on the statistics of each batch. ``shown`` shows
        a progress bar where it takes more than some seconds.
        """


def pruned_start(teacher: Classifier, student: Classifier) -> PrunedStart | None:
    """Return what sets the weights of a student that is its teacher pruned; None for any other student."""
    return FewerChannels.of(teacher, student) or FewerLayers.of(teacher, student)
