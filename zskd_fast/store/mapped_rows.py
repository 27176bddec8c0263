"""A column of a store whose rows are read from the mapped files, so that a store may be larger than memory."""

import json

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from zskd_fast.errors import InputError
from zskd_fast.runtime.files import sha256
from zskd_fast.store.manifest import shard_name
from zskd_fast.store.store import Store


class MappedRows:
    """One floating-point column of a finished store, [N, *shape] in the order of the ids.

    ``rows[ids]`` with ids [n] int64 from 0 up copies these rows out of the mapped files: [n, *shape] float32 on the
    device of the ids. Every shard stays mapped; that takes addresses but no open files, and memory only while there is
    enough. Nothing is hashed here: see ``zskd_fast.store.verify.require_whole``. If a file is cut short in the
    meantime, the process ends, as with any mapped file.

    Raises InputError that names the shard if one is missing, cannot be mapped or has no such column.
    """

    def __init__(self, store: Store, column: str):
        store.require_complete()
        self._shard_size = store.shard_size
        self._shards = [mapped_column(store, shard, column) for shard in range(store.num_shards)]
        self.shape = torch.Size([store.num_impressions, *self._shards[0].shape[1:]])
        # Bytes in numpy: torch takes more than twice as long to pick single rows, and numpy has no bfloat16.
        self._bytes = [shard.reshape(len(shard), -1).view(torch.uint8).numpy() for shard in self._shards]
        hashes = [store.manifest.shards[shard_name(shard)].sha256 for shard in range(store.num_shards)]
        self.sha256 = sha256(json.dumps([column, *hashes]).encode())
        """Of the column's name and the hash of each shard in the manifest."""

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, ids: torch.Tensor) -> torch.Tensor:
        picked = np.empty((len(ids), self._bytes[0].shape[1]), np.uint8)
        for row, impression in enumerate(ids.tolist()):
            shard, offset = divmod(impression, self._shard_size)
            picked[row] = self._bytes[shard][offset]
        # Viewed flat, and with the number of rows, so that no rows are possible, too.
        values = torch.from_numpy(picked.reshape(-1)).view(self._shards[0].dtype).reshape(len(ids), *self.shape[1:])
        return values.to(ids.device, torch.float32)

    def to(self, device: torch.device) -> "torch.Tensor | MappedRows":
        """Return all rows as a tensor on a GPU if they take at most half of its free memory, otherwise these rows.

        On a CPU the rows stay mapped: rows that are read often are in memory anyway.
        """
        if 4 * self.shape.numel() > _free_bytes(device) // 2:
            return self
        whole = torch.empty(self.shape, dtype=torch.float32, device=device)
        for rows, shard in zip(whole.split(self._shard_size), self._shards, strict=True):
            rows.copy_(shard)
        return whole


def mapped_column(store: Store, shard: int, column: str) -> torch.Tensor:
    """Map one column of a shard: [n, *shape]. Raises InputError that names the shard if it cannot be mapped."""
    path = store.folder / shard_name(shard)
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(column)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{path} cannot be mapped as a shard of impressions: {error}") from error


def _free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
