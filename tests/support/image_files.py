"""Image sets in the formats of MNIST, written for a test."""

import gzip
import struct
from pathlib import Path

import numpy as np


def idx_bytes(array: np.ndarray) -> bytes:
    """An IDX file of unsigned bytes."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_test_split(folder: Path, size: int = 28) -> None:
    """Two white images of class 0 as a gzipped MNIST test split."""
    images = np.full((2, size, size), 255, dtype=np.uint8)
    for name, array in (("images", images), ("labels", np.zeros(2, dtype=np.uint8))):
        (folder / f"t10k-{name}-idx{array.ndim}-ubyte.gz").write_bytes(gzip.compress(idx_bytes(array)))
