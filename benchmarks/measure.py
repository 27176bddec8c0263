"""One measurement: warm up, time in turns with pytest-benchmark, and make a row of what its rounds say."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from benchmarks import machine
from benchmarks.results import Key, Row
from benchmarks.traffic import bytes_moved

# A round is at least this long, so that the clock and the loop around the call do not count.
_SHORTEST_ROUND = 1e-3
_MOST_ROUNDS = 50


@dataclass
class Measurement:
    """The rounds of one key so far, and the facts that belong to its row."""

    items: int
    least_bytes: int | None = None
    traffic: float | None = None
    seconds: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)

    def row(self, key: Key, copy_gb_per_s: float | None) -> Row:
        """The row of these rounds; the share needs the copy bandwidth with the same threads."""
        p20, median, p80 = np.percentile(self.seconds, (20, 50, 80)).tolist()
        rate = self.least_bytes / median / 1e9 if self.least_bytes else None
        return Row(
            key=key,
            median_s=median,
            p20_s=p20,
            p80_s=p80,
            rounds=len(self.seconds),
            items=self.items,
            gb_per_s=rate,
            copy_share=rate / copy_gb_per_s if rate and copy_gb_per_s else None,
            traffic=self.traffic,
            peak_mb=max(self.peak_bytes) / 1e6 if self.peak_bytes else None,
            commit=machine.commit(),
        )


class Session:
    """Everything measured in one run of pytest: what the providers' turns add up to."""

    def __init__(self, device: str, seconds_per_turn: float):
        self.device = device
        self.seconds_per_turn = seconds_per_turn
        self.measurements: dict[Key, Measurement] = {}

    def rows(self, known: dict[Key, Row]) -> list[Row]:
        """A row for each key; ``known`` are earlier rows, for a copy bandwidth that was not measured now."""
        rates = {key: row.gb_per_s for key, row in known.items() if key.op == "copy"}
        for key, measurement in self.measurements.items():
            if key.op == "copy":
                rates[key] = measurement.row(key, None).gb_per_s
        by_place = {_place(key): rate for key, rate in rates.items()}
        return [
            measurement.row(key, by_place.get(_place(key)))
            for key, measurement in self.measurements.items()
            if measurement.seconds
        ]


def _place(key: Key) -> tuple[str, str, int]:
    return key.device, key.torch, key.threads


class Bench:
    """The fixture ``bench``: times one call of one provider, in this turn."""

    def __init__(self, session: Session, benchmark, turn: int):
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
        """Times ``call`` and adds its rounds to those of the earlier turns.

        ``least_bytes`` is what any implementation has to move. ``check`` is given the result of the first call
        and raises if it is wrong. ``once`` is for a call that can only be made once: nothing warms it up.
        """
        key = self._key(op, setting, provider, shape, dtype)
        measurement = self._session.measurements.setdefault(key, Measurement(items, least_bytes))
        if count_traffic and measurement.traffic is None:
            measurement.traffic = bytes_moved(call) / least_bytes
        call = self._synchronised(call)
        rounds, iterations = (1, 1) if once else self._warm_up(call, check, measurement.seconds)
        self._benchmark.pedantic(call, rounds=rounds, iterations=iterations)
        if self._benchmark.stats is not None:  # with --benchmark-disable there are no timings
            measurement.seconds += self._benchmark.stats.stats.data
        return measurement

    def note(
        self, seconds: float, *, op: str, provider: str, shape: str, items: int, setting: str = ""
    ) -> None:
        """Adds a time that was taken inside a longer run."""
        key = self._key(op, setting, provider, shape, "float32")
        self._session.measurements.setdefault(key, Measurement(items)).seconds.append(seconds)

    def _key(self, op: str, setting: str, provider: str, shape: str, dtype: str) -> Key:
        device = machine.device_name(self.device)
        return Key(op, setting, provider, shape, dtype, torch.get_num_threads(), device, torch.__version__)

    def _synchronised(self, call: Callable[..., object]) -> Callable[..., object]:
        if torch.device(self.device).type != "cuda":
            return call

        def synchronised(*args, **kwargs):
            result = call(*args, **kwargs)
            torch.cuda.synchronize(self.device)
            return result

        return synchronised

    def _warm_up(
        self, call: Callable[[], Any], check: Callable[[Any], None] | None, earlier: list[float]
    ) -> tuple[int, int]:
        """Warm the call up; returns the rounds, and calls per round, that fit this turn's share of time.

        A call longer than that share is not made a second time for nothing.
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


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return max(time.perf_counter() - start, 1e-7), result
