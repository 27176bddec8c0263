"""Readers for the binary version and the Python version (pickles) of CIFAR-10."""

import pickle
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from zskd_fast.errors import InputError

_BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
_SHAPE = (3, 32, 32)
_PIXELS = prod(_SHAPE)

_Batch = tuple[torch.Tensor, torch.Tensor]


def find_cifar10_batches(folder: Path, split: Literal["train", "test"]) -> list[Path]:
    """Return the paths of the split's batches in `folder` or its usual sub-folders; empty if there are none.

    The binary version is preferred where both exist. All batches of the split are listed even if only some exist.
    """
    for root, suffix in (
        (folder, ".bin"),
        (folder / "cifar-10-batches-bin", ".bin"),
        (folder, ""),
        (folder / "cifar-10-batches-py", ""),
    ):
        paths = [root / (name + suffix) for name in _BATCHES[split]]
        if any(path.is_file() for path in paths):
            return paths
    return []


def read_cifar10_split(paths: list[Path]) -> _Batch:
    """Read and join batches: images uint8 [N, 3, 32, 32] and labels int64 [N].

    A batch of the Python version is a pickle; it is read without calling anything that the file names. Raises
    InputError if a batch is missing or damaged.
    """
    absent = [path.name for path in paths if not path.is_file()]
    if absent:
        raise InputError(f"{paths[0].parent}: missing {', '.join(absent)} of the CIFAR-10 batches")
    batches = [(_read_binary if path.suffix == ".bin" else _read_pickle)(path) for path in paths]
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return images, labels


def _read_binary(path: Path) -> _Batch:
    content = path.read_bytes()
    if not content or len(content) % (1 + _PIXELS):
        raise InputError(f"{path}: truncated, got {len(content)} bytes, wanted a multiple of {1 + _PIXELS}")
    records = _to_tensor(content).reshape(-1, 1 + _PIXELS)
    return records[:, 1:].reshape(-1, *_SHAPE), _checked_labels(path, records[:, 0].to(torch.int64))


def _read_pickle(path: Path) -> _Batch:
    try:
        with path.open("rb") as file:
            batch = _Unpickler(file, encoding="bytes").load()
        if not isinstance(batch, dict) or not {b"data", b"labels"} <= batch.keys():
            raise InputError("not a CIFAR-10 batch, wanted a dictionary with 'data' and 'labels'")
        images, labels = _pickled_images(batch[b"data"], batch[b"labels"])
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except Exception as error:  # a damaged pickle can raise almost anything
        raise InputError(f"{path}: not a CIFAR-10 batch, or truncated ({error})") from error
    return images, _checked_labels(path, labels)


def _pickled_images(data: object, labels: object) -> _Batch:
    if not isinstance(data, _Pickled) or not isinstance(labels, list):
        raise InputError("'data' must be an array and 'labels' a list")
    _, shape, dtype, fortran_order, content = data.state
    if dtype.arguments[0] not in ("u1", b"u1") or fortran_order:
        got = f"dtype {dtype.arguments[0]}, fortran_order={fortran_order}"
        raise InputError(f"a CIFAR-10 batch holds a C-ordered uint8 array, got {got}")
    wanted = (len(labels), _PIXELS)
    if shape != wanted or len(content) != prod(wanted):
        got = f"{shape} with {len(content)} bytes"
        raise InputError(f"'data' is {got}, wanted {wanted}, one row for each label")
    return _to_tensor(content).reshape(-1, *_SHAPE), torch.tensor(labels, dtype=torch.int64)


def _checked_labels(path: Path, labels: torch.Tensor) -> torch.Tensor:
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) <= 9:
        raise InputError(f"{path}: got labels from {int(labels.min())} to {int(labels.max())}, wanted 0 to 9")
    return labels


def _to_tensor(content: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(bytearray(content), np.uint8))  # a bytearray is writable


class _Pickled:
    """The arguments and the state of a pickled numpy array or dtype, kept as they are.

    It stands in for numpy's own classes, whose __setstate__ is not made for untrusted files.
    """

    state: tuple[Any, ...] = ()

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state


def _latin1_bytes(text: str, encoding: object) -> bytes:
    return text.encode("latin1")  # protocol 2 spells bytes as a call of _codecs.encode(text, "latin1")


_ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _Pickled,
    ("numpy._core.multiarray", "_reconstruct"): _Pickled,
    ("numpy", "ndarray"): _Pickled,
    ("numpy", "dtype"): _Pickled,
    ("_codecs", "encode"): _latin1_bytes,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise InputError(f"the pickle calls {module}.{name}, which no CIFAR-10 batch needs")
        return _ADMITTED[module, name]
