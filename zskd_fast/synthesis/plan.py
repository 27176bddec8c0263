"""The plan: which impression has which class and which concentration scale beta."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from zskd_fast.errors import InputError


@dataclass(frozen=True)
class Plan:
    """Map the id of an impression to its class and its beta, so that any prefix of the ids is balanced.

    class = id mod K and beta = betas[(id div K) mod len(betas)]: the classes take turns, and after each round of all
    classes the next beta has its turn. With betas (1.0, 0.1) half of the impressions get each (section 3.3 of the
    paper). Raises InputError for fewer than two classes or a beta that is not above 0.
    """

    num_classes: int
    betas: Sequence[float]

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(float(beta) for beta in self.betas))
        if self.num_classes < 2:
            raise InputError(f"a plan needs at least 2 classes, got {self.num_classes}")
        if not self.betas or not all(0 < beta < float("inf") for beta in self.betas):
            raise InputError(f"betas must be one or more finite numbers above 0, got {self.betas}")

    def class_of(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the class of each impression: ids[N] int64 -> [N] int64."""
        return ids % self.num_classes

    def beta_of(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the beta of each impression: ids[N] int64 -> [N] float32."""
        betas = torch.tensor(self.betas, dtype=torch.float32, device=ids.device)
        return betas[(ids // self.num_classes) % len(self.betas)]
