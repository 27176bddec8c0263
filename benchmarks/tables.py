"""results.csv as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from benchmarks.figures import figures_table
from benchmarks.results import growth_exponent, of_op
from benchmarks.whole_jobs import accuracy_times_table, jobs_table
from zskd_fast.repro.table import markdown

_OPS = (
    *("soft_cross_entropy", "distillation_loss", "dirichlet", "impression_update_", "total_variation_grad_"),
    *("max_pool", "dead_leaves", "augment"),
)
_TRAFFIC = {"soft_cross_entropy": "65536x100", "distillation_loss": "65536x100", "impression_update_": "1000x1x32x32"}
_GROWTH = {"impressions": "impressions", "batch": "batch size", "classes": "classes K"}
_SPREAD = {"seconds, p20 to p80": "{0.p20_s:.3g} to {0.p80_s:.3g}"}
_RATE = {"job": "{0.setting}", "provider": "{0.provider}", "threads": "{0.threads}", "image-steps/s": "{0.rate:,.0f}"}
_STEPS = {"job": "{0.setting}", "provider": "{0.provider}", "threads": "{0.threads}", "steps/s": "{0.rate:,.2f}"}
_SCALING = {"one thread per process": "{0.provider}", "impressions/s": "{0.rate:,.0f}", "gain": "{0.gain:.2f}x"}
_COPY = {"threads": "{0.threads}", "GB/s": "{0.gb_per_s:.1f}"}
_MOVED = {"op": "`{0.op}` {0.shape}", "provider": "{0.provider}", "bytes moved / least bytes": "{0.traffic:.2f}"}


def sections(rows: pd.DataFrame) -> str:
    """Return a section per op or job that was measured on one machine."""
    made = {
        "Target figures": figures_table(rows),
        **{f"`{op}`": _op_table(of_op(rows, op)) for op in _OPS},
        "Bytes moved": _table(_traffic(rows), _MOVED),
        "Synthesis": _table(of_op(rows, "synthesis"), _RATE | _SPREAD),
        "Distillation": _table(of_op(rows, "distillation"), _STEPS | _SPREAD),
        "Synthesis and distillation": jobs_table(rows),
        "Processes": _table(_scaling(of_op(rows, "scaling")), _SCALING | _SPREAD),
        "Time to accuracy": accuracy_times_table(rows),
        "The teacher's forward and backward pass": _teacher_table(of_op(rows, "teacher")),
        "Growth": _growth_table(rows),
        "Copy bandwidth": _table(of_op(rows, "copy"), _COPY | _SPREAD),
    }
    return "\n\n".join(f"### {title}\n\n{text}" for title, text in made.items() if text)


def _table(rows: pd.DataFrame, columns: dict[str, str]) -> str:
    """Return a line per row; a column is a head and the format of its cells."""
    return _lines(columns, [[cell.format(row) for cell in columns.values()] for row in rows.itertuples()])


def _lines(heads: Iterable[str], lines: Sequence[Sequence[str]]) -> str:
    return markdown(list(heads), lines) if lines else ""


def _op_table(rows: pd.DataFrame) -> str:
    """Median times: zskd_fast with its share of the copy bandwidth, the others with their time over its time."""
    case = ["shape", "setting", "threads"]
    ours = rows[rows["provider"] == "zskd_fast"].set_index(case)["median_s"]
    cells = [_cell(row) for row in rows.join(ours.rename("ours"), on=case).itertuples()]
    providers = sorted(set(rows["provider"]), key=lambda name: (not name.startswith("zskd_fast"), name))
    return _pivoted(rows.assign(cell=cells), case, "provider", providers)


def _cell(row: Any) -> str:
    if row.provider.startswith("zskd_fast"):
        return _time(row.median_s) + (f" ({row.copy_share:.0%} of copy)" if row.copy_share > 0 else "")
    return _time(row.median_s) + (f" ({row.median_s / row.ours:.1f}x)" if row.ours > 0 else "")


def _traffic(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows whose traffic is shown: one shape per op, with one thread."""
    parts = [rows[(rows["op"] == op) & (rows["shape"] == shape)] for op, shape in _TRAFFIC.items()]
    return pd.concat(parts).query("threads == 1 and traffic > 0")


def _scaling(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with their gain over one process with the same work."""
    rates = rows.set_index("provider")["rate"]
    one = rows["provider"].str.replace("2 processes", "1 process").map(rates)
    return rows.assign(gain=rows["rate"] / one)


def _teacher_table(rows: pd.DataFrame) -> str:
    """Images per second, and over those of the frozen teacher in batches of 100."""
    frozen = rows[rows["provider"] == "frozen"].set_index("setting")["rate"]
    gains = rows["rate"] / rows["setting"].map(frozen)
    cells = [f"{rate:,.0f} ({gain:.2f}x)" for rate, gain in zip(rows["rate"], gains, strict=True)]
    rows = rows.assign(cell=cells, option=rows["provider"], teacher=rows["setting"] + ", images/s")
    return _pivoted(rows.sort_values("option"), ["option"], "teacher", sorted(set(rows["teacher"])))


def _growth_table(rows: pd.DataFrame) -> str:
    lines: list[list[str]] = []
    for axis, name in _GROWTH.items():
        grown = of_op(rows, f"growth with {axis}")
        for row in grown.itertuples():
            lines.append([name, f"{int(row.shape):,}", _time(row.median_s), f"{row.peak_mb:,.0f} MB"])
        time, memory = growth_exponent(grown, "median_s"), growth_exponent(grown, "peak_mb")
        if time is not None:
            lines.append([name, "fitted exponent", f"{time:.2f}", f"{memory:.2f}"])
    return _lines(["grows", "size", "time", "peak memory of the process"], lines)


def _pivoted(rows: pd.DataFrame, case: list[str], across: str, columns: list[str]) -> str:
    """Return a line per case in the order of the rows and a column per value of ``across``, with ``cell`` as text."""
    table = rows.set_index([*case, across])["cell"].unstack()
    lines = rows[case].drop_duplicates().join(table, on=case).fillna("").astype(str)
    return _lines([*case, *columns], lines[[*case, *columns]].values.tolist())


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"
