"""Imports the compiled extension, and says what is wrong where that fails."""

import importlib
from pathlib import Path

import torch

REBUILD = "pip install --no-build-isolation --force-reinstall --no-deps zskd_fast (in a clone: make build)"


def _release(version: str) -> str:
    return ".".join(version.split("+")[0].split(".")[:2])


def _built_for() -> str | None:
    """The torch version that the build recorded, since a mismatched extension does not load and cannot say it."""
    record = Path(__file__).parent / "_built_for_torch.txt"
    return record.read_text().strip() if record.exists() else None


def load():
    """The extension module `zskd_fast._C`.

    Raises ImportError where it is missing, or was built for another minor version of torch (whose C++ interface has no
    stable ABI).
    """
    built, running = _built_for(), torch.__version__
    if built is None:
        raise ImportError(f"zskd_fast's extension is not built; build it with: {REBUILD}")
    mismatch = (
        f"zskd_fast was built for torch {built}, but torch {running} is running; rebuild with: {REBUILD}"
    )
    if _release(built) != _release(running):
        raise ImportError(mismatch)
    try:
        return importlib.import_module("zskd_fast._C")
    except ImportError as error:
        raise ImportError(f"{mismatch} ({error})") from error


_C = load()
