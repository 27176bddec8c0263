"""The batches of a distillation: stored impressions in a shuffled order, and fresh noise among them."""

from dataclasses import dataclass

import torch

from zskd_fast import ops
from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.recipe import DistillationRecipe
from zskd_fast.distillation.augmentation import augment
from zskd_fast.runtime import seeds
from zskd_fast.runtime.processes import World
from zskd_fast.store.mapped_rows import MappedRows
from zskd_fast.synthesis.start_noise import start_noise

_ALONE = World()


@dataclass(frozen=True)
class Drawn:
    """What a process's share of one step's batch is made of."""

    positions: torch.Tensor
    """[n] int64: places of its rows in the run, from which all their random numbers come."""
    rows: torch.Tensor
    """[m] int64: its impressions; m < n where the recipe adds fresh noise."""
    stored: torch.Tensor
    """[m, *shape] float32: these impressions."""


@dataclass(frozen=True)
class Batch:
    """A process's share of one step's batch."""

    x: torch.Tensor
    """[n, *shape] float32, augmented, in the raw range."""
    rows: torch.Tensor
    """[m] int64: the impressions it was made from."""


class Batches:
    """Give the batch of any step; it depends on (seed, step) only, so a resumed run sees the same batches.

    Each process of the world has its share of a batch: shares differ by at most one impression and one input of fresh
    noise, and by at most one row in all. Every input of fresh noise is used only once; it comes from (seed, position in
    the run).
    """

    def __init__(
        self,
        x: torch.Tensor | MappedRows,
        recipe: DistillationRecipe,
        input_spec: InputSpec,
        *,
        seed: int,
        device: torch.device,
        world: World = _ALONE,
    ):
        self._x, self._recipe, self._spec = x, recipe, input_spec
        self._seed, self._device = seed, device
        self._order = _SampleOrder(len(x), seed, device)
        share = _Share.of(recipe, world)
        self._num_stored = share.num_stored
        # Indices, not masks: on a GPU the host would wait for a mask in each step.
        self._share = share.rows.to(device)
        self._stored_rows = (~share.is_fresh).nonzero()[:, 0].to(device)
        self._fresh_rows = share.is_fresh.nonzero()[:, 0].to(device)
        # Which of the step's impressions this process takes.
        self._taken = torch.arange(share.num_stored, device=device)[world.rank :: world.size]

    def of(self, step: int) -> Batch:
        """Return this process's share of the batch of a step."""
        drawn = self.drawn(step)
        return Batch(self.augmented(drawn.positions, drawn.stored), drawn.rows)

    def drawn(self, step: int) -> Drawn:
        """Return what that share is made of."""
        positions = self._share + step * self._recipe.batch_size
        rows = self._order.rows(step * self._num_stored, (step + 1) * self._num_stored)[self._taken]
        return Drawn(positions, rows, self._x[rows])

    def augmented(self, positions: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
        """Return the inputs made of what was drawn, [n, *shape] float32: with fresh noise among them, augmented."""
        x = self._with_fresh_noise(positions, stored)
        return augment(x, positions, self._recipe.augmentation, seed=self._seed, input_spec=self._spec)

    def _with_fresh_noise(self, positions: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
        if not len(self._fresh_rows):
            return stored
        x = torch.empty((len(positions), *self._spec.shape), dtype=torch.float32, device=self._device)
        x[self._stored_rows] = stored
        x[self._fresh_rows] = start_noise(
            positions[self._fresh_rows],
            self._recipe.fresh_noise,
            self._spec,
            seed=self._seed,
            stream=seeds.FRESH_NOISE,
            clamp=True,
        )
        return x


@dataclass(frozen=True)
class _Share:
    """The rows of a batch that a process takes, in the order in which they are mixed with one another."""

    rows: torch.Tensor
    """[n] int64: places in the batch."""
    is_fresh: torch.Tensor
    """[n] bool: whether a row is fresh noise, evenly spread, since a row is mixed with the next."""
    num_stored: int
    """Impressions in the batches of all processes together."""

    @classmethod
    def of(cls, recipe: DistillationRecipe, world: World) -> "_Share":
        """Deal the impressions, then the fresh noise to the processes in turn; a process alone takes the batch."""
        in_batch = _spread(recipe.fresh_noise.count(recipe.batch_size), recipe.batch_size)
        all_stored, all_fresh = (~in_batch).nonzero()[:, 0], in_batch.nonzero()[:, 0]
        stored = all_stored[world.rank :: world.size]
        fresh = all_fresh[(world.rank - len(all_stored)) % world.size :: world.size]
        is_fresh = _spread(len(fresh), len(stored) + len(fresh))
        rows = torch.empty(len(is_fresh), dtype=torch.int64)
        rows[~is_fresh], rows[is_fresh] = stored, fresh
        return cls(rows, is_fresh, len(all_stored))


class _SampleOrder:
    """The impression that each position uses: per epoch a permutation from (seed, epoch) only.

    Batches continue over the end of an epoch, so that every impression is used equally often.
    """

    def __init__(self, count: int, seed: int, device: torch.device):
        self._count = count
        self._seed = seed
        self._device = device
        self._epoch = -1
        self._permutation = torch.empty(0, dtype=torch.int64)

    def rows(self, first: int, last: int) -> torch.Tensor:
        """Return the rows for the positions first .. last-1: int64 on the device."""
        parts = [torch.empty(0, dtype=torch.int64, device=self._device)]
        while first < last:
            epoch, offset = divmod(first, self._count)
            parts.append(self._of_epoch(epoch)[offset : offset + last - first])
            first += len(parts[-1])
        return torch.cat(parts)

    def _of_epoch(self, epoch: int) -> torch.Tensor:
        if epoch != self._epoch:
            # float64, in which two of the sort keys are almost never equal.
            epoch_id = torch.tensor([epoch], device=self._device)
            keys = ops.philox(epoch_id, self._count, seed=self._seed, stream=seeds.EPOCH_ORDER, dtype=torch.float64)
            self._epoch, self._permutation = epoch, keys[0].argsort(stable=True)
        return self._permutation


def _spread(count: int, size: int) -> torch.Tensor:
    """Mark ``count`` of ``size`` rows, evenly spread: bool [size]."""
    rows = torch.arange(size)
    return (rows + 1) * count // size > rows * count // size
