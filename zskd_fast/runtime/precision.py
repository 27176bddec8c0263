"""Global settings of torch's CUDA libraries that hold while some work is done: full float32, and equal bits on repeat.

They change nothing on a CPU. Several threads may be inside at once: the settings last until the last one leaves.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import torch

_Setting = tuple[object, str, object]  # the object, the name of its attribute, the value it is to have


class _Held:
    """A context that gives settings other values, and restores them when the last of its users leaves."""

    def __init__(self, settings: Callable[[], list[_Setting]]):
        self._settings = settings
        self._lock = threading.Lock()
        self._users = 0
        self._before: list[_Setting] = []

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            self._users += 1
            if self._users == 1:
                wanted = [(owner, name, value) for owner, name, value in self._settings() if _is_readable(owner, name)]
                self._before = [(owner, name, getattr(owner, name)) for owner, name, _ in wanted]
                _apply(wanted)
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    _apply(self._before)


def _full_float32() -> list[_Setting]:
    """Both of torch's interfaces, the older one first: torch refuses to read it while the newer one says otherwise."""
    backends = torch.backends
    settings: list[_Setting] = [(backends.cuda.matmul, "allow_tf32", False), (backends.cudnn, "allow_tf32", False)]
    newer = (backends.cuda.matmul, getattr(backends.cudnn, "conv", None), getattr(backends.cudnn, "rnn", None))
    return settings + [(owner, "fp32_precision", "ieee") for owner in newer if owner is not None]


def _repeatable() -> list[_Setting]:
    return [(torch.backends.cudnn, "deterministic", True), (torch.backends.cudnn, "benchmark", False)]


full_float32 = _Held(_full_float32)
"""``with full_float32():`` keeps TF32, which rounds to 11 bits, out of convolutions and matrix products."""

repeatable = _Held(_repeatable)
"""``with repeatable():`` lets cuDNN choose only algorithms that give the same bits on repeat, and none by timing."""


def tf32_in_use() -> dict[str, bool]:
    """Return whether convolutions and matrix products may use TF32."""
    backends = torch.backends
    return {
        "convolutions": _allows_tf32(backends.cudnn, getattr(backends.cudnn, "conv", None)),
        "matrix_products": _allows_tf32(backends.cuda.matmul, backends.cuda.matmul),
    }


def _allows_tf32(older: object, newer: object) -> bool:
    precision = getattr(newer, "fp32_precision", None) if _is_readable(newer, "fp32_precision") else None
    if precision in ("ieee", "tf32"):
        return precision == "tf32"
    if _is_readable(older, "allow_tf32"):
        return bool(getattr(older, "allow_tf32"))  # noqa: B009 (of an object that mypy does not know)
    return getattr(torch.backends, "fp32_precision", None) == "tf32"


def _is_readable(owner: object, name: str) -> bool:
    """Whether torch has this setting and lets it be read, which it does not after a mix of its two interfaces."""
    try:
        return owner is not None and getattr(owner, name) is not None
    except (AttributeError, AssertionError, RuntimeError):
        return False


def _apply(settings: list[_Setting]) -> None:
    for owner, name, value in settings:
        setattr(owner, name, value)
