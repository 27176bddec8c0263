"""A store as a torch dataset: rows are read from the mapped shards, and can be shuffled without reading all of them."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch.utils.data import Dataset, Sampler

from zskd_fast.errors import InputError
from zskd_fast.store.manifest import shard_name
from zskd_fast.store.store import Store

_OPEN_SHARDS = 8


class ImpressionDataset(Dataset[dict[str, torch.Tensor]]):
    """The impressions of a finished store: item i is a dict of the columns of the impression with id i.

    x is in the raw range; ``input_spec.normalize`` gives a batch of it as the models see it.

    ``columns`` are the columns to return, named as in the files; by default all: x [*shape] float32 (whatever type the
    store keeps), target [K] float32, teacher_logits [K] float32, id, class and steps int64, beta and loss float32. A
    shard is mapped when a row of it is first read, at most 8 at a time; with ``verify`` it is hashed then, once per
    process. The dataset can be pickled into the workers of a DataLoader.

    Raises InputError if the folder holds no finished store or a column is unknown, and, when a row is read, if its
    shard was changed.
    """

    def __init__(self, folder: str | Path, *, columns: Sequence[str] | None = None, verify: bool = True):
        self.store = Store.open(folder)
        self.input_spec = self.store.identity.input
        self.verify = verify
        self.store.require_complete()
        self._open: OrderedDict[int, safe_open] = OrderedDict()
        self._verified: set[int] = set()
        known = sorted(self._shard(0).keys())
        self.columns = tuple(known if columns is None else columns)
        unknown = sorted(set(self.columns) - set(known))
        if unknown:
            raise InputError(f"no column {unknown[0]!r}; the store has {', '.join(known)}")

    def __len__(self) -> int:
        return self.store.num_impressions

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"impression {index} of {len(self)}")
        shard, row = divmod(index, self.store.shard_size)
        file = self._shard(shard)
        return {name: _copy(file.get_slice(name)[row : row + 1][0]) for name in self.columns}

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": OrderedDict()}

    def _shard(self, shard: int) -> safe_open:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        path = self.store.folder / shard_name(shard)
        if self.verify and shard not in self._verified:
            fault = self.store.fault(shard)
            if fault:
                raise InputError(f"{path} {fault}; run the synthesis again, which makes the shard again")
            self._verified.add(shard)
        try:
            self._open[shard] = safe_open(path, framework="pt")
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path} is no shard of impressions: {error}") from error
        if len(self._open) > _OPEN_SHARDS:
            self._open.popitem(last=False)
        return self._open[shard]


def _copy(value: torch.Tensor) -> torch.Tensor:
    """Return a copy, since a view would keep the whole file mapped; x becomes float32 from 16 bits too."""
    return value.to(torch.float32 if value.is_floating_point() else value.dtype, copy=True)


class ShardShuffle(Sampler[int]):
    """Yield every id of a dataset once, in an order that keeps few shards open at a time.

    The shards are shuffled, and then the rows of each group of ``together`` consecutive shards. The order depends on
    (seed, epoch, together) only; call ``set_epoch`` before each epoch for another one. With ``together`` of 8 or fewer
    no shard is mapped twice.
    """

    def __init__(self, dataset: ImpressionDataset, *, seed: int, together: int = 8):
        if together < 1:
            raise InputError(f"together must be at least 1, got {together}")
        self._store = dataset.store
        self.seed = seed
        self.epoch = 0
        self.together = together

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._store.num_impressions

    def __iter__(self) -> Iterator[int]:
        digest = hashlib.sha256(f"{self.seed}:{self.epoch}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        shards = torch.randperm(self._store.num_shards, generator=generator).tolist()
        for first in range(0, len(shards), self.together):
            ids = torch.cat([self._store.shard_ids(shard) for shard in shards[first : first + self.together]])
            yield from ids[torch.randperm(len(ids), generator=generator)].tolist()
