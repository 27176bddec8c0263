"""The rows of one machine, asked for by name."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from benchmarks.results import Key, Row


@dataclass(frozen=True)
class Lookup:
    """The rows of one device and one torch."""

    device: str
    torch: str
    rows: list[Row]

    def find(
        self, op: str, provider: str, shape: str, threads: int, setting: str | None = None
    ) -> Row | None:
        """The row, or None; ``setting`` may be left out where an op has one only."""
        wanted = (op, provider, shape, threads)
        for row in self.rows:
            key = row.key
            if (key.op, key.provider, key.shape, key.threads) == wanted and setting in (None, key.setting):
                return row
        return None

    def of(self, op: str) -> list[Row]:
        """The rows of one op, in the order of the file."""
        return [row for row in self.rows if row.key.op == op]

    def thread_counts(self) -> list[int]:
        """The numbers of threads that were measured, rising."""
        return sorted({row.key.threads for row in self.rows})


def lookups(rows: dict[Key, Row]) -> list[Lookup]:
    """One lookup for each device and torch, the one with most rows first."""
    places = Counter((key.device, key.torch) for key in rows)
    return [
        Lookup(*place, [row for key, row in rows.items() if (key.device, key.torch) == place])
        for place, _ in places.most_common()
    ]


def growth_exponent(rows: list[Row], value: str) -> float | None:
    """p of value ~ size^p, by least squares on the logarithms; None with fewer than three sizes.

    ``value`` is ``median_s`` or ``peak_mb``; the size is the shape of the row.
    """
    if len(rows) < 3:
        return None
    sizes = [float(row.key.shape) for row in rows]
    values = [getattr(row, value) for row in rows]
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])
