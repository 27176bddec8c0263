"""One measurement: warm up, time in turns with pytest-benchmark, and summarize the rounds as a row."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import machine
from benchmarks.results import KEY, as_rows
from benchmarks.traffic import bytes_moved

# A round takes at least this many seconds, so that the clock and the loop around the call do not count.
_SHORTEST_ROUND = 1e-3
_MOST_ROUNDS = 50
# Written on a GPU between two calls: the next call finds nothing of its data in the L2 cache (50 MB on an H100), and is
# queued while the device still writes, so that its launch costs nothing.
_FLUSHED_BYTES = 512 << 20


Key = tuple[str | int, ...]
"""The values of the columns `KEY` of results.csv."""


@dataclass
class Measurement:
    """The rounds of one key so far, and the other facts of its row."""

    items: int
    least_bytes: int | None = None
    traffic: float | None = None
    seconds: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)

    def values(self) -> dict[str, object]:
        """Return the columns of the row besides the key; the share of the copy bandwidth is not known here."""
        p20, median, p80 = np.percentile(self.seconds, (20, 50, 80)).tolist()
        return {
            "median_s": median,
            "p20_s": p20,
            "p80_s": p80,
            "rounds": len(self.seconds),
            "items": self.items,
            "gb_per_s": self.least_bytes / median / 1e9 if self.least_bytes else None,
            "traffic": self.traffic,
            "peak_mb": max(self.peak_bytes) / 1e6 if self.peak_bytes else None,
            "commit": machine.commit(),
        }


class Session:
    """All measurements of one run of pytest, over all turns of all providers."""

    def __init__(self, device: str, seconds_per_turn: float) -> None:
        self.device = device
        self.seconds_per_turn = seconds_per_turn
        self.measurements: dict[Key, Measurement] = {}

    def rows(self, known: pd.DataFrame) -> pd.DataFrame:
        """Return one row per key; ``known`` are earlier rows, for a copy bandwidth that was not measured now."""
        measured = [(key, each) for key, each in self.measurements.items() if each.seconds]
        new = as_rows([dict(zip(KEY, key, strict=True)) | each.values() for key, each in measured])
        place = ["device", "torch", "threads"]
        copies = pd.concat([known, new]).query("op == 'copy'").drop_duplicates(place, keep="last")
        limit = new[place].merge(copies[[*place, "gb_per_s"]], how="left", on=place)["gb_per_s"]
        return new.assign(copy_share=new["gb_per_s"] / limit)


class Bench:
    """The fixture ``bench``: times one call of one provider in one turn."""

    def __init__(self, session: Session, benchmark: Any, turn: int) -> None:
        self._session = session
        self._benchmark = benchmark
        self.device = session.device
        self.is_first_turn = turn == 0

    def __call__(
        self,
        call: Callable[..., object],
        *,
        op: str,
        provider: str,
        shape: str,
        items: int,
        setting: str = "",
        dtype: str = "float32",
        least_bytes: int | None = None,
        count_traffic: bool = False,
        check: Callable[[Any], None] | None = None,
        once: bool = False,
    ) -> Measurement:
        """Time ``call`` and add its rounds to those of the earlier turns.

        ``least_bytes`` is what any implementation has to move. ``check`` gets the result of the first call and raises
        if it is wrong. ``once`` is for a call that cannot be repeated: there is no warm-up.
        """
        key = self._key(op, setting, provider, shape, dtype)
        measurement = self._session.measurements.setdefault(key, Measurement(items, least_bytes))
        if count_traffic and least_bytes and measurement.traffic is None:
            measurement.traffic = bytes_moved(call) / least_bytes
        waiting = self._waiting(call)
        rounds, iterations = (1, 1) if once else self._warm_up(waiting, check, measurement.seconds)
        if self._on_gpu and not once:
            self._benchmark.pedantic(waiting, rounds=1, iterations=1)
            flushed = torch.empty(_FLUSHED_BYTES, dtype=torch.uint8, device=self.device)
            measurement.seconds += device_seconds(call, rounds, flushed)
            return measurement
        self._benchmark.pedantic(waiting, rounds=rounds, iterations=iterations)
        if self._benchmark.stats is not None:  # with --benchmark-disable there are no timings
            measurement.seconds += self._benchmark.stats.stats.data
        return measurement

    def require_cpu(self) -> None:
        """Skip a benchmark whose processes compute on a CPU, when another device is measured."""
        if torch.device(self.device).type != "cpu":
            pytest.skip(f"its processes compute on a CPU, not on {self.device}")

    def wait(self) -> None:
        """Wait until the device has done all work, so that a clock may be read."""
        if self._on_gpu:
            torch.cuda.synchronize(self.device)

    def note(self, seconds: float, *, op: str, provider: str, shape: str, items: int, setting: str = "") -> None:
        """Add a time that was taken inside a longer run."""
        key = self._key(op, setting, provider, shape, "float32")
        self._session.measurements.setdefault(key, Measurement(items)).seconds.append(seconds)

    def _key(self, op: str, setting: str, provider: str, shape: str, dtype: str) -> Key:
        device = machine.device_name(self.device)
        return op, setting, provider, shape, dtype, torch.get_num_threads(), device, torch.__version__

    @property
    def _on_gpu(self) -> bool:
        return torch.device(self.device).type == "cuda"

    def _waiting(self, call: Callable[..., object]) -> Callable[..., object]:
        def waiting() -> object:
            result = call()
            self.wait()
            return result

        return waiting if self._on_gpu else call

    def _warm_up(
        self, call: Callable[[], Any], check: Callable[[Any], None] | None, earlier: list[float]
    ) -> tuple[int, int]:
        """Warm the call up; return the rounds, and calls per round, that fit into this turn's share of time.

        A call that takes longer than this share is not repeated for the warm-up alone.
        """
        if earlier:
            seconds = min(earlier)
        else:
            seconds, result = _timed(call)
            if check is not None:
                check(result)
        if seconds < self._session.seconds_per_turn:
            seconds, _ = _timed(call)
        iterations = max(1, round(_SHORTEST_ROUND / seconds))
        rounds = int(self._session.seconds_per_turn / (seconds * iterations))
        return min(max(rounds, 1), _MOST_ROUNDS), iterations


def device_seconds(call: Callable[..., object], rounds: int, flushed: torch.Tensor) -> list[float]:
    """Return the seconds that a GPU takes for each of some calls, by its own clock, with a cold L2 cache.

    ``flushed`` is memory on that GPU, larger than the cache. The host waits once, at the end: the time of launches is
    in no figure as long as a call has fewer of them than fit into the writing of that memory.
    """
    events = [tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) for _ in range(rounds)]
    for begin, end in events:
        flushed.zero_()
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize(flushed.device)
    return [begin.elapsed_time(end) / 1000 for begin, end in events]


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return max(time.perf_counter() - start, 1e-7), result
