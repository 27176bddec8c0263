"""The store: a folder of shards of impressions and a manifest that vouches for each of them.

Shard s holds the ids [s*S, (s+1)*S). Every file is written under a temporary name and renamed when whole, the
manifest after the shard that it lists, so that a run may be killed at any moment: a shard that the manifest
does not list is made again, and since nothing in the files depends on when, where or in how many goes they
were made, the resumed store is byte for byte that of an uninterrupted run.

Any number of processes may fill a store: each claims the shard that it makes, and adds it to the manifest
under a lock. The file of the locks stays empty and tells nothing.
"""

import contextlib
import copy
import json
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors

from zskd_fast.config.identity import differences
from zskd_fast.errors import InputError
from zskd_fast.runtime.files import TEMPORARY_SUFFIX, file_sha256, sha256, write_atomically
from zskd_fast.runtime.lock import LOCK_NAME, locked
from zskd_fast.store.impressions import Impressions

MANIFEST = "manifest.json"
FORMAT = 3
_CHANGED = "is not what the manifest lists (its SHA-256 differs)"
Resume = Literal["auto", "never", "must"]
# The byte of the lock file that stands for the manifest; a shard has the byte of its number.
_MANIFEST_BYTE = 2**62
_ROWS_COMPARED = 64
# One entry only: safetensors writes several in no fixed order.
METADATA_KEY = "zskd_fast"


