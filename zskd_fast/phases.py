"""Wall-clock time per phase of a run."""

import time

import torch
from torch.profiler import record_function

PHASES = (
    "targets",
    "augmentation",
    "adversary",
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

    def __call__(self, phase: str) -> "_Phase":
        if phase not in PHASES:
            raise KeyError(f"unknown phase {phase!r}, the phases are {', '.join(PHASES)}")
        return _Phase(self.seconds, phase)


class _Phase:
    """A class, not a contextlib generator: it runs several times per step."""

    __slots__ = ("_phase", "_range", "_seconds", "_start")

    def __init__(self, seconds, phase):
        self._seconds = seconds
        self._phase = phase
        # Even an unused range costs more than the two looks at the clock.
        self._range = record_function(f"zskd::{phase}") if torch.autograd._profiler_enabled() else None

    def __enter__(self):
        if self._range is not None:
            self._range.__enter__()
        self._start = time.perf_counter()

    def __exit__(self, *exception):
        elapsed = time.perf_counter() - self._start
        self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + elapsed
        if self._range is not None:
            self._range.__exit__(*exception)
