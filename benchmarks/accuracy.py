"""accuracy.csv as tables and plots: the curve of accuracy against seconds, and one factor at a time."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import ScalarFormatter

from benchmarks.plots import COLORS, PLOTS, STYLE, save
from benchmarks.sweep import BASE, CURVE, CURVE_METHODS, FACTORS
from zskd_fast.repro.methods import METHODS
from zskd_fast.repro.results import Outcome, change_text
from zskd_fast.repro.setups import PAPER, SETUPS
from zskd_fast.repro.table import markdown

_BASE = change_text(BASE)
_VALUES = {
    factor: {change_text(BASE | changes): value for value, changes in values.items()}
    for factor, values in FACTORS.items()
}
"""Factor -> change of a row -> value as shown."""
_MEASURES = {"agreement_impressions": "impressions", "agreement_noise": "start noise"}


def summary_table(outcomes: list[Outcome], unpruned: list[Outcome]) -> str:
    """Return a row per setup: the mean accuracy of the teacher, of each measured method, and the paper's.

    ``unpruned`` are of students that start from random weights, as the paper's do.
    """
    rows = _by_setup(outcomes)
    methods = [method for method in METHODS if any(each.method == method for each in outcomes)]
    columns = {METHODS[method]: _by_method(rows, method) for method in methods}
    unpruned_rows = _by_method(_by_setup(unpruned), "zskd")
    lines = []
    for setup, students in _by_setup([*outcomes, *unpruned]).items():
        paper = SETUPS[setup].published.get(PAPER)
        published = f"{paper.accuracy:.2f}" if paper else ""
        own = unpruned_rows.get(setup, "")
        cells = [values.get(setup, "") for values in columns.values()]
        teacher = f"{100 * students['teacher_accuracy'].iloc[0]:.2f}"
        lines.append([SETUPS[setup].title, teacher, *cells, own, published])
    heads = ["data and models", "teacher", *columns, "data impressions, random first weights", PAPER]
    return markdown(heads, lines)


def _by_method(setups: dict[str, pd.DataFrame], method: str) -> dict[str, str]:
    """Return the mean accuracy of a method's students for each setup that has any, and its deviation over several."""
    accuracies = {setup: rows[rows["method"] == method]["accuracy"] for setup, rows in setups.items()}
    return {setup: _mean_and_std(values.mean(), values.std()) for setup, values in accuracies.items() if len(values)}


def _mean_and_std(mean: float, std: float) -> str:
    """Return a cell; the deviation of a single student is NaN."""
    return f"{mean:.2f}" if pd.isna(std) else f"{mean:.2f} ± {std:.2f}"


def curve_outcomes(outcomes: list[Outcome]) -> list[Outcome]:
    """Return the outcomes of the curve: its methods, parts of the recipe, the whole and its double."""
    sizes = {change_text(changes) for changes in CURVE.values()}
    return [
        each for each in outcomes if each.recipe == "fast" and each.change in sizes and each.method in CURVE_METHODS
    ]


def draw_curve(outcomes: list[Outcome], folder: Path = PLOTS) -> Path:
    """Write the accuracy over the seconds of synthesis and distillation; returns the file."""
    setups = _by_setup(curve_outcomes(outcomes))
    size = (4.5 * len(setups), 3.2)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(setups), figsize=size, layout="constrained", squeeze=False)
        for axis, (setup, rows) in zip(axes.flat, setups.items(), strict=True):
            _draw_methods(axis, rows)
            axis.set_title(SETUPS[setup].data_set, loc="left", fontsize=10)
            axis.axhline(SETUPS[setup].published[PAPER].accuracy, color="#888888", linewidth=0.8, label=PAPER)
        axes.flat[0].legend(frameon=False, fontsize=8)
        return save(figure, folder / "accuracy.svg")


def _draw_methods(axis: Axes, rows: pd.DataFrame) -> None:
    """Draw a dot per student and a line through the means of each size."""
    for method, color in zip(CURVE_METHODS, COLORS, strict=False):
        students = rows[rows["method"] == method]
        axis.plot(students["seconds"], students["accuracy"], ".", color=color, alpha=0.5)
        means = students.groupby("change")[["seconds", "accuracy"]].mean().sort_values("seconds")
        axis.plot(means["seconds"], means["accuracy"], "o-", color=color, label=METHODS[method])
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.set(xlabel="seconds", ylabel="accuracy %")


