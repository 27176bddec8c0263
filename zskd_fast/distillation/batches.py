"""The batches of a distillation: stored impressions in a shuffled order, and fresh noise among them."""

from dataclasses import dataclass

import torch

from zskd_fast import ops
from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.recipe import DistillationRecipe
from zskd_fast.distillation.augmentation import augment
from zskd_fast.runtime import seeds as streams
from zskd_fast.runtime.processes import World
from zskd_fast.store.mapped_rows import MappedRows
from zskd_fast.synthesis.start_noise import start_noise

_ALONE = World()


@dataclass(frozen=True)
class Batch:
    """A process's share of one step's batch."""

    x: torch.Tensor
    """[n, *shape] float32, augmented, in the raw range."""
    rows: torch.Tensor
    """[m] int64: which impressions it was made from; m < n where the recipe adds fresh noise."""


class Batches:
    """Step by step the same batches for the same seed, whatever came before: a resumed run sees them again.

    Each process of the world has its share of them. Of fresh noise every input is used once only; each comes from
    (seed, place in the run).
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
        is_fresh = _spread(recipe.fresh.count(recipe.batch_size), recipe.batch_size)
        self._stored = int((~is_fresh).sum())
        # As places, not as masks: on a GPU the host would have to wait for a mask in each step.
        mine = torch.arange(world.rank, recipe.batch_size, world.size)
        self._mine = mine.to(device)
        stored_places = (~is_fresh[mine]).nonzero()[:, 0]
        self._stored_places = stored_places.to(device)
        self._fresh_places = is_fresh[mine].nonzero()[:, 0].to(device)
        # Of the impressions that a step uses, which this process takes.
        self._taken = ((~is_fresh).cumsum(0) - 1)[mine[stored_places]].to(device)

    def of(self, step: int) -> Batch:
        """The share that this process has of the batch of a step."""
        positions = self._mine + step * self._recipe.batch_size
        rows = self._order.rows(step * self._stored, (step + 1) * self._stored)[self._taken]
        x = self._inputs(positions, rows)
        x = augment(x, positions, self._recipe.augmentation, seed=self._seed, input_spec=self._spec)
        return Batch(x, rows)

    def _inputs(self, positions, rows):
        if not len(self._fresh_places):
            return self._x[rows]
        x = torch.empty((len(positions), *self._spec.shape), device=self._device)
        x[self._stored_places] = self._x[rows]
        x[self._fresh_places] = start_noise(
            positions[self._fresh_places],
            self._recipe.fresh.start,
            self._spec,
            seed=self._seed,
            stream=streams.FRESH_NOISE,
            clamp=True,
        )
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
