"""Redraw the tables and the plot of docs/recipes.md from the runs: python -m benchmarks.ablation_report"""

from __future__ import annotations

import sys
from collections.abc import Iterable

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
        "\n\n".join([_ranking(rows), f"![ablation](../benchmarks/plots/{_PLOT.name})", *tables]),
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
        found = [_find(rows, data_set, factor, value) for data_set in data_sets]
        if any(found):
            lines.append([value, *(cell for row in found for cell in _cells(row))])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cells(row: Row | None) -> list[str]:
    if row is None:
        return ["", "", "", ""]
    shares = (row.student_accuracy, row.agreement_impressions, row.agreement_noise)
    seconds = row.synthesis_seconds + row.distillation_seconds
    return [*(f"{100 * share:.1f}" for share in shares), f"{seconds:.0f}"]


def _ranking(rows: list[Row]) -> str:
    """How well a measure that needs no data orders the runs: Spearman's rank correlation with the accuracy."""
    lines = ["| rank correlation with the accuracy | of runs | " + " | ".join(_MEASURES.values()) + " |"]
    lines.append("| --- | --- |" + " --- |" * len(_MEASURES))
    for data_set in _data_sets(rows):
        runs = [row for row in rows if row.data_set == data_set]
        accuracy = [row.student_accuracy for row in runs]
        cells = [f"{spearmanr(accuracy, [getattr(row, name) for row in runs])[0]:.2f}" for name in _MEASURES]
        lines.append(f"| {SETUPS[data_set].data_set} | {len(runs)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _draw(rows: list[Row], factors: list[str]) -> None:
    """A panel for each factor: accuracy over its values, the base as a line across."""
    with plt.rc_context(STYLE):
        columns = 2
        count = -(-len(factors) // columns)
        figure, axes = plt.subplots(
            count, columns, figsize=(10, 2.4 * count), layout="constrained", squeeze=False
        )
        for axis, factor in zip(axes.flat, factors, strict=False):
            _panel(axis, rows, factor)
        for axis in axes.flat[len(factors) :]:
            axis.remove()
        axes.flat[0].legend(frameon=False)
        save(figure, _PLOT)


def _panel(axis: plt.Axes, rows: list[Row], factor: str) -> None:
    values = list(FACTORS[factor])
    for data_set in _data_sets(rows):
        found = [(value, _find(rows, data_set, factor, value)) for value in values]
        points = [(values.index(value), 100 * row.student_accuracy) for value, row in found if row]
        label = SETUPS[data_set].data_set
        axis.plot(
            *zip(*points, strict=True) if points else ((), ()), "o", color=_COLOURS[data_set], label=label
        )
        base = _find(rows, data_set, BASE, BASE)
        if base:
            axis.axhline(100 * base.student_accuracy, color=_COLOURS[data_set], linewidth=0.8, linestyle=":")
    axis.set_xticks(range(len(values)), values, rotation=20, ha="right")
    axis.set_title(factor)
    axis.set_ylabel("accuracy %")


def _data_sets(rows: Iterable[Row]) -> list[str]:
    return sorted({row.data_set for row in rows}, reverse=True)


def _find(rows: Iterable[Row], data_set: str, factor: str, value: str) -> Row | None:
    wanted = (data_set, BASE if value == BASE else factor, value)
    return next((row for row in rows if row.key[:3] == wanted), None)


if __name__ == "__main__":
    sys.exit(main())
