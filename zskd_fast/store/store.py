"""The store: a folder of shards of impressions, and a manifest with the hash of each.

Shard s holds the ids [s*S, (s+1)*S). Every file is written under a temporary name and renamed when it is whole, and the
manifest is written after the shard that it lists. So a run may be killed at any moment: a shard that the manifest does
not list is made again. Nothing in the files depends on when, where or after how many interruptions they were made, so
the resumed store is byte for byte that of an uninterrupted run. One CUDA device rounds unlike another, or a CPU: so the
manifest names the device, and another one adds no shard.

Any number of processes may fill a store: each claims the shard that it makes, and adds it to the manifest under a lock.
The lock file stays empty.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors

from zskd_fast.config.identity import ImpressionIdentity
from zskd_fast.config.serialization import differences, to_plain
from zskd_fast.errors import InputError
from zskd_fast.runtime.files import TEMPORARY_SUFFIX, file_sha256, sha256, write_atomically
from zskd_fast.runtime.lock import LOCK_NAME, locked
from zskd_fast.store.impressions import Impressions
from zskd_fast.store.manifest import MANIFEST, Manifest, ShardEntry, shard_name, software_versions

_CHANGED = "is not the file that was written (its SHA-256 differs)"
_MISSING = "is missing or cut short"
_MAKE_AGAIN = "run the synthesis again, which makes the shard again"
Resume = Literal["auto", "never", "must"]
# The byte of the lock file that stands for the manifest; a shard has the byte of its number.
_MANIFEST_BYTE = 2**62
_ROWS_COMPARED = 64
# A single entry, since safetensors writes several in no fixed order.
METADATA_KEY = "zskd_fast"


class Store:
    """A folder of impressions, opened by ``Store.open`` or ``Store.open_or_create``.

    Shards that other processes add after it was opened are seen only after ``refresh``.
    """

    def __init__(self, folder: Path, manifest: Manifest):
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def open(cls, folder: str | Path) -> Store:
        """Open a store for reading.

        Raises InputError if the folder holds none, or if its manifest is damaged or another version's.
        """
        folder = Path(folder)
        return cls(folder, Manifest.read(folder))

    @classmethod
    def open_or_create(
        cls,
        folder: str | Path,
        identity: ImpressionIdentity,
        *,
        impressions: int,
        shard_size: int,
        resume: Resume = "auto",
        device: torch.device | None = None,
    ) -> Store:
        """Open the store of this run, or make an empty one.

        A store of the same identity with fewer impressions is extended and keeps its full shards. ``resume`` "never"
        refuses a store that exists, "must" one that does not. ``device`` makes the impressions, by default a CPU.

        Raises InputError if ``resume`` refuses, or if the folder cannot be written, holds something else, or holds the
        store of another run; then the message has one line per differing field.
        """
        folder = Path(folder)
        _check_resume(folder, resume)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / MANIFEST).exists():
                _refuse_foreign_files(folder)
            with locked(folder / LOCK_NAME, _MANIFEST_BYTE, wait=True):
                if not (folder / MANIFEST).exists():
                    Manifest(identity, impressions, shard_size, software_versions(device)).write(folder)
                store = cls.open(folder)
                store._grow(identity, impressions, shard_size, device)
                return store
        except OSError as error:
            raise InputError(f"cannot write the store {folder}: {error}") from error

    @property
    def identity(self) -> ImpressionIdentity:
        """All that the impressions depend on, besides their ids."""
        return self.manifest.identity

    @property
    def num_impressions(self) -> int:
        """Number of impressions in the finished store."""
        return self.manifest.impressions

    @property
    def shard_size(self) -> int:
        """Impressions per shard; the last shard may hold fewer."""
        return self.manifest.shard_size

    @property
    def num_shards(self) -> int:
        """Number of shards of the finished store."""
        return self.manifest.num_shards

    @property
    def x_dtype(self) -> torch.dtype:
        """Data type of x in the files; readers of this package return float32."""
        return getattr(torch, self.identity.recipe.store_dtype)

    @property
    def is_complete(self) -> bool:
        """Whether no shard is missing."""
        return not self.missing_shards()

    def shard_ids(self, shard: int) -> torch.Tensor:
        """Return the ids of the impressions in a shard: [n] int64."""
        first = shard * self.shard_size
        return torch.arange(first, min(first + self.shard_size, self.num_impressions))

    def missing_shards(self) -> list[int]:
        """Return the shards that are not in the manifest, or whose file is gone or cut short."""
        return [shard for shard in range(self.num_shards) if not self._is_there(shard)]

    def require_complete(self) -> None:
        """Raise InputError that names the first missing shard, if there is one."""
        missing = self.missing_shards()
        if missing:
            raise InputError(f"{self.folder / shard_name(missing[0])} {_MISSING}; run the synthesis again")

    def refresh(self) -> None:
        """Read the manifest again, with the shards of other processes. Raises InputError as ``open`` does."""
        self.manifest = Manifest.read(self.folder)

    def check_identity(self, identity: ImpressionIdentity, device: torch.device | None = None) -> None:
        """Raise InputError with one line per differing field if the store belongs to another run.

        While shards are missing, the versions of the software and a CUDA device count too, so that no store is made by
        two of them; a finished store is only read.
        """
        self._check_same(to_plain(identity), to_plain(self.identity), device)

    def check_maker(self, device: torch.device | None = None) -> None:
        """Raise InputError with one line per differing field if other software or another device made the store."""
        self._refuse({"versions": software_versions(device)}, {"versions": self.manifest.versions})

    def claim(self, shard: int) -> contextlib.AbstractContextManager[bool]:
        """Keep other processes from making this shard; the context gives False if one of them is making it.

        The claim of a process ends with the process, however that ends.
        """
        return locked(self.folder / LOCK_NAME, shard)

    def write_shard(self, shard: int, impressions: Impressions) -> None:
        """Write one shard, then the manifest that lists it.

        Raises InputError if the ids are not those of the shard, or if ``x_dtype`` cannot hold x exactly, since the
        stored logits would belong to other inputs. Raises OSError that names the file if it cannot be written.
        """
        self._check_ids(shard, impressions)
        columns = _columns(impressions, self.x_dtype)
        data = safetensors.save(columns, {METADATA_KEY: self.manifest.shard_metadata(shard)})
        write_atomically(self.folder / shard_name(shard), data)
        with locked(self.folder / LOCK_NAME, _MANIFEST_BYTE, wait=True):
            self.refresh()
            self._check_ids(shard, impressions)  # the last shard has more ids if the store was extended
            self.manifest = self.manifest.with_shard(shard, ShardEntry(len(data), sha256(data)))
            self.manifest.write(self.folder)

    def fault(self, shard: int) -> str | None:
        """Hash a shard and return its fault in a few words; None if it has none."""
        if not self._is_there(shard):
            return _MISSING
        entry = self.manifest.entry(shard)
        if entry is None or file_sha256(self.folder / shard_name(shard)) != entry.sha256:
            return _CHANGED
        return None

    def read_shard(self, shard: int) -> Impressions:
        """Read one shard, on the CPU. Raises InputError that names it if it is missing or was changed."""
        path, entry = self.folder / shard_name(shard), self.manifest.entry(shard)
        if entry is None or not self._is_there(shard):
            raise InputError(f"{path} {_MISSING}; run the synthesis again")
        data = path.read_bytes()  # hashed and read from the same bytes
        if sha256(data) != entry.sha256:
            raise InputError(f"{path} {_CHANGED}; {_MAKE_AGAIN}")
        try:
            return _from_columns(safetensors.load(data))
        except (SafetensorError, KeyError, TypeError) as error:
            raise InputError(f"{path} is no shard of impressions: {error}") from error

    def _is_there(self, shard: int) -> bool:
        path, entry = self.folder / shard_name(shard), self.manifest.entry(shard)
        return entry is not None and path.is_file() and path.stat().st_size == entry.bytes

    def _grow(
        self, identity: ImpressionIdentity, impressions: int, shard_size: int, device: torch.device | None
    ) -> None:
        """Check that this store is the run's and, if it is asked for more impressions, extend it."""
        grown = Store(self.folder, self.manifest.grown_to(impressions))
        layout = {"impressions": impressions, "shard_size": shard_size}
        theirs = {"impressions": grown.num_impressions, "shard_size": self.shard_size}
        grown._check_same({**to_plain(identity), **layout}, {**to_plain(self.identity), **theirs}, device)
        if grown.manifest is not self.manifest:
            self.manifest = grown.manifest
            self.manifest.write(self.folder)

    def _check_same(self, ours: dict[str, Any], theirs: dict[str, Any], device: torch.device | None) -> None:
        if not self.is_complete:
            ours = {**ours, "versions": software_versions(device)}
            theirs = {**theirs, "versions": self.manifest.versions}
        self._refuse(ours, theirs)

    def _refuse(self, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
        lines = differences(ours, theirs, here="in this run", there="in the store")
        if lines:
            shown = "".join(f"\n  {line}" for line in lines)
            raise InputError(f"the store {self.folder} belongs to another run; choose another folder:{shown}")

    def _check_ids(self, shard: int, impressions: Impressions) -> None:
        if not torch.equal(impressions.id.cpu(), self.shard_ids(shard)):
            raise InputError(f"the impressions given are not those of shard {shard}")


def _columns(impressions: Impressions, x_dtype: torch.dtype) -> dict[str, torch.Tensor]:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in impressions.tensors().items()}
    tensors["x"] = _exactly(tensors["x"], x_dtype)
    tensors["class"] = tensors.pop("class_index")
    return tensors


