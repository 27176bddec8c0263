"""The machine and the software of a run, and the choice of its threads and device."""

import importlib.metadata
import platform

import torch

from zskd_fast.errors import InputError
from zskd_fast.runtime.precision import tf32_in_use
from zskd_fast.runtime.processes import launched


def environment(device: torch.device | str = "cpu") -> dict[str, object]:
    """Return versions, build and machine as strings, numbers and one dict of strings, fit for JSON."""
    return {
        "zskd_fast": _version(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.platform(),
        "device": _device_name(torch.device(device)),
        "threads": torch.get_num_threads(),
        "build": _build_info(),
    }


def cuda_facts(device: torch.device) -> dict[str, str]:
    """Return what decides the rounding on a CUDA device besides torch: its model, the libraries, the use of TF32.

    Empty for a CPU.
    """
    if device.type != "cuda":
        return {}
    tf32 = {f"tf32_{where}": "on" if used else "off" for where, used in tf32_in_use().items()}
    cudnn = str(torch.backends.cudnn.version())
    return {"device": _device_name(device), "cuda": str(torch.version.cuda), "cudnn": cudnn, **tf32}


def set_up(*, threads: int, device: str) -> torch.device:
    """Set torch's number of threads (0: leave it) and return the device, after a test allocation on it.

    Of several processes on a machine, each one that is given "cuda" gets the visible GPU of its local rank. Only the
    command line calls this, as it changes torch's global state. Raises InputError if the device cannot be used.
    """
    if threads < 0:
        raise InputError(f"threads must not be negative, got {threads}")
    if threads:
        torch.set_num_threads(threads)
    try:
        own = _own_device(device)
        torch.empty(1, device=own)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"the device {device!r} cannot be used here: {reason}") from error
    return own


def _own_device(name: str) -> torch.device:
    world = launched()
    if name == "cuda" and world.size > 1:
        # A launcher may show each process its own GPU only, which is number 0 then, whatever the rank.
        number = world.local_rank % max(torch.cuda.device_count(), 1)
        torch.cuda.set_device(number)
        return torch.device("cuda", number)
    return torch.device(name)


def _version() -> str:
    try:
        return importlib.metadata.version("zskd_fast")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _build_info() -> dict[str, str]:
    try:
        # Imported here, as `doctor` must also work where the extension does not load.
        from zskd_fast._extension import build_info

        return build_info()
    except (ImportError, OSError, AttributeError) as error:
        return {"error": str(error).splitlines()[0]}
