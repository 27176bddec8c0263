"""Least squares over the inputs of a layer's units, and the choice of the channels to keep."""

from __future__ import annotations

import torch
import torch.nn.functional as F

_RIDGE = 1e-6  # relative to the variance of an input


class Moments:
    """Sums over rows u[S, n], each with a constant 1 behind it, of their products with one another and with targets."""

    def __init__(self) -> None:
        self._products = self._with_targets = torch.zeros((), dtype=torch.float64)

    def add(self, u: torch.Tensor, targets: torch.Tensor | None = None) -> None:
        u = F.pad(u.float(), (0, 1), value=1.0)
        self._products = self._products + (u.T @ u).double()
        if targets is not None:
            self._with_targets = self._with_targets + (u.T @ targets.float()).double()

    def covariance(self) -> torch.Tensor:
        products = self._products / self._products[-1, -1]
        return products[:-1, :-1] - products[:-1, -1:] * products[-1:, :-1]

    def fitted(self, *, has_bias: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weights [targets, n] and the bias of the least squares fit."""
        rows = self._products[-1, -1]
        with_targets = self._with_targets / rows
        if not has_bias:
            weight = torch.linalg.solve(_with_ridge(self._products[:-1, :-1] / rows), with_targets[:-1]).T
            return weight, weight.new_zeros(len(weight))
        mean, mean_target = self._products[-1, :-1] / rows, with_targets[-1]
        together = with_targets[:-1] - mean[:, None] * mean_target
        weight = torch.linalg.solve(_with_ridge(self.covariance()), together).T
        return weight, mean_target - weight @ mean


def kept_channels(readers: list[tuple[torch.Tensor, torch.Tensor]], channels: int, wanted: int) -> torch.Tensor:
    """Return which ``wanted`` of some channels to keep, in order.

    ``readers`` are the layers that are given them: the covariance of its inputs, of which each channel gives as many,
    and the weight [units, inputs]. Channels are dropped one at a time: always the one whose loss least increases the
    error of what the readers give, computed from the remaining ones by least squares (as for single weights in Hassibi
    and Stork, NIPS 1992), relative to its variance.
    """
    eliminations = [_Elimination(covariance, weight, channels) for covariance, weight in readers]
    left = torch.ones(channels, dtype=torch.bool, device=readers[0][1].device)
    for _ in range(channels - wanted):
        cost = sum(each.costs(left) for each in eliminations)
        assert isinstance(cost, torch.Tensor)
        cost[~left] = torch.inf
        dropped = int(cost.argmin())
        left[dropped] = False
        for each in eliminations:
            each.drop(dropped)
    return left.nonzero()[:, 0]


class _Elimination:
    """The least squares fit of what a layer gives to the channels that are left of those that it is given."""

    def __init__(self, covariance: torch.Tensor, weight: torch.Tensor, channels: int) -> None:
        self._inverse = torch.linalg.inv(_with_ridge(covariance))
        self._fitted = weight.T.to(torch.float64, copy=True)
        self._size = len(covariance) // channels
        self._variance = ((covariance @ self._fitted) * self._fitted).sum().clamp_min(1e-30)
        self._change = torch.empty_like(self._inverse)  # the first use of new memory takes longer than a product

    def costs(self, left: torch.Tensor) -> torch.Tensor:
        """Return how much the loss of each channel that is left adds to the relative error."""
        channels, size = len(left), self._size
        if size == 1:
            return self._fitted.square().sum(1) / self._inverse.diagonal() / self._variance
        diagonal = torch.arange(channels, device=left.device)
        blocks = self._inverse.reshape(channels, size, channels, size)[diagonal, :, diagonal]
        blocks[~left] = torch.eye(size, dtype=blocks.dtype, device=blocks.device)
        rows = self._fitted.reshape(channels, size, -1)
        return (rows * torch.linalg.solve(blocks, rows)).sum((1, 2)) / self._variance

    def drop(self, channel: int) -> None:
        at = slice(channel * self._size, (channel + 1) * self._size)
        column = torch.linalg.solve(self._inverse[at, at], self._inverse[at]).T
        self._fitted -= column @ self._fitted[at]
        self._inverse -= torch.mm(column, self._inverse[at], out=self._change)


def _with_ridge(products: torch.Tensor) -> torch.Tensor:
    variance = products.diagonal()
    return products + torch.diag(_RIDGE * variance.clamp_min(1e-9 * variance.max()).clamp_min(1e-30))