def _exactly(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Convert x; raises InputError if that changes a value."""
    if x.dtype == dtype:
        return x
    kept = x.to(dtype)
    # In parts: another whole shard in float32 would raise the peak memory of a run.
    parts = zip(kept.split(_ROWS_COMPARED), x.split(_ROWS_COMPARED), strict=True)
    if not all(torch.equal(kept_part.to(x.dtype), part) for kept_part, part in parts):
        raise InputError(f"the store keeps x as {dtype}, which cannot hold the values given; round them first")
    return kept


def _from_columns(columns: dict[str, torch.Tensor]) -> Impressions:
    columns["x"] = columns["x"].float()
    columns["class_index"] = columns.pop("class")
    return Impressions(**columns)


def _check_resume(folder: Path, resume: str) -> None:
    if resume not in get_args(Resume):
        raise InputError(f"resume must be one of {', '.join(get_args(Resume))}, got {resume!r}")
    exists = (folder / MANIFEST).exists()
    if resume == "never" and exists:
        raise InputError(f'{folder} holds a store already, and resume is "never"; choose another folder')
    if resume == "must" and not exists:
        raise InputError(f'{folder} holds no store to resume, and resume is "must"')


def _refuse_foreign_files(folder: Path) -> None:
    names = (entry.name for entry in folder.iterdir() if not entry.name.endswith(TEMPORARY_SUFFIX))
    foreign = sorted(name for name in names if name != LOCK_NAME)
    if foreign:
        raise InputError(
            f"the folder {folder} is not empty and holds no store of impressions (found {foreign[0]}); "
            "choose another folder"
        )
