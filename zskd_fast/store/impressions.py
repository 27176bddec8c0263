"""The record of a set of impressions: inputs, targets and teacher logits stay together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Impressions:
    """N impressions with all that is known about each; every tensor has N rows, on one device."""

    x: torch.Tensor
    """[N, *shape] float32, in the raw range of the input (not normalized); a store may keep it in 16 bits."""
    target: torch.Tensor
    """[N, K] float32: the Dirichlet draw for which the impression was optimized."""
    teacher_logits: torch.Tensor
    """[N, K] float32: the teacher's logits for x."""
    id: torch.Tensor
    """[N] int64: global index of the impression."""
    class_index: torch.Tensor
    """[N] int64: the class whose similarities shaped the target."""
    beta: torch.Tensor
    """[N] float32: scale of the concentration."""
    loss: torch.Tensor
    """[N] float32: cross-entropy of the teacher's tempered softmax of x with the target, without priors."""
    steps: torch.Tensor
    """[N] int64: Adam steps that made x."""

    def __len__(self) -> int:
        return len(self.id)

    def __getitem__(self, rows: slice | torch.Tensor) -> Impressions:
        return Impressions(**{name: tensor[rows] for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors by field name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def to(self, device: torch.device | str) -> Impressions:
        """Return the same impressions on another device."""
        return Impressions(**{name: tensor.to(device) for name, tensor in self.tensors().items()})

    @staticmethod
    def concatenate(parts: Sequence[Impressions]) -> Impressions:
        """Return all rows of the parts, in order."""
        columns = [part.tensors() for part in parts]
        return Impressions(**{name: torch.cat([column[name] for column in columns]) for name in columns[0]})
