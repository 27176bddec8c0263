"""Wall-clock time per phase of a run."""

import contextlib
import threading
import time
from collections.abc import Iterator

import torch
from torch.profiler import record_function

PHASES = (
    "targets",
    "augmentation",
    "adversary",
    "recycling",
    "teacher forward",
    "teacher backward",
    "student",
    "loss",
    "update",
    "captured step",
    "evaluation",
    "io",
)


class PhaseTimer:
    """Adds up the seconds spent in each phase: ``with timer("teacher forward"): ...``.

    While torch.profiler runs, each phase is also one of its ranges, ``zskd::<phase>``. Nothing waits for the
    device, so on a GPU the seconds are those of launching the work; the profiler's ranges tell the rest. Phases
    do not nest.
    """

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._lock, self._threads = threading.Lock(), 1

    @contextlib.contextmanager
    def shared_by(self, threads: int) -> Iterator[None]:
        """So many threads time their phases at once meanwhile; each counts for its share of the wall clock."""
        self._threads = threads
        try:
            yield
        finally:
            self._threads = 1

    def add(self, phase: str, seconds: float) -> None:
        """Adds a thread's seconds to a phase."""
        with self._lock:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds / self._threads

    def __call__(self, phase: str) -> "_Phase":
        if phase not in PHASES:
            raise KeyError(f"unknown phase {phase!r}, the phases are {', '.join(PHASES)}")
        return _Phase(self, phase)


class _Phase:
    """A class, not a contextlib generator: it runs several times per step."""

    __slots__ = ("_phase", "_range", "_start", "_timer")

    def __init__(self, timer, phase):
        self._timer = timer
        self._phase = phase
        # Even an unused range costs more than the two looks at the clock.
        self._range = record_function(f"zskd::{phase}") if torch.autograd._profiler_enabled() else None

    def __enter__(self):
        if self._range is not None:
            self._range.__enter__()
        self._start = time.perf_counter()

    def __exit__(self, *exception):
        self._timer.add(self._phase, time.perf_counter() - self._start)
        if self._range is not None:
            self._range.__exit__(*exception)
