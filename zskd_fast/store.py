"""The store: a folder of shards of impressions and a manifest that vouches for each of them.

Shard s holds the ids [s*S, (s+1)*S). Every file is written under a temporary name and renamed when whole, the
manifest after the shard that it lists, so that a run may be killed at any moment: a shard that the manifest
does not list is made again, and since nothing in the files depends on when or in how many goes they were
made, the resumed store is byte for byte that of an uninterrupted run.
"""

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import torch as safetensors

from zskd_fast.errors import InputError
from zskd_fast.files import TEMPORARY_SUFFIX, sha256, write_atomically
from zskd_fast.fingerprint import differences
from zskd_fast.impressions import Impressions

MANIFEST = "manifest.json"
FORMAT = 1
# One entry only: safetensors writes several in no fixed order.
METADATA_KEY = "zskd_fast"


class Store:
    """A folder of impressions, opened by ``Store.open`` or ``Store.open_or_create``; one process writes."""

    def __init__(self, folder: Path, manifest: dict[str, Any]):
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def open(cls, folder: str | Path) -> "Store":
        """Opens a store to read it. Raises InputError if the folder holds none or its manifest is damaged."""
        folder = Path(folder)
        return cls(folder, _read_manifest(folder / MANIFEST))

    @classmethod
    def open_or_create(cls, folder: str | Path, fingerprint: dict[str, Any]) -> "Store":
        """Opens the store of this run, or makes an empty one.

        ``fingerprint`` is that of the synthesizer. Raises InputError if the folder cannot be written, holds
        something else, or holds a store of another run: then the message has one line per differing key.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if (folder / MANIFEST).exists():
                store = cls.open(folder)
                store.check_fingerprint(fingerprint)
                return store
            _refuse_foreign(folder)
            store = cls(folder, _new_manifest(fingerprint))
            store._write_manifest()
        except OSError as error:
            raise InputError(f"cannot write the store {folder}: {error}") from error
        return store

    @property
    def num_impressions(self) -> int:
        """How many impressions the finished store holds."""
        return self.manifest["fingerprint"]["recipe"]["impressions"]

    @property
    def shard_size(self) -> int:
        """How many impressions a shard holds; the last one may hold fewer."""
        return self.manifest["fingerprint"]["recipe"]["shard_size"]

    @property
    def num_shards(self) -> int:
        """How many shards the finished store holds."""
        return -(-self.num_impressions // self.shard_size)

    @property
    def is_complete(self) -> bool:
        """Whether no shard is missing."""
        return not self.missing_shards()

    def shard_ids(self, shard: int) -> torch.Tensor:
        """Ids of the impressions in a shard: [n] int64."""
        first = shard * self.shard_size
        return torch.arange(first, min(first + self.shard_size, self.num_impressions))

    def missing_shards(self) -> list[int]:
        """Shards yet to be made: not in the manifest, or listed but gone from the disk or cut short."""
        return [shard for shard in range(self.num_shards) if not self._is_there(shard)]

    def check_fingerprint(self, fingerprint: dict[str, Any]) -> None:
        """Raises InputError with one line per differing key if the store belongs to another run.

        The versions of the software count too while shards are missing, so that no store is made by two of
        them; a finished store is only read.
        """
        ours, theirs = {**fingerprint}, {**self.manifest["fingerprint"]}
        if not self.is_complete:
            ours["versions"], theirs["versions"] = _versions(), self.manifest["versions"]
        lines = differences(ours, theirs, here="in this run", there="in the store")
        if lines:
            shown = "".join(f"\n  {line}" for line in lines)
            raise InputError(f"the store {self.folder} belongs to another run; choose another folder:{shown}")

    def write_shard(self, shard: int, impressions: Impressions) -> None:
        """Writes one shard, then the manifest that lists it; InputError if the ids are not the shard's."""
        if not torch.equal(impressions.id.cpu(), self.shard_ids(shard)):
            raise InputError(f"the impressions given are not those of shard {shard}")
        data = safetensors.save(_columns(impressions), {METADATA_KEY: self._shard_metadata(shard)})
        write_atomically(self.folder / shard_name(shard), data)
        self.manifest["shards"][shard_name(shard)] = {"bytes": len(data), "sha256": sha256(data)}
        self._write_manifest()

    def read_shard(self, shard: int) -> Impressions:
        """Reads one shard, on the CPU. Raises InputError that names it if it is missing or not as written."""
        name = shard_name(shard)
        if not self._is_there(shard):
            raise InputError(f"{self.folder / name} is missing or cut short; run the synthesis again")
        data = (self.folder / name).read_bytes()
        if sha256(data) != self.manifest["shards"][name]["sha256"]:
            raise InputError(
                f"{self.folder / name} is not what the manifest lists (its SHA-256 differs); "
                "delete it and run the synthesis again"
            )
        return _from_columns(safetensors.load(data))

    def read_all(self) -> Impressions:
        """Reads every shard, on the CPU, in the order of the ids. Raises InputError if one is not there."""
        return Impressions.concatenate([self.read_shard(shard) for shard in range(self.num_shards)])

    def _is_there(self, shard):
        listed = self.manifest["shards"].get(shard_name(shard))
        path = self.folder / shard_name(shard)
        return listed is not None and path.is_file() and path.stat().st_size == listed["bytes"]

    def _shard_metadata(self, shard):
        described = {key: self.manifest[key] for key in ("format", "fingerprint", "versions")}
        return json.dumps({**described, "shard": shard}, sort_keys=True)

    def _write_manifest(self):
        text = json.dumps(self.manifest, indent=2, sort_keys=True) + "\n"
        write_atomically(self.folder / MANIFEST, text.encode())


def shard_name(shard: int) -> str:
    """File name of a shard."""
    return f"shard-{shard:06d}.safetensors"


def _columns(impressions):
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in impressions.tensors().items()}
    tensors["class"] = tensors.pop("class_index")
    return tensors


def _from_columns(columns):
    columns["class_index"] = columns.pop("class")
    return Impressions(**columns)


def _new_manifest(fingerprint):
    return {"format": FORMAT, "fingerprint": fingerprint, "versions": _versions(), "shards": {}}


def _versions():
    try:
        own = metadata.version("zskd_fast")
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        own = "not installed"
    return {"torch": torch.__version__, "zskd_fast": own}


def _read_manifest(path):
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path.parent} holds no store of impressions: it has no {MANIFEST}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    keys = {"format", "fingerprint", "versions", "shards"}
    if not isinstance(manifest, dict) or not keys <= manifest.keys() or manifest["format"] != FORMAT:
        raise InputError(f"{path} is not the manifest of a store of format {FORMAT}")
    return manifest


def _refuse_foreign(folder):
    foreign = sorted(entry.name for entry in folder.iterdir() if not entry.name.endswith(TEMPORARY_SUFFIX))
    if foreign:
        raise InputError(
            f"the folder {folder} is not empty and holds no store of impressions (found {foreign[0]}); "
            "choose another folder"
        )
