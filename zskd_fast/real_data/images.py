"""Readers for labelled image sets in a local folder: MNIST-like IDX files and CIFAR-10.

Real images are only ever used to train a teacher and to print an accuracy; the method itself needs none.
Nothing is downloaded. Every reader raises `InputError` naming the file, what was got and what was wanted.
"""

from __future__ import annotations

import gzip
import pickle
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn import functional as F

from zskd_fast.errors import InputError

__all__ = [
    "LabelledImages",
    "Split",
    "load_cifar10",
    "load_folder",
    "load_idx_images",
    "read_idx",
    "to_input",
]

Split = Literal["train", "test"]

_IDX_SUBFOLDERS = ("", "MNIST/raw", "FashionMNIST/raw", "KMNIST/raw", "raw")
_IDX_PREFIX = {"train": "train", "test": "t10k"}
_IDX_UINT8 = 0x08

_CIFAR_BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
_CIFAR_SHAPE = (3, 32, 32)
_CIFAR_RECORD = 1 + prod(_CIFAR_SHAPE)


@dataclass(frozen=True)
class LabelledImages:
    """images: uint8 [N, C, H, W]; labels: int64 [N]; source: the folder that they were read from."""

    images: torch.Tensor
    labels: torch.Tensor
    source: Path

    def __len__(self) -> int:
        return len(self.labels)


def to_input(images: torch.Tensor, size: int = 32) -> torch.Tensor:
    """uint8 [N, C, H, W] -> float32 [N, C, size, size] in [0, 1], zero-padded evenly on all sides.

    This is the raw input of the models in `zskd_fast.models`: 28x28 digits get a border of two.
    Raises InputError for another dtype and for images larger than `size`.
    """
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise InputError(f"images must be uint8 [N, C, H, W], got {images.dtype} {list(images.shape)}")
    missing_rows, missing_columns = size - images.shape[2], size - images.shape[3]
    if missing_rows < 0 or missing_columns < 0:
        raise InputError(f"images of {images.shape[2]}x{images.shape[3]} do not fit into {size}x{size}")
    top, left = missing_rows // 2, missing_columns // 2
    padding = (left, missing_columns - left, top, missing_rows - top)
    return F.pad(images.to(torch.float32) / 255.0, padding)


def load_folder(folder: str | Path, split: Split) -> LabelledImages:
    """Read one split of whatever image set `folder` holds: IDX files (MNIST and its relatives) or CIFAR-10.

    Accepted: plain or gzipped IDX files in the folder itself (Debian's /usr/share/datasets/fashion-mnist is
    one) or in torchvision's FOLDER/MNIST/raw; CIFAR-10's python or binary batches in the folder itself or in
    its usual sub-folder.
    """
    folder = _existing_folder(folder)
    idx, cifar = _idx_folders(folder, split), _cifar_layouts(folder, split)
    if idx and cifar:
        raise InputError(f"{folder} holds IDX files and CIFAR-10 batches; give the folder of one of them")
    if cifar:
        return load_cifar10(folder, split)
    return load_idx_images(folder, split)


# ---------------------------------------------------------------------------------------------- IDX files


def load_idx_images(folder: str | Path, split: Split) -> LabelledImages:
    """Read the images and labels of one split of an MNIST-like set: uint8 [N, 1, H, W] and int64 [N]."""
    folder = _existing_folder(folder)
    found = _idx_folders(folder, split)
    if not found:
        wanted = f"{_IDX_PREFIX[split]}-images-idx3-ubyte[.gz]"
        raise InputError(f"no {split} images in {folder}: wanted {wanted} there or in its MNIST/raw")
    if len(found) > 1:
        names = " and ".join(str(path) for path in found)
        raise InputError(f"{folder} holds more than one image set; give one of {names}")
    images_path = _idx_file(found[0], split, "images-idx3")
    labels_path = _idx_file(found[0], split, "labels-idx1")
    if labels_path is None:
        raise InputError(f"{found[0]} holds {images_path.name} but not its labels file")
    images, labels = read_idx(images_path, ndim=3), read_idx(labels_path, ndim=1)
    if len(images) != len(labels):
        raise InputError(f"{labels_path}: got {len(labels)} labels, wanted {len(images)}, one for each image")
    return LabelledImages(images.unsqueeze(1), labels.to(torch.int64), found[0])


