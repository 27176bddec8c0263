"""Wall-clock time per phase of a run."""

import contextlib
import threading
import time
from collections.abc import Iterator

import torch
from torch.profiler import record_function

PHASES = (
    "targets",
    "pruned start",
    "augmentation",
    "dormant units",
    "teacher forward",
    "teacher backward",
    "student",
    "loss",
    "update",
    "captured step",
    "calibration",
    "evaluation",
    "io",
)


class PhaseTimer:
    """Sums the seconds of each phase: ``with timer("teacher forward"): ...``.

    While torch.profiler runs, each phase is also a profiler range, ``zskd::<phase>``. The timer never synchronizes
    with the device: on a GPU the seconds are those of launching the work, and the profiler's ranges give the device
    time. Phases do not nest.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._lock, self._threads = threading.Lock(), 1

    @contextlib.contextmanager
    def shared_by(self, threads: int) -> Iterator[None]:
        """Count each thread's seconds as 1/threads of the wall clock while the context is active."""
        self._threads = threads
        try:
            yield
        finally:
            self._threads = 1

    def add(self, phase: str, seconds: float) -> None:
        """Add a thread's seconds to a phase."""
        with self._lock:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds / self._threads

    def __call__(self, phase: str) -> "_Phase":
        if phase not in PHASES:
            raise KeyError(f"unknown phase {phase!r}, the phases are {', '.join(PHASES)}")
        return _Phase(self, phase)


class _Phase:
    """The context of one phase: a class, as it is entered several times per step and a generator is slower."""

    __slots__ = ("_phase", "_range", "_start", "_timer")

    def __init__(self, timer: PhaseTimer, phase: str) -> None:
        self._timer = timer
        self._phase = phase
        # Even an unused range costs more than reading the clock twice.
        self._range = record_function(f"zskd::{phase}") if torch.autograd._profiler_enabled() else None

    def __enter__(self) -> None:
        if self._range is not None:
            self._range.__enter__()
        self._start = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        self._timer.add(self._phase, time.perf_counter() - self._start)
        if self._range is not None:
            self._range.__exit__(*exception)
