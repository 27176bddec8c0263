"""Labelled image sets in a local folder, in any format that the package reads.

Real images are used only to train a teacher and to measure an accuracy; the method needs none. Nothing is downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch.nn import functional as F

from zskd_fast.errors import InputError
from zskd_fast.real_data.cifar10 import find_cifar10_batches, read_cifar10_split
from zskd_fast.real_data.idx import find_idx_folders, read_idx_split

Split = Literal["train", "test"]


@dataclass(frozen=True)
class LabelledImages:
    """images: uint8 [N, C, H, W]; labels: int64 [N]; source: the folder that they were read from."""

    images: torch.Tensor
    labels: torch.Tensor
    source: Path

    def __len__(self) -> int:
        return len(self.labels)


def load_folder(folder: str | Path, split: Split) -> LabelledImages:
    """Read one split of the image set in `folder`: IDX files (MNIST and similar sets) or CIFAR-10.

    Accepted: plain or gzipped IDX files in the folder itself (as Debian's /usr/share/datasets/fashion-mnist has them)
    or in torchvision's FOLDER/MNIST/raw; CIFAR-10's Python or binary batches in the folder itself or in their usual
    sub-folder. Raises InputError, with the name of the file, if the folder holds no image set, more than one, or a
    damaged one.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    idx, cifar10 = find_idx_folders(folder, split), find_cifar10_batches(folder, split)
    if idx and cifar10:
        raise InputError(f"{folder} holds IDX files and CIFAR-10 batches; give the folder of one of them")
    if cifar10:
        return LabelledImages(*read_cifar10_split(cifar10), cifar10[0].parent)
    if len(idx) > 1:
        names = " and ".join(str(path) for path in idx)
        raise InputError(f"{folder} holds more than one image set; give one of {names}")
    root = idx[0] if idx else folder
    return LabelledImages(*read_idx_split(root, split), root)


def to_input(images: torch.Tensor, size: int = 32) -> torch.Tensor:
    """Convert uint8 [N, C, H, W] to float32 [N, C, size, size] in [0, 1], zero-padded evenly on all sides.

    This is the raw input of the models in `zskd_fast.models`: 28x28 digits get a border of two pixels.
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
