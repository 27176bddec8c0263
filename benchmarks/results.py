"""results.csv: one row per measurement, replaced when it is measured again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

RESULTS = Path(__file__).parent / "results.csv"

KEY = ["op", "setting", "provider", "shape", "dtype", "threads", "device", "torch"]
"""What was measured, by what, and where; ``setting`` holds the arguments besides the shape, such as "beta=0.1"."""
COLUMNS: dict[str, type] = {
    **dict.fromkeys(KEY, str),
    "threads": int,
    # Median seconds of one call over all rounds of all turns, then the 20th and 80th percentile.
    "median_s": float,
    "p20_s": float,
    "p80_s": float,
    "rounds": int,
    # Rows, images or image-steps of one call.
    "items": int,
    # The least bytes that the op must move over the median, in 1e9 bytes per second.
    "gb_per_s": float,
    # gb_per_s over the copy bandwidth measured with the same number of threads.
    "copy_share": float,
    # Bytes that the call's aten ops read and write over the least bytes; empty where they cannot be counted.
    "traffic": float,
    # Peak resident memory of the process, in 1e6 bytes.
    "peak_mb": float,
    "commit": str,
}


def as_rows(records: list[dict[str, object]]) -> pd.DataFrame:
    """Return a table with the columns of results.csv; a value that a record lacks is NaN."""
    return pd.DataFrame(records, columns=list(COLUMNS)).astype(COLUMNS)


def read_rows(path: Path = RESULTS) -> pd.DataFrame:
    """Read a results file; without the file the table is empty."""
    if not path.exists():
        return as_rows([])
    numbers = {column: [""] for column, kind in COLUMNS.items() if kind is float}
    return pd.read_csv(path, dtype=COLUMNS, keep_default_na=False, na_values=numbers)


def upsert(new: pd.DataFrame, path: Path = RESULTS) -> None:
    """Put rows into a results file, replacing rows with the same key; the file stays sorted."""
    rows = pd.concat([read_rows(path), new]).drop_duplicates(KEY, keep="last")
    # Shapes by their sizes: 100x10 before 4096x32000.
    sizes = [tuple(int(size) if size.isdigit() else 0 for size in shape.split("x")) for shape in rows["shape"]]
    order = ["device", "torch", "op", "setting", "sizes", "shape", "threads", "provider", "dtype"]
    rows = rows.assign(sizes=sizes).sort_values(order)
    rows.to_csv(path, columns=list(COLUMNS), index=False, float_format="%.4g", lineterminator="\n")


def machines(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """Split the rows by device and torch version, the machine with most rows first."""
    groups = [group for _, group in rows.groupby(["device", "torch"], sort=False)]
    return sorted(groups, key=len, reverse=True)


def of_op(rows: pd.DataFrame, op: str) -> pd.DataFrame:
    """Return the rows of one op, with the items per second as ``rate``."""
    found = rows[rows["op"] == op]
    return found.assign(rate=found["items"] / found["median_s"])


def times_faster(
    rows: pd.DataFrame, op: str, peers: list[str], shape: str, threads: int, setting: str | None = None
) -> float | None:
    """Return how many times faster zskd_fast is than the fastest of the peers; None if one was not measured.

    ``setting`` may be left out where an op has only one.
    """
    case = rows[(rows["op"] == op) & (rows["shape"] == shape) & (rows["threads"] == threads)]
    if setting is not None:
        case = case[case["setting"] == setting]
    seconds = case.set_index("provider")["median_s"].reindex(["zskd_fast", *peers])
    return None if seconds.isna().any() else float(seconds[peers].min() / seconds["zskd_fast"])


def growth_exponent(rows: pd.DataFrame, value: str) -> float | None:
    """Return p of value ~ size^p by least squares on the logarithms; None with fewer than three sizes.

    ``value`` is a column such as ``median_s``; the size is the shape of the row.
    """
    if len(rows) < 3:
        return None
    return float(np.polyfit(np.log(rows["shape"].astype(float)), np.log(rows[value]), 1)[0])
