"""The first weights of a student that is its teacher with fewer layers: those of the same layers of the teacher."""

from __future__ import annotations

import torch
from torch import nn

from zskd_fast.distillation.pruned_start.layers import Inputs, called_layers, copy_weights, is_same, own_layers
from zskd_fast.models.classifier import Classifier


class FewerLayers:
    """Copies the layers of a teacher to a student that has some of them, as residual networks of one family do.

    The student's layers with weights are, with their options and shapes, some of its teacher's in the order in which
    the models call them. Where several of the teacher's would do, as in the blocks of a stage, it is the first. A layer
    that is called several times has to be the same one of the teacher's each time.
    """

    def __init__(self, sources: dict[nn.Module, nn.Module], layers: int):
        """``sources`` are the teacher's layers by those of the student; the teacher has so many ``layers``."""
        self._sources = sources
        count = len(sources)
        self.description = f"the student's {count} layers are copies of {count} of the teacher's {layers}"
        """For a summary."""
        self.num_inputs = 0

    @classmethod
    def of(cls, teacher: Classifier, student: Classifier) -> FewerLayers | None:
        """Return what sets the weights; None if the student is not its teacher with fewer layers."""
        theirs, mine = called_layers(teacher), called_layers(student)
        if not len(mine) < len(theirs) or set(mine) != set(own_layers(student.model)):
            return None
        rest, sources = iter(theirs), dict[nn.Module, nn.Module]()
        for layer in mine:
            source = next((source for source in rest if is_same(source, layer)), None)
            if source is None or sources.setdefault(layer, source) is not source:
                return None
        return cls(sources, len(set(theirs))) if sources else None

    @torch.no_grad()
    def set_weights(
        self, inputs: Inputs, projection: nn.Module | None = None, *, on_batch: bool = False, shown: bool = False
    ) -> None:
        """Copy the weights; see `PrunedStart`."""
        for layer, source in self._sources.items():
            copy_weights(source, layer)