def read_idx(path: str | Path, ndim: int) -> torch.Tensor:
    """Read one IDX file of unsigned bytes, plain or gzipped: uint8 tensor with `ndim` axes."""
    path = Path(path)
    content = _read_maybe_gzipped(path)
    header_size = 4 + 4 * ndim
    wanted_magic = bytes((0, 0, _IDX_UINT8, ndim))
    if len(content) < header_size:
        raise InputError(f"{path}: truncated, got {len(content)} bytes, wanted a header of {header_size}")
    if content[:4] != wanted_magic:
        got, wanted = content[:4].hex(), wanted_magic.hex()
        raise InputError(f"{path}: not an IDX file of {ndim} axes, got magic 0x{got}, wanted 0x{wanted}")
    shape = [int.from_bytes(content[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(ndim)]
    got_size, wanted_size = len(content) - header_size, prod(shape)
    if got_size != wanted_size:
        fault = "truncated" if got_size < wanted_size else "too long"
        raise InputError(
            f"{path}: {fault}, got {got_size} data bytes, wanted {wanted_size} for shape {shape}"
        )
    return _bytes_to_tensor(content[header_size:]).reshape(shape)


def _idx_folders(folder: Path, split: Split) -> list[Path]:
    candidates = [folder / name for name in _IDX_SUBFOLDERS]
    return [path for path in candidates if _idx_file(path, split, "images-idx3") is not None]


def _idx_file(folder: Path, split: Split, kind: str) -> Path | None:
    stem = f"{_IDX_PREFIX[split]}-{kind}-ubyte"
    for name in (stem, f"{stem}.gz", stem.replace("-idx", ".idx"), stem.replace("-idx", ".idx") + ".gz"):
        if (folder / name).is_file():
            return folder / name
    return None


def _read_maybe_gzipped(path: Path) -> bytes:
    content = path.read_bytes()
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gzip.decompress(content)
    except EOFError as error:
        raise InputError(f"{path}: truncated, the gzip stream of {len(content)} bytes has no end") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: damaged gzip stream ({error})") from error


# ----------------------------------------------------------------------------------------------- CIFAR-10


def load_cifar10(folder: str | Path, split: Split) -> LabelledImages:
    """Read one split of CIFAR-10, binary or python version: uint8 [N, 3, 32, 32] and int64 [N].

    The binary version is preferred where both exist. The python version is a pickle; it is read without
    running anything that the file names.
    """
    folder = _existing_folder(folder)
    layouts = _cifar_layouts(folder, split)
    if not layouts:
        wanted = " or ".join((f"{_CIFAR_BATCHES[split][0]}.bin", _CIFAR_BATCHES[split][0]))
        raise InputError(
            f"no CIFAR-10 {split} batches in {folder}: wanted {wanted} there or in its usual sub-folder"
        )
    root, suffix, read = layouts[0]
    paths = [root / (name + suffix) for name in _CIFAR_BATCHES[split]]
    absent = [path.name for path in paths if not path.is_file()]
    if absent:
        raise InputError(f"{root}: missing {', '.join(absent)} of the CIFAR-10 {split} batches")
    batches = [read(path) for path in paths]
    images = torch.cat([images for images, _ in batches])
    labels = torch.cat([labels for _, labels in batches])
    return LabelledImages(images, labels, root)


_Reader = Callable[[Path], tuple[torch.Tensor, torch.Tensor]]


def _cifar_layouts(folder: Path, split: Split) -> list[tuple[Path, str, _Reader]]:
    layouts = [
        (folder, ".bin", _read_cifar_binary),
        (folder / "cifar-10-batches-bin", ".bin", _read_cifar_binary),
        (folder, "", _read_cifar_pickle),
        (folder / "cifar-10-batches-py", "", _read_cifar_pickle),
    ]
    names = _CIFAR_BATCHES[split]
    return [
        (root, suffix, read)
        for root, suffix, read in layouts
        if any((root / (name + suffix)).is_file() for name in names)
    ]


def _read_cifar_binary(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    content = path.read_bytes()
    if not content or len(content) % _CIFAR_RECORD:
        raise InputError(f"{path}: truncated, got {len(content)} bytes, wanted a multiple of {_CIFAR_RECORD}")
    records = _bytes_to_tensor(content).reshape(-1, _CIFAR_RECORD)
    labels = _checked_cifar_labels(path, records[:, 0].to(torch.int64))
    return records[:, 1:].reshape(-1, *_CIFAR_SHAPE), labels


def _read_cifar_pickle(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    try:
        with path.open("rb") as file:
            batch = _CifarUnpickler(file, encoding="bytes").load()
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except Exception as error:  # a damaged pickle can raise almost anything
        raise InputError(f"{path}: not a CIFAR-10 batch, or truncated ({error})") from error
    if not isinstance(batch, dict) or not {b"data", b"labels"} <= batch.keys():
        raise InputError(f"{path}: not a CIFAR-10 batch, wanted a dictionary with 'data' and 'labels'")
    return _unpacked_cifar_batch(path, batch[b"data"], batch[b"labels"])


def _unpacked_cifar_batch(path: Path, data: Any, labels: Any) -> tuple[torch.Tensor, torch.Tensor]:
    if not isinstance(data, _PickledArray) or not isinstance(labels, list):
        raise InputError(f"{path}: 'data' must be an array and 'labels' a list")
    wanted = (len(labels), _CIFAR_RECORD - 1)
    if data.shape != wanted or len(data.content) != prod(wanted):
        got = f"{data.shape} with {len(data.content)} bytes"
        raise InputError(f"{path}: 'data' is {got}, wanted {wanted}, one row for each label")
    images = _bytes_to_tensor(data.content).reshape(-1, *_CIFAR_SHAPE)
    return images, _checked_cifar_labels(path, torch.tensor(labels, dtype=torch.int64))


def _checked_cifar_labels(path: Path, labels: torch.Tensor) -> torch.Tensor:
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) <= 9:
        raise InputError(f"{path}: got labels from {int(labels.min())} to {int(labels.max())}, wanted 0 to 9")
    return labels


class _PickledDtype:
    """Stands in for numpy.dtype, so that a pickle reaches no numpy code."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        self.code = code.decode() if isinstance(code, bytes) else code

    def __setstate__(self, state: object) -> None:
        pass  # byte order and field names mean nothing for single bytes


class _PickledArray:
    """Stands in for numpy.ndarray: shape and bytes of a C-ordered uint8 array; all others are refused."""

    shape: tuple[int, ...] = ()
    content: bytes = b""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran_order, content = state
        if dtype.code != "u1" or fortran_order:
            raise InputError(f"a CIFAR-10 batch holds a C-ordered uint8 array, got dtype {dtype.code}")
        self.shape = tuple(shape)
        self.content = content


def _reconstruct(*_: object) -> _PickledArray:
    return _PickledArray()


def _latin1_bytes(text: str, encoding: str | bytes = "latin1") -> bytes:
    return text.encode("latin1")  # how protocol 2 spells bytes when Python 3 wrote the file


class _CifarUnpickler(pickle.Unpickler):
    _ADMITTED = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy", "ndarray"): _PickledArray,
        ("numpy", "dtype"): _PickledDtype,
        ("_codecs", "encode"): _latin1_bytes,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._ADMITTED[module, name]
        except KeyError:
            raise InputError(f"the pickle calls {module}.{name}, which no CIFAR-10 batch needs") from None


# ------------------------------------------------------------------------------------------------- shared


def _existing_folder(folder: str | Path) -> Path:
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    return folder


def _bytes_to_tensor(content: bytes) -> torch.Tensor:
    # bytearray: torch warns about read-only buffers, and callers may write into the tensor
    return (
        torch.frombuffer(bytearray(content), dtype=torch.uint8)
        if content
        else torch.empty(0, dtype=torch.uint8)
    )