def ablation_text(outcomes: list[Outcome], folder: Path = PLOTS) -> str:
    """Return spread over seeds, rank correlation, plot and one table per factor, as Markdown; writes the plot."""
    changes = {_BASE, *(change for values in _VALUES.values() for change in values)}
    setups = _by_setup([each for each in outcomes if each.method == "zskd" and each.change in changes])
    picture = f"![ablation](../benchmarks/plots/{_draw_ablation(setups, folder).name})"
    tables = [f"### {factor.capitalize()}\n\n{_factor_table(setups, factor)}" for factor in FACTORS]
    return "\n\n".join([_spread(setups), _ranking(setups), picture, *tables])


def factor_means(rows: pd.DataFrame, factor: str) -> pd.DataFrame:
    """Return the means over seeds, for the base and each value of a factor, from the rows of one setup.

    The base is averaged over the seeds of the factor, since seeds change the accuracy more than most factors do.
    """
    values = _VALUES[factor]
    own = rows[rows["change"].isin(list(values))]
    base = rows[(rows["change"] == _BASE) & rows["seed"].isin(own["seed"])]
    means = pd.concat([base, own]).groupby("change")[["accuracy", *_MEASURES, "seconds"]].mean()
    return means.rename({_BASE: "base", **values}).reindex(["base", *values.values()])


def _draw_ablation(setups: dict[str, pd.DataFrame], folder: Path) -> Path:
    """Draw a panel per factor and setup: the accuracy of each value, and of the base as a line."""
    size = (5 * len(setups), 2 * len(FACTORS))
    with plt.rc_context(STYLE):
        shape = (len(FACTORS), len(setups))
        figure, axes = plt.subplots(*shape, figsize=size, layout="constrained", squeeze=False)
        for column, (setup, rows), color in zip(axes.T, setups.items(), COLORS, strict=False):
            for axis, factor in zip(column, FACTORS, strict=True):
                accuracy = factor_means(rows, factor)["accuracy"]
                names = accuracy.index[1:]
                axis.plot(range(len(names)), accuracy[names], "o", color=color)
                axis.axhline(accuracy["base"], color=color, linewidth=0.8, linestyle=":")
                axis.set_xticks(range(len(names)), names, rotation=15, ha="right", fontsize=8)
                axis.set(title=factor, ylabel="accuracy %")
            column[0].set_title(f"{SETUPS[setup].data_set}\n{next(iter(FACTORS))}")
        return save(figure, folder / "ablation.svg")


def _factor_table(setups: dict[str, pd.DataFrame], factor: str) -> str:
    heads, lines = [factor], {value: [value] for value in ["base", *FACTORS[factor]]}
    for setup, rows in setups.items():
        heads += [f"{SETUPS[setup].data_set}: accuracy %", "agreement %: impressions", "start noise", "seconds"]
        for value, mean in factor_means(rows, factor).iterrows():
            percent = [mean["accuracy"], *(100 * mean[measure] for measure in _MEASURES)]
            cells = [*(f"{each:.1f}" for each in percent), f"{mean['seconds']:.0f}"]
            lines[str(value)] += [""] * 4 if mean.isna().any() else cells
    return markdown(heads, lines.values())


def _spread(setups: dict[str, pd.DataFrame]) -> str:
    """How far seeds alone move the accuracy of the base."""
    lines = []
    for setup, rows in setups.items():
        base = rows.loc[rows["change"] == _BASE, "accuracy"]
        spread = [f"{base.mean():.1f} ± {base.std():.1f}", f"{base.min():.1f}", f"{base.max():.1f}"]
        lines.append([SETUPS[setup].data_set, str(len(base)), *spread])
    return markdown(["base, each seed", "seeds", "accuracy %", "lowest", "highest"], lines)


def _ranking(setups: dict[str, pd.DataFrame]) -> str:
    """Spearman's rank correlation of each agreement with the accuracy, over all runs."""
    lines = []
    for setup, rows in setups.items():
        ranks = rows[["accuracy", *_MEASURES]].rank()
        cells = [f"{ranks['accuracy'].corr(ranks[measure]):.2f}" for measure in _MEASURES]
        lines.append([SETUPS[setup].data_set, str(len(ranks)), *cells])
    return markdown(["rank correlation with the accuracy", "runs", *_MEASURES.values()], lines)


def _by_setup(outcomes: list[Outcome]) -> dict[str, pd.DataFrame]:
    """Return the outcomes of each setup as a table with the accuracy in percent and the seconds in all."""
    if not outcomes:
        return {}
    rows = pd.DataFrame([dataclasses.asdict(each) for each in outcomes])
    rows["accuracy"] = 100 * rows["student_accuracy"]
    rows["seconds"] = rows["synthesis_seconds"] + rows["distillation_seconds"]
    return {setup: rows[rows["setup"] == setup] for setup in sorted(set(rows["setup"]), reverse=True)}
