"""Check of an installation: versions, build, and every op compared with its reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

import torch

from zskd_fast.runtime.environment import environment

# Far above the rounding of float32 on any device, far below the error of a wrong result.
_TOLERANCE = 1e-4
_ROWS, _CLASSES = 64, 10

_Trial = Callable[[ModuleType, torch.device], list[torch.Tensor]]
"""Calls one op of a module (`zskd_fast.ops` or `zskd_fast.reference`) on a device and returns its results."""


@dataclass(frozen=True)
class Check:
    """The outcome of one check."""

    name: str
    passed: bool
    detail: str
    """The largest error relative to the largest value, or the exception that was raised."""


def report() -> int:
    """Print versions, build and the outcome of each check; return the exit code, 1 if a check failed."""
    facts = environment("cuda" if torch.cuda.is_available() else "cpu")
    for name, value in facts.items():
        for key, shown in value.items() if isinstance(value, dict) else [("", value)]:
            print(f"{f'{name} {key}'.strip():<24}{shown or 'none'}")
    checks = check_ops()
    for check in checks:
        print(f"{check.name:<32}{'ok' if check.passed else 'FAILED':<8}{check.detail}")
    return 0 if all(check.passed for check in checks) else 1


def check_ops() -> list[Check]:
    """Run every op on every available device, and compare it with its reference in plain torch."""
    try:
        ops, reference = import_module("zskd_fast.ops"), import_module("zskd_fast.reference")
    except (ImportError, OSError) as error:
        return [Check("import of the ops", False, str(error))]
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return [
        _compare(f"{name} on {device}", trial, ops, reference, torch.device(device))
        for device in devices
        for name, trial in _TRIALS.items()
    ]


def _compare(name: str, trial: _Trial, ops: ModuleType, reference: ModuleType, device: torch.device) -> Check:
    try:
        pairs = zip(trial(ops, device), trial(reference, device), strict=True)
        error = max(_relative_error(got, wanted) for got, wanted in pairs)
    except Exception as raised:  # an op can raise anything
        return Check(name, False, f"{type(raised).__name__}: {raised}".splitlines()[0])
    return Check(name, error <= _TOLERANCE, f"largest error {error:.1e}")


def _relative_error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the largest error, divided by the largest wanted value if that is above 1; infinity if it is NaN."""
    got, wanted = got.detach(), wanted.detach()
    scale = wanted.abs().max().clamp_min(1.0)
    return float(((got - wanted).abs().max() / scale).nan_to_num(nan=float("inf")))


def _inputs(device: torch.device) -> Iterator[torch.Tensor]:
    """Yield normal numbers [_ROWS, _CLASSES], the same sequence in every call and on every device."""
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


def _total_variation_grad(ops: ModuleType, device: torch.device) -> list[torch.Tensor]:
    inputs = _inputs(device)
    x, grad = (next(inputs).reshape(4, 2, 8, -1) for _ in range(2))
    ops.total_variation_grad_(grad, x, 0.1)
    return [grad]


def _dead_leaves(ops: ModuleType, device: torch.device) -> list[torch.Tensor]:
    leaves = next(_inputs(device)).flatten()
    return [ops.dead_leaves(leaves[: len(leaves) // 63 * 63].reshape(-1, 7, 9), 12, 20)]


def _augment(ops: ModuleType, device: torch.device) -> list[torch.Tensor]:
    x, positions = next(_inputs(device)).reshape(4, 2, 8, -1), torch.arange(4, device=device)
    effects = {"rotation_sigma": 0.3, "flip_probability": 0.5, "mix_probability": 0.5, "noise_max": 0.1}
    return [ops.augment(x, positions, seed=1, stream=0, shift_sigma=0.1, clamp=True, low=-1.0, **effects)]


def _max_pool(ops: ModuleType, device: torch.device) -> list[torch.Tensor]:
    return [ops.max_pool(next(_inputs(device)).reshape(4, 2, 8, -1))]


_TRIALS: dict[str, _Trial] = {
    "soft_cross_entropy": _soft_cross_entropy,
    "distillation_loss": _distillation_loss,
    "dirichlet": _dirichlet,
    "philox": _philox,
    "impression_update_": _impression_update,
    "total_variation_grad_": _total_variation_grad,
    "dead_leaves": _dead_leaves,
    "augment": _augment,
    "max_pool": _max_pool,
}
