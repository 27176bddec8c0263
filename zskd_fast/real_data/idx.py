"""Reader for MNIST-like image sets in IDX files, plain or gzipped."""

import gzip
import zlib
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from zskd_fast.errors import InputError

_SUBFOLDERS = ("", "MNIST/raw", "FashionMNIST/raw", "KMNIST/raw", "raw")
_PREFIX = {"train": "train", "test": "t10k"}
_UINT8 = 0x08


def find_idx_folders(folder: Path, split: Literal["train", "test"]) -> list[Path]:
    """Return `folder` and those of its usual sub-folders that hold an images file of the split."""
    candidates = [folder / name for name in _SUBFOLDERS]
    return [path for path in candidates if _find_file(path, split, "images-idx3") is not None]


def read_idx_split(folder: Path, split: Literal["train", "test"]) -> tuple[torch.Tensor, torch.Tensor]:
    """Read the split of one folder: images uint8 [N, 1, H, W] and labels int64 [N].

    Raises InputError if a file is missing or damaged or the two do not have the same length.
    """
    images_path, labels_path = (_find_file(folder, split, kind) for kind in ("images-idx3", "labels-idx1"))
    if images_path is None:
        wanted = f"{_PREFIX[split]}-images-idx3-ubyte[.gz]"
        raise InputError(f"no {split} images in {folder}: wanted {wanted} there or in its MNIST/raw")
    if labels_path is None:
        raise InputError(f"{folder} holds {images_path.name} but not its labels file")
    images, labels = read_idx(images_path, ndim=3), read_idx(labels_path, ndim=1)
    if len(images) != len(labels):
        raise InputError(f"{labels_path}: got {len(labels)} labels, wanted {len(images)}, one for each image")
    return images.unsqueeze(1), labels.to(torch.int64)


def read_idx(path: Path, ndim: int) -> torch.Tensor:
    """Read one IDX file of unsigned bytes: uint8 tensor with `ndim` axes. Raises InputError if it is damaged."""
    content = _read_maybe_gzipped(path)
    header_size = 4 + 4 * ndim
    wanted_magic = bytes((0, 0, _UINT8, ndim))
    if len(content) < header_size:
        raise InputError(f"{path}: truncated, got {len(content)} bytes, wanted a header of {header_size}")
    if content[:4] != wanted_magic:
        got, wanted = content[:4].hex(), wanted_magic.hex()
        raise InputError(f"{path}: not an IDX file of {ndim} axes, got magic 0x{got}, wanted 0x{wanted}")
    shape = [int.from_bytes(content[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(ndim)]
    got_size, wanted_size = len(content) - header_size, prod(shape)
    if got_size != wanted_size:
        fault = "truncated" if got_size < wanted_size else "too long"
        sizes = f"got {got_size} data bytes, wanted {wanted_size} for shape {shape}"
        raise InputError(f"{path}: {fault}, {sizes}")
    # A bytearray is writable, as torch wants it.
    return torch.from_numpy(np.frombuffer(bytearray(content[header_size:]), np.uint8).reshape(shape))


def _find_file(folder: Path, split: str, kind: str) -> Path | None:
    for separator in ("-", "."):
        for suffix in ("", ".gz"):
            path = folder / f"{_PREFIX[split]}-{kind.replace('-', separator)}-ubyte{suffix}"
            if path.is_file():
                return path
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
