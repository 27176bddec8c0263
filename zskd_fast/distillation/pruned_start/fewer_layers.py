"""The first weights of a student that is its teacher with fewer layers: those of the same layers of the teacher."""

from __future__ import annotations

import torch
from torch import nn

from zskd_fast.distillation.pruned_start.layers import Inputs, called_layers, is_frozen, is_same, own_layers
from zskd_fast.models.classifier import Classifier


class FewerLayers:
    """Copies the layers of a teacher to a student that has some of them, as residual networks of one family do.

    The student's layers with weights are, with their options and shapes, some of its teacher's in the order in which
    the models call them. Where several of the teacher's would do, as in the blocks of a stage, it is the first.
    """

    def __init__(self, pairs: list[tuple[nn.Module, nn.Module]], layers: int):
        """``layers`` is the number of the teacher's."""
        self._pairs = pairs
        self.description = f"the student's {len(pairs)} layers are copies of {len(pairs)} of the teacher's {layers}"
        """For a summary."""
        self.num_inputs = 0

    @classmethod
    def of(cls, teacher: Classifier, student: Classifier) -> FewerLayers | None:
        """Return what sets the weights; None if the student is not its teacher with fewer layers."""
        theirs, mine = called_layers(teacher), called_layers(student)
        if not 0 < len(mine) < len(theirs) or len(mine) < len(own_layers(student.model)):
            return None
        rest, pairs = iter(theirs), []
        for layer in mine:
            source = next((source for source in rest if is_same(source, layer)), None)
            if source is None:
                return None
            pairs.append((source, layer))
        return cls(pairs, len(theirs))

    @torch.no_grad()
    def set_weights(
        self,
        teacher: Classifier,
        student: Classifier,
        inputs: Inputs,
        projection: nn.Module | None = None,
    ) -> None:
        """Copy the weights; see `PrunedStart`."""
        for source, layer in self._pairs:
            if not is_frozen(layer):
                own = dict(source.named_parameters(recurse=False))
                for name, parameter in layer.named_parameters(recurse=False):
                    parameter.copy_(own[name])
