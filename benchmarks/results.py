"""The committed results: one row for each thing measured, replaced when it is measured again."""

from __future__ import annotations

import csv
from dataclasses import astuple, dataclass, fields
from pathlib import Path

RESULTS = Path(__file__).parent / "results.csv"


@dataclass(frozen=True)
class Key:
    """What was measured, by what, and where; a results file has one row for each key."""

    op: str
    setting: str
    """The arguments that matter besides the shape, such as "beta=0.1"."""
    provider: str
    shape: str
    dtype: str
    threads: int
    device: str
    torch: str


@dataclass(frozen=True)
class Row:
    """A key and its measured values; None where a value has no meaning."""

    key: Key
    median_s: float
    """Median seconds of one call, over all rounds of all turns; then the 20th and 80th percentile."""
    p20_s: float
    p80_s: float
    rounds: int
    """How many timings the median is of."""
    items: int
    """Rows, images or image-steps that one call works on."""
    gb_per_s: float | None
    """The least bytes that the op must move, over the median; 1 GB = 1e9 bytes."""
    copy_share: float | None
    """gb_per_s over the copy bandwidth that was measured with the same threads."""
    traffic: float | None
    """Bytes that the call's aten ops read and write, over the least bytes; None where it cannot be counted."""
    peak_mb: float | None
    """Most resident memory of the process, in MB of 1e6 bytes."""
    commit: str

    @property
    def items_per_s(self) -> float:
        """Rows, images or image-steps per second."""
        return self.items / self.median_s


_KEY_COLUMNS = [field.name for field in fields(Key)]
_VALUE_COLUMNS = [field.name for field in fields(Row)][1:]


def read_rows(path: Path = RESULTS) -> dict[Key, Row]:
    """Every row of a results file, by key; none if there is no file yet."""
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = map(_from_cells, csv.DictReader(file))
        return {row.key: row for row in rows}


def upsert(new: list[Row], path: Path = RESULTS) -> None:
    """Put rows into a results file, each in the place of the row with its key; the file stays sorted."""
    rows = read_rows(path) | {row.key: row for row in new}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_KEY_COLUMNS + _VALUE_COLUMNS)
        for key in sorted(rows, key=_natural_order):
            writer.writerow(_to_cells(rows[key]))


def _to_cells(row: Row) -> list[str]:
    values = [getattr(row, name) for name in _VALUE_COLUMNS]
    shown = [
        "" if value is None else f"{value:.4g}" if isinstance(value, float) else value for value in values
    ]
    return [*astuple(row.key), *shown]


def _from_cells(cells: dict[str, str]) -> Row:
    key = Key(**{name: int(cells[name]) if name == "threads" else cells[name] for name in _KEY_COLUMNS})
    kinds = {"rounds": int, "items": int, "commit": str}
    return Row(key, **{name: kinds.get(name, _number)(cells[name]) for name in _VALUE_COLUMNS})


def _number(text: str) -> float | None:
    return float(text) if text else None


def _natural_order(key: Key) -> tuple[object, ...]:
    """By device and op first, and shapes by their sizes: 100x10 before 4096x32000."""
    sizes = tuple(int(size) if size.isdigit() else 0 for size in key.shape.split("x"))
    return key.device, key.torch, key.op, key.setting, sizes, key.shape, key.threads, key.provider, key.dtype
