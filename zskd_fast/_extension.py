"""The compiled extension `zskd_fast._C`: its import, the errors where that fails, and what it was built from."""

import importlib
from pathlib import Path
from types import ModuleType

import torch

REBUILD = "pip install --no-build-isolation --force-reinstall --no-deps zskd_fast (in a clone: make build)"


def _release(version: str) -> str:
    return ".".join(version.split("+")[0].split(".")[:2])


def _built_for() -> str | None:
    """The torch version that the build recorded. A mismatched extension does not load, so it cannot be asked."""
    record = Path(__file__).parent / "_built_for_torch.txt"
    return record.read_text().strip() if record.exists() else None


def load() -> ModuleType:
    """Import the extension module `zskd_fast._C`.

    Raises ImportError if it is missing, or was built for another minor version of torch: torch's C++ interface has no
    stable ABI.
    """
    built, running = _built_for(), torch.__version__
    if built is None:
        raise ImportError(f"zskd_fast's extension is not built; build it with: {REBUILD}")
    versions = f"built for torch {built}, but torch {running} is running" if built != running else f"for torch {built}"
    if _release(built) != _release(running):
        raise ImportError(f"zskd_fast was {versions}; rebuild with: {REBUILD}")
    try:
        return importlib.import_module("zskd_fast._C")
    except ImportError as error:
        raise ImportError(
            f"zskd_fast's extension, {versions}, does not load: {error}; rebuild with: {REBUILD}"
        ) from error


_C = load()


def build_info() -> dict[str, str]:
    """Facts about the compiled extension.

    Returns a dict with the keys torch (the version it was built for), compiler, cuda (version of the toolkit, or "" for
    a CPU build), cuda_architectures (in the notation of TORCH_CUDA_ARCH_LIST, or ""), isa (the instruction set in use:
    baseline, avx2 or avx512) and running_torch.
    """
    return {**_C.build_info(), "running_torch": torch.__version__}
