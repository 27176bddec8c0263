"""What a file is by its content, whatever its name, and reading checkpoints without running code that they name."""

from __future__ import annotations

import pickletools
import re
import tarfile
import zipfile
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from zskd_fast.errors import InputError


class FileKind(Enum):
    """A kind of file that holds weights or a whole model."""

    TORCH = "a file of torch.save"
    LEGACY_TORCH = "a file of torch.save from before torch 1.6"
    SAFETENSORS = "a safetensors file"
    TORCHSCRIPT = "a TorchScript program"
    EXPORTED = "a torch.export program"

    @property
    def is_program(self) -> bool:
        """Whether the file is a whole model and not weights alone."""
        return self in (FileKind.TORCHSCRIPT, FileKind.EXPORTED)


_HEAD_BYTES = 1024
_SHORTEST_PICKLE = 10  # of named numbers; less is the beginning of any file
_LARGEST_HEADER = 100_000_000  # that of a safetensors file
_LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickled number that torch.save wrote first
_SAFE_PROTOCOL = 2  # the only one that torch reads without running code
_LEGACY_PREAMBLE = 3  # pickles in front of the content: magic number, version, system
_UNPACK = "unpack it and give the file of weights inside"
_CONVERT = "give a file of torch.save or safetensors"
_DOWNLOAD = "download the file itself"
_FOREIGN = (
    (b"version https://git-lfs", "a Git LFS pointer and not the weights themselves", "fetch them with `git lfs pull`"),
    (b"\x1f\x8b", "a gzip archive", _UNPACK),
    (b"BZh", "a bzip2 archive", _UNPACK),
    (b"\xfd7zXZ\x00", "an xz archive", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!", "a rar archive", _UNPACK),
    (b"\x89HDF", "an HDF5 file, as Keras writes it", _CONVERT),
    (b"\x93NUMPY", "a numpy array", _CONVERT),
    (b"GGUF", "a GGUF file", _CONVERT),
    (b"\x08", "an ONNX model or another protobuf file", _CONVERT),
)
_WEB_PAGE = re.compile(rb"<(!doctype|html|head|body|\?xml)", re.IGNORECASE)
# What stands beside weights and holds none: a stand-in that ignores everything takes its place, so that neither numpy,
# argparse nor pathlib is called with what the file says.
_BYSTANDERS = (
    "argparse.Namespace",
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *(f"pathlib.{name}" for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
    *(f"pathlib._local.{name}" for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
)


class StandIn:
    """Stands for an object in a file that was not made; it drops whatever it is given."""

    def __new__(cls, *_: object) -> StandIn:
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


def file_kind(path: Path) -> FileKind:
    """Return the kind of a file. Raises InputError that names what it is, if it is none that can be read."""
    if path.is_dir():
        raise InputError(_folder_sentence(path))
    if not path.is_file():
        hint = "; it looks like an address: download it first" if re.match(r"https?:/", str(path)) else ""
        raise InputError(f"{path}: no such file{hint}")
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if head.startswith(b"PK\x03\x04"):
        return _kind_of_zip(path)
    if _LEGACY_MAGIC in head[:32]:
        return FileKind.LEGACY_TORCH
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _LARGEST_HEADER:
        return FileKind.SAFETENSORS
    raise InputError(f"{path}: {_foreign(path, head)}")


def read_checkpoint(path: Path) -> tuple[object, list[str]]:
    """Return the content of a file of torch.save or safetensors, and the names of what stands beside and was not made.

    No code that the file names is run. Raises InputError for a program, a damaged file, and a file that cannot be read
    without running code.
    """
    kind = file_kind(path)
    if kind.is_program:
        raise InputError(f"{path}: {kind.value} is the whole model, wanted weights alone")
    if kind is FileKind.SAFETENSORS:
        try:
            return load_file(path), []
        except SafetensorError as error:
            raise InputError(f"{path}: truncated, or not a safetensors file ({error})") from error
    return _load_torch(path, kind)


def _load_torch(path: Path, kind: FileKind) -> tuple[object, list[str]]:
    made: set[str] = set()
    allowed: list[Any] = [(_stand_in(name, made), name) for name in _BYSTANDERS]
    try:
        # A file object, since torch.load looks at the suffix of a path.
        with path.open("rb") as file, torch.serialization.safe_globals(allowed):
            return torch.load(file, map_location="cpu", weights_only=True), sorted(made)
    except OSError:
        raise
    except Exception as error:  # a damaged file makes torch raise anything
        raise InputError(f"{path}: {_why_unread(path, kind, str(error))}") from error


def _stand_in(name: str, made: set[str]) -> type[StandIn]:
    def new(cls: type[StandIn], *_: object) -> StandIn:
        made.add(name)
        return StandIn.__new__(cls)

    return type("StandIn", (StandIn,), {"__new__": new})


def _why_unread(path: Path, kind: FileKind, reason: str) -> str:
    start = _start_of_pickle(path, kind)
    whole = _is_object(start)
    kept = "content.state_dict()" if whole else 'content["state_dict"]'
    conversion = _conversion(_torch_load(path), kept)
    name = re.search(r"GLOBAL ([\w.]+\w)", reason)
    if name and whole:
        return f"holds a whole pickled model or other object ({name[1]}), {conversion}"
    if name:
        return f"holds {name[1]} beside the weights, {conversion}"
    if start and start[0][0] == "PROTO" and start[0][1] > _SAFE_PROTOCOL:
        return f"of pickle protocol {start[0][1]}, {conversion}"
    return f"truncated, or damaged: {kind.value} that cannot be read"


def _torch_load(path: Path) -> str:
    return f'torch.load({str(path)!r}, map_location="cpu", weights_only=False)'


def _conversion(load: str, weights: str) -> str:
    return (
        "which can only be read by running code that the file names, and that is never done; if you trust the file, "
        "convert it where its code is installed, and give weights.pt:\n"
        f'  import pickle, torch; content = {load}\n  torch.save({weights}, "weights.pt")'
    )


def _start_of_pickle(path: Path, kind: FileKind) -> list[tuple[str, Any]]:
    """Return the first opcodes of the content and their arguments; the pickle is only disassembled."""
    try:
        if kind is FileKind.TORCH:
            with zipfile.ZipFile(path) as archive:
                member = next(name for name in archive.namelist() if _inner(name) == "data.pkl")
                with archive.open(member) as stream:
                    return _opcodes(stream)
        with path.open("rb") as stream:
            for _ in range(_LEGACY_PREAMBLE):
                list(pickletools.genops(stream))
            return _opcodes(stream)
    except Exception:  # a damaged pickle, about which nothing more can be said
        return []


def _opcodes(stream: Any) -> list[tuple[str, Any]]:
    opcodes = ((code.name, value) for code, value, _ in pickletools.genops(stream))
    return list(islice((each for each in opcodes if each[0] not in ("FRAME", "MARK", "MEMOIZE")), 4))


def _is_object(start: list[tuple[str, Any]]) -> bool:
    """Whether a pickle is an object of a class of its own, and no dict."""
    # The old format describes a module by a tuple ("module", class, file, source) in front of it.
    globals_first = [value for name, value in start[1:2] if name == "GLOBAL"]
    return ("BINUNICODE", "module") in start[:2] or globals_first not in ([], ["collections OrderedDict"])


def _kind_of_zip(path: Path) -> FileKind:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
    except zipfile.BadZipFile as error:
        raise InputError(f"{path}: truncated, or not a whole zip file, as torch.save writes it") from error
    names = {_inner(member) for member in members}
    if "constants.pkl" in names:
        return FileKind.TORCHSCRIPT
    if "data.pkl" in names:
        return FileKind.TORCH
    if any(name in ("serialized_exported_program.json", "models/model.json") for name in (*names, *members)):
        return FileKind.EXPORTED
    if any("aotinductor" in member for member in members):
        raise InputError(
            f"{path}: a compiled AOTInductor package, which has no gradients; give the torch.export program"
        )
    if any(member.endswith(".npy") for member in members):
        raise InputError(f"{path}: an archive of numpy arrays; {_CONVERT}")
    raise InputError(f"{path}: a zip archive of {_some(members)}; {_UNPACK}")


def _inner(member: str) -> str:
    """Return the name of a member without the folder in front that torch.save makes of the file's name."""
    return member.partition("/")[2]


def _foreign(path: Path, head: bytes) -> str:
    """Return what a file is that holds no weights, and what to do."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if not head:
        return f"an empty file; {_DOWNLOAD} again"
    if _WEB_PAGE.match(text):
        return f"a web page and not a file of weights; {_DOWNLOAD}, not the page about it"
    for magic, what, remedy in _FOREIGN:
        if head.startswith(magic):
            return f"{what}; {remedy}"
    if head[:1] == b"\x80" and head[1:2] <= b"\x05" and len(head) > _SHORTEST_PICKLE:
        load = f'pickle.load(open({str(path)!r}, "rb"))'
        weights = "{name: torch.as_tensor(value) for name, value in content.items()}"
        return f"a plain pickle, {_conversion(load, weights)}"
    members = _tar_members(path)
    if {"storages", "tensors", "pickle"} <= set(members):
        return f"a file of torch 0.1, {_conversion(_torch_load(path), 'content')}"
    if members:
        return f"a tar archive of {_some(members)}; {_UNPACK}"
    if text[:1] in (b"{", b"["):
        return f"a JSON text and not a file of weights; {_DOWNLOAD}"
    return "truncated, or not a file of torch.save, safetensors, TorchScript or torch.export"


def _tar_members(path: Path) -> list[str]:
    try:
        with tarfile.open(path, "r:") as archive:
            return archive.getnames()
    except tarfile.TarError:
        return []


def _folder_sentence(path: Path) -> str:
    names = sorted(entry.name for entry in path.iterdir())
    if ".metadata" in names:
        return (
            f"{path}: a folder of torch.distributed.checkpoint; make one file of it with "
            f"`python -m torch.distributed.checkpoint.format_utils dcp_to_torch {path} weights.pt`"
        )
    return f"{path}: a folder, wanted a file of weights; the folder holds {_some(names) or 'nothing'}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
