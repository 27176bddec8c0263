"""results.csv as plots: how many times faster each op is, and how the synthesis grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from benchmarks.results import growth_exponent, of_op

PLOTS = Path(__file__).parent / "plots"
COLORS = ["#2f6db5", "#e08a1e", "#3c9d64"]
# A fixed salt and no date: the same rows give the same bytes.
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "zskd_fast",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_PEERS = {
    "soft_cross_entropy": ["F.cross_entropy", "log_softmax, mul, sum", "torch.compile"],
    "distillation_loss": ["F.kl_div", "F.kl_div, log_target", "torch.compile"],
    "dirichlet": ["torch Dirichlet", "numpy dirichlet"],
    "impression_update_": ["Adam fused, prior, clamp", "Adam foreach, prior, clamp", "torch.compile"],
}


def draw_plots(rows: pd.DataFrame, folder: Path = PLOTS) -> list[Path]:
    """Write the plots for which there are rows; returns their files."""
    with plt.rc_context(STYLE):
        figures = {"speed": _speed(rows), "growth": _growth(rows)}
        return [save(figure, folder / f"{name}.svg") for name, figure in figures.items() if figure]


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as SVG and close it."""
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)
    return path


def _speed(rows: pd.DataFrame) -> Figure | None:
    threads, device = rows["threads"].max(), rows["device"].iloc[0]
    rows = rows[rows["op"].isin(_PEERS) & (rows["threads"] == threads)]
    if rows.empty:
        return None
    figure, axes = plt.subplots(2, 2, figsize=(10, 6.5), layout="constrained")
    for (op, found), axis in zip(((op, rows[rows["op"] == op]) for op in _PEERS), axes.flat, strict=True):
        if len(found):
            _speed_of(found, _PEERS[op], axis)
        axis.axhline(1.0, color="#888888", linewidth=0.8)
        axis.set_title(op, loc="left", fontsize=10)
    figure.suptitle(f"Times faster than ... on {device}, {threads} threads")
    return figure


def _speed_of(rows: pd.DataFrame, peers: list[str], axis: Any) -> None:
    several = rows["setting"].nunique() > 1
    rows = rows.assign(case=rows["shape"] + ("\n" + rows["setting"] if several else ""))
    seconds = rows.set_index(["case", "provider"])["median_s"].unstack().loc[rows["case"].unique()]
    ratios = seconds.reindex(columns=peers).div(seconds["zskd_fast"], axis=0).fillna(0.0)
    top = ratios.max(axis=None)  # space for the legend above the bars
    ratios.plot.bar(ax=axis, rot=0, width=0.8, color=COLORS, xlabel="", fontsize=7, ylim=(0, 1.4 * top))
    for bars in axis.containers:
        axis.bar_label(bars, fmt=lambda ratio: f"{ratio:.1f}" if ratio else "", fontsize=7)
    axis.legend(frameon=False, fontsize=7)


def _growth(rows: pd.DataFrame) -> Figure | None:
    grown = {axis: of_op(rows, f"growth with {axis}") for axis in ("impressions", "batch", "classes")}
    grown = {axis: found for axis, found in grown.items() if len(found)}
    if not grown:
        return None
    size = (3.4 * len(grown), 5.5)
    figure, axes = plt.subplots(2, len(grown), figsize=size, layout="constrained", squeeze=False, sharey="row")
    for (name, found), column in zip(grown.items(), axes.T, strict=True):
        for axis, value, unit in zip(column, ("median_s", "peak_mb"), ("seconds", "peak MB"), strict=True):
            axis.plot(found["shape"].astype(int), found[value], "o-", color=COLORS[0])
            axis.set(xscale="log", yscale="log", xlabel=name, ylabel=unit)
            exponent = growth_exponent(found, value)
            if exponent is not None:
                axis.set_title(f"{unit} ~ {name}^{exponent:.2f}", loc="left", fontsize=9)
            if value == "peak_mb":
                axis.set_ylim(100, 10000)
    return figure
