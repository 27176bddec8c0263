"""The manifest of a store: what its impressions depend on, how many they are, and the hash of each shard."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from zskd_fast.config.identity import ImpressionIdentity
from zskd_fast.config.serialization import by_another_version, from_plain, require_keys, to_plain
from zskd_fast.errors import InputError
from zskd_fast.runtime.environment import cuda_facts
from zskd_fast.runtime.files import sha256, write_atomically

MANIFEST = "manifest.json"
FORMAT = 4


@dataclass(frozen=True)
class ShardEntry:
    """A finished shard."""

    bytes: int
    """Size of the file."""
    sha256: str
    """Hash of the file."""


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json. The file is replaced, so that a reader sees the old or the new content."""

    identity: ImpressionIdentity
    impressions: int
    """Number of impressions in the finished store."""
    shard_size: int
    """Impressions per shard; the last shard may hold fewer."""
    versions: dict[str, str]
    """Versions of torch and zskd_fast that make the store; on a CUDA device also its model and all of `cuda_facts`."""
    shards: dict[str, ShardEntry] = field(default_factory=dict)
    """Finished shards by file name."""
    format: int = FORMAT

    @property
    def num_shards(self) -> int:
        """Number of shards of the finished store."""
        return -(-self.impressions // self.shard_size)

    def entry(self, shard: int) -> ShardEntry | None:
        """Return the entry of a shard; None if it has not been written."""
        return self.shards.get(shard_name(shard))

    def with_shard(self, shard: int, entry: ShardEntry) -> Manifest:
        """Return this manifest with one more finished shard."""
        return dataclasses.replace(self, shards={**self.shards, shard_name(shard): entry})

    def grown_to(self, impressions: int) -> Manifest:
        """Return this manifest for more impressions: every shard stays, except a last one that was not full."""
        if impressions <= self.impressions:
            return self
        shards = dict(self.shards)
        if self.impressions % self.shard_size:
            shards.pop(shard_name(self.num_shards - 1), None)
        return dataclasses.replace(self, impressions=impressions, shards=shards)

    def shard_metadata(self, shard: int) -> str:
        """Return the metadata inside a shard file; it does not depend on the size of the store, which may grow."""
        described = self._plain()
        del described["impressions"], described["shards"]
        return json.dumps({**described, "shard": shard}, sort_keys=True)

    def write(self, folder: Path) -> None:
        """Write manifest.json, with a hash over its content."""
        values = self._plain()
        text = json.dumps({**values, "sha256": _sha256(values)}, indent=2, sort_keys=True) + "\n"
        write_atomically(folder / MANIFEST, text.encode())

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read manifest.json. Raises InputError if it is missing, damaged or another version's."""
        path = folder / MANIFEST
        try:
            values = json.loads(path.read_text("utf-8"))
        except FileNotFoundError as error:
            raise InputError(f"{folder} holds no store of impressions: it has no {MANIFEST}") from error
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"cannot read {path}: {error}") from error
        if not isinstance(values, dict) or not isinstance(values.get("format"), int):
            raise InputError(f"{path} is not the manifest of a store of impressions")
        other_version = by_another_version(path, "folder")
        if values["format"] != FORMAT:
            raise InputError(f"{other_version}: got format {values['format']}, wanted {FORMAT}")
        if values.pop("sha256", None) != _sha256(values):
            raise InputError(f"{path} was changed after it was written (its SHA-256 differs); restore a copy")
        require_keys(values, (each.name for each in dataclasses.fields(cls)), other_version)
        # The shards by hand, here and in _plain: there may be ten thousand, and a manifest is read for each new one.
        shards = {name: _entry(entry, other_version) for name, entry in values.pop("shards").items()}
        return dataclasses.replace(from_plain(cls, values, other_version), shards=shards)

    def _plain(self) -> dict[str, Any]:
        shards = {name: vars(entry) for name, entry in self.shards.items()}
        return {**to_plain(dataclasses.replace(self, shards={})), "shards": shards}


def _entry(values: dict[str, Any], where: str) -> ShardEntry:
    try:
        return ShardEntry(**values)
    except TypeError:  # other keys, of which from_plain names one
        return from_plain(ShardEntry, values, f"{where}: shards")


def shard_name(shard: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{shard:06d}.safetensors"


def software_versions(device: torch.device | None = None) -> dict[str, str]:
    """Return the versions of torch and zskd_fast and, for a CUDA device, what else decides the bits there."""
    try:
        own = metadata.version("zskd_fast")
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        own = "not installed"
    return {"torch": torch.__version__, "zskd_fast": own, **(cuda_facts(device) if device else {})}


def _sha256(values: dict[str, Any]) -> str:
    """Hash the content, independent of its layout in the file."""
    return sha256(json.dumps(values, sort_keys=True).encode())
