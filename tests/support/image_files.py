"""Writers of small image sets in the IDX format of MNIST."""

import gzip
import struct
from pathlib import Path

import numpy as np


def idx_bytes(array: np.ndarray) -> bytes:
    """Return an array as an IDX file of unsigned bytes."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_test_split(folder: Path, size: int = 28) -> None:
    """Write two white images of class 0 as a gzipped MNIST test split."""
    images = np.full((2, size, size), 255, dtype=np.uint8)
    for name, array in (("images", images), ("labels", np.zeros(2, dtype=np.uint8))):
        (folder / f"t10k-{name}-idx{array.ndim}-ubyte.gz").write_bytes(gzip.compress(idx_bytes(array)))
