"""Redraw the tables and the plot of docs/recipes.md from the runs: python -m benchmarks.ablation_report"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterable
from dataclasses import replace

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from scipy.stats import spearmanr

from benchmarks.ablation import BASE, FACTORS, Row, read_results
from benchmarks.machine import ROOT
from benchmarks.plots import PLOTS, STYLE, save
from benchmarks.report import fill
from zskd_fast.repro.setups import SETUPS

_PAGE = ROOT / "docs" / "recipes.md"
_PLOT = PLOTS / "ablation.svg"
_COLOURS = {"fast-mnist": "#2f6db5", "fast-fashion": "#e08a1e"}
_MEASURES = {"agreement_impressions": "impressions", "agreement_noise": "start noise"}
_AVERAGED = ("student_accuracy", *_MEASURES, "synthesis_seconds", "distillation_seconds")


def main() -> int:
    """Fill the marked place of the page; returns 1 if there is nothing to show."""
    rows = read_results()
    if not rows:
        print("there are no runs yet; start them with: python -m benchmarks.ablation", file=sys.stderr)
        return 1
    factors = [factor for factor in FACTORS if any(row.factor == factor for row in rows)]
    _draw(rows, factors)
    tables = [f"### {factor.capitalize()}\n\n{_table(rows, factor)}" for factor in factors]
    fill(
        _PAGE,
        "\n\n".join(
            [_spread(rows), _ranking(rows), f"![ablation](../benchmarks/plots/{_PLOT.name})", *tables]
        ),
        mark="ablation",
    )
    return 0


def _table(rows: list[Row], factor: str) -> str:
    data_sets = _data_sets(rows)
    names = [SETUPS[data_set].data_set for data_set in data_sets]
    header = [factor]
    for name in names:
        header += [f"{name}: accuracy %", "agreement %: impressions", "start noise", "seconds"]
    lines = [header, ["---"] * len(header)]
    for value in [BASE, *FACTORS[factor]]:
        found = [mean_row(rows, data_set, factor, value) for data_set in data_sets]
        if any(found):
            lines.append([value, *(cell for row in found for cell in _cells(row))])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cells(row: Row | None) -> list[str]:
    if row is None:
        return ["", "", "", ""]
    shares = (row.student_accuracy, row.agreement_impressions, row.agreement_noise)
    seconds = row.synthesis_seconds + row.distillation_seconds
    return [*(f"{100 * share:.1f}" for share in shares), f"{seconds:.0f}"]


def _spread(rows: list[Row]) -> str:
    """How far seeds alone move the base: what a difference between two rows is to be held against."""
    lines = ["| base, each seed | seeds | accuracy % | least | most |", "| --- | --- | --- | --- | --- |"]
    for data_set in _data_sets(rows):
        found = [100 * row.student_accuracy for row in rows if row.key[:2] == (data_set, BASE)]
        deviation = statistics.stdev(found) if len(found) > 1 else 0.0
        mean, least, most = statistics.mean(found), min(found), max(found)
        lines.append(
            f"| {SETUPS[data_set].data_set} | {len(found)} | {mean:.1f} ± {deviation:.1f} | {least:.1f} | {most:.1f} |"
        )
    return "\n".join(lines)


def _ranking(rows: list[Row]) -> str:
    """How well a measure that needs no data orders the runs: Spearman's rank correlation with the accuracy."""
    lines = ["| rank correlation with the accuracy | of runs | " + " | ".join(_MEASURES.values()) + " |"]
    lines.append("| --- | --- |" + " --- |" * len(_MEASURES))
    for data_set in _data_sets(rows):
        found = [row for row in rows if row.data_set == data_set]
        accuracy = [row.student_accuracy for row in found]
        cells = [f"{spearmanr(accuracy, [getattr(row, name) for row in found])[0]:.2f}" for name in _MEASURES]
        lines.append(f"| {SETUPS[data_set].data_set} | {len(found)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _draw(rows: list[Row], factors: list[str]) -> None:
    """A row of panels for each factor, one for each data set: accuracy over its values, the base as a line across."""
    data_sets = _data_sets(rows)
    size = (5 * len(data_sets), 2 * len(factors))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(factors), len(data_sets), figsize=size, layout="constrained", squeeze=False
        )
        for row, factor in zip(axes, factors, strict=True):
            for axis, data_set in zip(row, data_sets, strict=True):
                _panel(axis, rows, data_set, factor)
        for axis, data_set in zip(axes[0], data_sets, strict=True):
            axis.set_title(f"{SETUPS[data_set].data_set}\n{factors[0]}")
        save(figure, _PLOT)


def _panel(axis: plt.Axes, rows: list[Row], data_set: str, factor: str) -> None:
    colour = _COLOURS[data_set]
    for place, value in enumerate(FACTORS[factor]):
        row = mean_row(rows, data_set, factor, value)
        if row:
            axis.plot(place, 100 * row.student_accuracy, "o", color=colour)
    base = mean_row(rows, data_set, factor, BASE)
    if base:
        axis.axhline(100 * base.student_accuracy, color=colour, linewidth=0.8, linestyle=":")
    axis.set_xticks(range(len(FACTORS[factor])), FACTORS[factor], rotation=15, ha="right", fontsize=8)
    axis.set_title(factor)
    axis.set_ylabel("accuracy %")


def _data_sets(rows: Iterable[Row]) -> list[str]:
    return sorted({row.data_set for row in rows}, reverse=True)


def mean_row(rows: Iterable[Row], data_set: str, factor: str, value: str) -> Row | None:
    """The mean over seeds; that of the base over the seeds that the factor has been run with, and no others.

    Seeds alone move a student further than most changes do: none is held against seeds that it has not had.
    """
    of_factor = [row for row in rows if row.key[:2] == (data_set, factor)]
    if value == BASE:
        seeds = {row.seed for row in of_factor}
        found = [row for row in rows if row.key[:2] == (data_set, BASE) and row.seed in seeds]
    else:
        found = [row for row in of_factor if row.value == value]
    if not found:
        return None
    return replace(
        found[0], **{name: statistics.mean(getattr(row, name) for row in found) for name in _AVERAGED}
    )


if __name__ == "__main__":
    sys.exit(main())