class Store:
    """A folder of impressions, opened by ``Store.open`` or ``Store.open_or_create``.

    It knows of what other processes have added since it was opened only after ``refresh``.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]):
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def open(cls, folder: str | Path) -> "Store":
        """Opens a store to read it. Raises InputError if the folder holds none or its manifest is damaged."""
        folder = Path(folder)
        return cls(folder, _read_manifest(folder / MANIFEST))

    @classmethod
    def open_or_create(
        cls, folder: str | Path, fingerprint: dict[str, Any], *, resume: Resume = "auto"
    ) -> "Store":
        """Opens the store of this run, or makes an empty one.

        ``fingerprint`` is that of the synthesizer. A store of the same run with fewer impressions is extended
        and keeps its whole shards. ``resume`` "never" refuses a store that is there, "must" one that is not.

        Raises InputError if ``resume`` refuses, or if the folder cannot be written, holds something else, or
        holds a store of another run: then the message has one line per differing key.
        """
        folder = Path(folder)
        _check_resume(folder, resume)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / MANIFEST).exists():
                _refuse_foreign(folder)
            with locked(folder / LOCK_NAME, _MANIFEST_BYTE, wait=True):
                return cls._extended(folder, fingerprint)
        except OSError as error:
            raise InputError(f"cannot write the store {folder}: {error}") from error

    @classmethod
    def _extended(cls, folder, fingerprint):
        """The store in the folder, made or grown to the size of the fingerprint if need be."""
        if not (folder / MANIFEST).exists():
            store = cls(folder, _new_manifest(fingerprint))
            store._write_manifest()
            return store
        store = cls.open(folder)
        grown = store._grown(fingerprint["recipe"]["impressions"])
        grown.check_fingerprint(fingerprint)
        if grown.num_impressions != store.num_impressions:
            grown._write_manifest()
        return grown

    @property
    def num_impressions(self) -> int:
        """How many impressions the finished store holds."""
        return self.manifest["fingerprint"]["recipe"]["impressions"]

    @property
    def shard_size(self) -> int:
        """How many impressions a shard holds; the last one may hold fewer."""
        return self.manifest["fingerprint"]["recipe"]["shard_size"]

    @property
    def x_dtype(self) -> torch.dtype:
        """The type of x in the files; whoever reads them through this package is given float32."""
        return getattr(torch, self.manifest["fingerprint"]["recipe"]["store_dtype"])

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

    def require_complete(self) -> None:
        """Raises InputError that names the first shard that is missing or cut short, if there is one."""
        missing = self.missing_shards()
        if missing:
            path = self.folder / shard_name(missing[0])
            raise InputError(f"{path} is missing or cut short; run the synthesis again")

    def refresh(self) -> None:
        """Reads the manifest again, with what other processes have added. Raises InputError as ``open``."""
        self.manifest = _read_manifest(self.folder / MANIFEST)

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

    def claim(self, shard: int) -> contextlib.AbstractContextManager[bool]:
        """Keeps other processes from making this shard meanwhile; gives False if one of them is at it.

        The claim of a process ends with it, however it dies.
        """
        return locked(self.folder / LOCK_NAME, shard)

    def write_shard(self, shard: int, impressions: Impressions) -> None:
        """Writes one shard, then the manifest that lists it.

        Raises InputError if the ids are not the shard's, or if ``x_dtype`` cannot hold x exactly: the logits beside
        it would be those of other inputs. Raises OSError that names the file if it cannot be written.
        """
        self._check_ids(shard, impressions)
        columns = _columns(impressions, self.x_dtype)
        data = safetensors.save(columns, {METADATA_KEY: self._shard_metadata(shard)})
        write_atomically(self.folder / shard_name(shard), data)
        with locked(self.folder / LOCK_NAME, _MANIFEST_BYTE, wait=True):
            self.refresh()
            self._check_ids(shard, impressions)  # the last shard has more ids if the store was extended
            self.manifest["shards"][shard_name(shard)] = {"bytes": len(data), "sha256": sha256(data)}
            self._write_manifest()

    def fault(self, shard: int) -> str | None:
        """What is wrong with a shard, in a few words, after hashing all of it; None if nothing is."""
        if not self._is_there(shard):
            return "is missing or cut short"
        if file_sha256(self.folder / shard_name(shard)) != self._listed(shard)["sha256"]:
            return _CHANGED
        return None

    def read_shard(self, shard: int) -> Impressions:
        """Reads one shard, on the CPU. Raises InputError that names it if it is missing or not as written."""
        path = self.folder / shard_name(shard)
        if not self._is_there(shard):
            raise InputError(f"{path} is missing or cut short; run the synthesis again")
        data = path.read_bytes()  # hashed and read from the same bytes
        if sha256(data) != self._listed(shard)["sha256"]:
            raise InputError(f"{path} {_CHANGED}; run the synthesis again, which makes this shard anew")
        try:
            return _from_columns(safetensors.load(data))
        except (SafetensorError, KeyError, TypeError) as error:
            raise InputError(f"{path} is no shard of impressions: {error}") from error

    def read_all(self) -> Impressions:
        """Reads every shard, on the CPU, in the order of the ids. Raises InputError if one is not there."""
        return Impressions.concatenate([self.read_shard(shard) for shard in range(self.num_shards)])

    def _listed(self, shard):
        return self.manifest["shards"].get(shard_name(shard))

    def _is_there(self, shard):
        path, listed = self.folder / shard_name(shard), self._listed(shard)
        return listed is not None and path.is_file() and path.stat().st_size == listed["bytes"]

    def _grown(self, count):
        """This store with so many impressions, if those are more: all but the last, partial shard stay."""
        if count <= self.num_impressions:
            return self
        manifest = copy.deepcopy(self.manifest)
        manifest["fingerprint"]["recipe"]["impressions"] = count
        if self.num_impressions % self.shard_size:
            manifest["shards"].pop(shard_name(self.num_shards - 1), None)
        return Store(self.folder, manifest)

    def _check_ids(self, shard, impressions):
        if not torch.equal(impressions.id.cpu(), self.shard_ids(shard)):
            raise InputError(f"the impressions given are not those of shard {shard}")

    def _shard_metadata(self, shard):
        described = copy.deepcopy({key: self.manifest[key] for key in ("format", "fingerprint", "versions")})
        # A shard is the same in a store of any size, so that a store can be extended.
        del described["fingerprint"]["recipe"]["impressions"]
        return json.dumps({**described, "shard": shard}, sort_keys=True)

    def _write_manifest(self):
        whole = {**self.manifest, "sha256": _manifest_sha256(self.manifest)}
        text = json.dumps(whole, indent=2, sort_keys=True) + "\n"
        write_atomically(self.folder / MANIFEST, text.encode())


def shard_name(shard: int) -> str:
    """File name of a shard."""
    return f"shard-{shard:06d}.safetensors"


def _columns(impressions, x_dtype):
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in impressions.tensors().items()}
    tensors["x"] = _exactly(tensors["x"], x_dtype)
    tensors["class"] = tensors.pop("class_index")
    return tensors


def _exactly(x, dtype):
    if x.dtype == dtype:
        return x
    kept = x.to(dtype)
    # In parts: a whole shard in float32 once more would be the most memory that a run ever takes.
    parts = zip(kept.split(_ROWS_COMPARED), x.split(_ROWS_COMPARED), strict=True)
    if not all(torch.equal(kept_part.to(x.dtype), part) for kept_part, part in parts):
        raise InputError(
            f"the store keeps x as {dtype}, which cannot hold the values given; round them first"
        )
    return kept


def _from_columns(columns):
    columns["x"] = columns["x"].float()
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


def _manifest_sha256(manifest):
    """Of all that the manifest says, however it is laid out."""
    return sha256(json.dumps(manifest, sort_keys=True).encode())


def _read_manifest(path):
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path.parent} holds no store of impressions: it has no {MANIFEST}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InputError(f"{path} is not the manifest of a store of format {FORMAT}")
    if manifest.pop("sha256", None) != _manifest_sha256(manifest):
        raise InputError(f"{path} was changed after it was written (its SHA-256 differs); get it from a copy")
    return manifest


def _check_resume(folder, resume):
    if resume not in get_args(Resume):
        raise InputError(f"resume must be one of {', '.join(get_args(Resume))}, got {resume!r}")
    there = (folder / MANIFEST).exists()
    if resume == "never" and there:
        raise InputError(f'{folder} holds a store already, and resume is "never"; choose another folder')
    if resume == "must" and not there:
        raise InputError(f'{folder} holds no store to go on with, and resume is "must"')


def _refuse_foreign(folder):
    names = (entry.name for entry in folder.iterdir() if not entry.name.endswith(TEMPORARY_SUFFIX))
    foreign = sorted(name for name in names if name != LOCK_NAME)
    if foreign:
        raise InputError(
            f"the folder {folder} is not empty and holds no store of impressions (found {foreign[0]}); "
            "choose another folder"
        )
