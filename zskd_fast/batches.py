"""The batches of a distillation: stored impressions in a shuffled order, and fresh noise among them."""

from dataclasses import dataclass

import torch

from zskd_fast import ops, streams
from zskd_fast.augment import augment
from zskd_fast.distributed import World
from zskd_fast.input_spec import InputSpec
from zskd_fast.mapped_rows import MappedRows
from zskd_fast.recipe import DistillationRecipe
from zskd_fast.start_noise import start_noise


@dataclass(frozen=True)
class Batch:
    """A process's share of one step's batch."""

    x: torch.Tensor
    """[n, *shape] float32, augmented, in the raw range."""
    rows: torch.Tensor
    """[m] int64: which impressions it was made from; m < n where the recipe adds fresh noise."""


class Batches:
    """Step by step the same batches for the same seed, whatever came before: a resumed run sees them again.

    Of fresh noise every input is used once only; each comes from (seed, place in the run).
    """

    def __init__(
        self,
        x: torch.Tensor | MappedRows,
        recipe: DistillationRecipe,
        input_spec: InputSpec,
        *,
        seed: int,
        device: torch.device,
    ):
        self._x, self._recipe, self._spec = x, recipe, input_spec
        self._seed, self._device = seed, device
        self._order = _SampleOrder(len(x), seed, device)
        self._is_fresh = _spread(recipe.fresh.count(recipe.batch_size), recipe.batch_size).to(device)
        self._stored = recipe.batch_size - int(self._is_fresh.sum())

    def of(self, step: int, world: World) -> Batch:
        """The share that this process has of the batch of a step."""
        size = self._recipe.batch_size
        positions = torch.arange(step * size, (step + 1) * size, device=self._device)
        rows = torch.empty_like(positions)
        rows[~self._is_fresh] = self._order.rows(step * self._stored, (step + 1) * self._stored)
        mine = slice(world.rank, None, world.size)
        positions, rows, is_fresh = positions[mine], rows[mine], self._is_fresh[mine]
        x, rows = self._inputs(positions, rows, is_fresh), rows[~is_fresh]
        x = augment(x, positions, self._recipe.augmentation, seed=self._seed, input_spec=self._spec)
        return Batch(x, rows)

    def _inputs(self, positions, rows, is_fresh):
        if self._stored == self._recipe.batch_size:
            return self._x[rows]
        x = torch.empty((len(rows), *self._spec.shape), device=self._device)
        x[~is_fresh] = self._x[rows[~is_fresh]]
        start, stream = self._recipe.fresh.start, streams.FRESH_NOISE
        noise = start_noise(positions[is_fresh], start, self._spec, seed=self._seed, stream=stream)
        x[is_fresh] = noise.clamp_(*self._spec.valid_range)
        return x


class _SampleOrder:
    """Which impression each position of the run uses: per epoch a permutation from (seed, epoch) alone.

    Batches run on over the end of an epoch, so that every impression is used equally often.
    """

    def __init__(self, count, seed, device):
        self._count = count
        self._seed = seed
        self._device = device
        self._epoch, self._permutation = -1, None

    def rows(self, first, last):
        """Rows for the positions first .. last-1: int64 on the device."""
        parts = [torch.empty(0, dtype=torch.int64, device=self._device)]
        while first < last:
            epoch, offset = divmod(first, self._count)
            parts.append(self._of_epoch(epoch)[offset : offset + last - first])
            first += len(parts[-1])
        return torch.cat(parts)

    def _of_epoch(self, epoch):
        if epoch != self._epoch:
            # float64, in which two of the keys are hardly ever equal.
            epoch_id = torch.tensor([epoch], device=self._device)
            keys = ops.philox(
                epoch_id, self._count, seed=self._seed, stream=streams.EPOCH_ORDER, dtype=torch.float64
            )
            self._epoch, self._permutation = epoch, keys[0].argsort(stable=True)
        return self._permutation


def _spread(count, size):
    """``count`` of ``size`` places, evenly spread: a row is mixed with the next, and processes take rows in turns."""
    places = torch.arange(size)
    return (places + 1) * count // size > places * count // size
