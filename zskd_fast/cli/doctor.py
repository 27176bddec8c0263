"""Is this installation sound? Versions and build, and each op once against its reference."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

import torch

__all__ = ["Check", "check_ops", "environment", "report"]

_TOLERANCE = 1e-4
_ROWS, _CLASSES = 64, 10


@dataclass(frozen=True)
class Check:
    """One thing that was looked at; `detail` is the error found, or why it could not be looked at."""

    name: str
    passed: bool
    detail: str


def environment(device: torch.device | str = "cpu") -> dict[str, object]:
    """Versions, build and machine, in plain strings and numbers fit for JSON."""
    return {
        "zskd_fast": _version(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.platform(),
        "device": _device_name(torch.device(device)),
        "threads": torch.get_num_threads(),
        "build": _build_info(),
    }


def report() -> int:
    """Print the facts about this installation and the outcome of each check; returns 1 if one failed."""
    facts = environment("cuda" if torch.cuda.is_available() else "cpu")
    for name, value in facts.items():
        for key, shown in value.items() if isinstance(value, dict) else [("", value)]:
            print(f"{f'{name} {key}'.strip():<24}{shown}")
    checks = check_ops()
    for check in checks:
        print(f"{check.name:<32}{'ok' if check.passed else 'FAILED':<8}{check.detail}")
    return 0 if all(check.passed for check in checks) else 1


def check_ops() -> list[Check]:
    """Run every op on every device that is here, and compare it with its reference in plain torch."""
    try:
        ops, reference = import_module("zskd_fast.ops"), import_module("zskd_fast.reference")
    except (ImportError, OSError) as error:
        return [Check("import of the ops", False, str(error))]
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return [
        _compare(f"{name} on {device}", run, ops, reference, torch.device(device))
        for device in devices
        for name, run in _TRIALS.items()
    ]


def _compare(
    name: str,
    run: Callable[[ModuleType, torch.device], list[torch.Tensor]],
    ops: ModuleType,
    reference: ModuleType,
    device: torch.device,
) -> Check:
    try:
        pairs = zip(run(ops, device), run(reference, device), strict=True)
        error = max(_relative_error(got, wanted) for got, wanted in pairs)
    except Exception as error:  # whatever an op raises is what the user has to hear of
        return Check(name, False, f"{type(error).__name__}: {str(error).splitlines()[0]}")
    return Check(name, error <= _TOLERANCE, f"largest error {error:.1e}")


def _relative_error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    got, wanted = got.detach(), wanted.detach()
    scale = wanted.abs().max().clamp_min(1.0)
    return float(((got - wanted).abs().max() / scale).nan_to_num(nan=float("inf")))


def _inputs(device: torch.device) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    while True:
        yield torch.randn(_ROWS, _CLASSES, generator=generator).to(device)


def _soft_cross_entropy(ops: ModuleType, device: torch.device) -> list[torch.Tensor]:
    inputs = _inputs(device)
    logits, target = next(inputs).requires_grad_(), next(inputs).softmax(dim=1)
    loss = ops.soft_cross_entropy(logits, target, 20.0)
    return [loss.detach(), *torch.autograd.grad(loss, logits)]


def _distillation_loss(ops: ModuleType, device: torch.device) -> list[torch.Tensor]:
    inputs = _inputs(device)
    student, teacher = next(inputs).requires_grad_(), next(inputs)
    loss = ops.distillation_loss(student, teacher, 4.0)
    return [loss.detach(), *torch.autograd.grad(loss, student)]


def _dirichlet(ops: ModuleType, device: torch.device) -> list[torch.Tensor]:
    concentration = next(_inputs(device)).exp()
    return [ops.dirichlet(concentration, torch.arange(_ROWS, device=device), seed=1)]


def _philox(ops: ModuleType, device: torch.device) -> list[torch.Tensor]:
    ids = torch.arange(_ROWS, device=device)
    return [ops.philox(ids, 7, seed=1, stream=0, distribution=kind) for kind in ("uniform", "normal")]


def _impression_update(ops: ModuleType, device: torch.device) -> list[torch.Tensor]:
    inputs = _inputs(device)
    x, grad = next(inputs), next(inputs)
    mean, square = torch.zeros_like(x), torch.zeros_like(x)
    for step in (1, 2):
        ops.impression_update_(x, grad, mean, square, step, lr=0.1, l1=1e-2, l2=1e-2, lo=-1.0, hi=1.0)
    return [x, mean, square]


def _max_pool(ops: ModuleType, device: torch.device) -> list[torch.Tensor]:
    return [ops.max_pool(next(_inputs(device)).reshape(4, 2, 8, -1))]


_TRIALS = {
    "soft_cross_entropy": _soft_cross_entropy,
    "distillation_loss": _distillation_loss,
    "dirichlet": _dirichlet,
    "philox": _philox,
    "impression_update_": _impression_update,
    "max_pool": _max_pool,
}


def _version() -> str:
    try:
        return importlib.metadata.version("zskd_fast")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _build_info() -> dict[str, object]:
    try:
        import zskd_fast

        return dict(zskd_fast.build_info())
    except (ImportError, OSError, AttributeError) as error:
        return {"error": str(error).splitlines()[0]}
