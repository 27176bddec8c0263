"""The results as pictures: how many times faster each op is, and how the synthesis grows."""

from __future__ import annotations

import statistics
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.ticker import ScalarFormatter

from benchmarks.accuracy_curve import CURVE_WAYS
from benchmarks.figures import times_faster
from benchmarks.lookup import Lookup, growth_exponent
from zskd_fast.repro.methods import WAYS
from zskd_fast.repro.results import Outcome
from zskd_fast.repro.setups import PAPER, SETUPS

PLOTS = Path(__file__).parent / "plots"
_PEERS = {
    "soft_cross_entropy": ["F.cross_entropy", "log_softmax, mul, sum", "torch.compile"],
    "distillation_loss": ["F.kl_div", "F.kl_div, log_target", "torch.compile"],
    "dirichlet": ["torch Dirichlet", "numpy dirichlet"],
    "impression_update_": ["Adam fused, prior, clamp", "Adam foreach, prior, clamp", "torch.compile"],
}
_COLOURS = ["#2f6db5", "#e08a1e", "#3c9d64"]
# The same results give the same bytes, so that a redrawn plot changes only when a number did.
STYLE = {
    "svg.hashsalt": "zskd_fast",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw_plots(lookup: Lookup, folder: Path = PLOTS) -> list[Path]:
    """Write the plots that the rows allow; returns their files."""
    folder.mkdir(exist_ok=True)
    with plt.rc_context(STYLE):
        return [
            save(figure, folder / f"{name}.svg")
            for name, figure in (("speed", _speed(lookup)), ("growth", _growth(lookup)))
            if figure
        ]


def save(figure: plt.Figure, path: Path) -> Path:
    """Write the figure as SVG and close it."""
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)
    return path


def _speed(lookup: Lookup) -> plt.Figure | None:
    threads = max(lookup.thread_counts())
    figure, axes = plt.subplots(2, 2, figsize=(10, 6.5), layout="constrained")
    drawn = [_speed_of(lookup, op, threads, axis) for op, axis in zip(_PEERS, axes.flat, strict=True)]
    figure.suptitle(f"Times faster than ... on {lookup.device}, {threads} threads")
    if any(drawn):
        return figure
    plt.close(figure)
    return None


def _speed_of(lookup: Lookup, op: str, threads: int, axis: plt.Axes) -> bool:
    peers = _PEERS[op]
    rows = [row for row in lookup.of(op) if row.key.threads == threads]
    cases = list(dict.fromkeys((row.key.shape, row.key.setting) for row in rows))
    width = 0.8 / len(peers)
    for position, (peer, colour) in enumerate(zip(peers, _COLOURS, strict=False)):
        ratios = [
            times_faster(lookup, op, [peer], shape, threads, setting) or 0.0 for shape, setting in cases
        ]
        places = [place + (position - (len(peers) - 1) / 2) * width for place in range(len(cases))]
        bars = axis.bar(places, ratios, width * 0.92, label=peer, color=colour)
        axis.bar_label(bars, [f"{ratio:.1f}" if ratio else "" for ratio in ratios], fontsize=7)
    differ = len({setting for _, setting in cases}) > 1
    labels = [f"{shape}\n{setting}" if differ else shape for shape, setting in cases]
    axis.set_xticks(range(len(cases)), labels, fontsize=7)
    axis.axhline(1.0, color="#888888", linewidth=0.8)
    axis.set_title(op, loc="left", fontsize=10)
    axis.legend(frameon=False, fontsize=7)
    return bool(cases)


def draw_accuracy(outcomes: list[Outcome], folder: Path = PLOTS) -> Path:
    """Write the accuracy over the seconds from the teacher to the student; returns the file."""
    setups = sorted({outcome.setup for outcome in outcomes}, reverse=True)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, len(setups), figsize=(4.5 * len(setups), 3.2), layout="constrained", squeeze=False
        )
        for axis, setup in zip(axes.flat, setups, strict=True):
            _accuracy(axis, [outcome for outcome in outcomes if outcome.setup == setup])
            axis.set_title(SETUPS[setup].data_set, loc="left", fontsize=10)
            axis.axhline(SETUPS[setup].published[PAPER].accuracy, color="#888888", linewidth=0.8, label=PAPER)
        axes.flat[0].legend(frameon=False, fontsize=8)
        return save(figure, folder / "accuracy.svg")


def _accuracy(axis: plt.Axes, outcomes: list[Outcome]) -> None:
    """A dot for each student, a line through the means of the students of a recipe."""
    for way, colour in zip(CURVE_WAYS, _COLOURS, strict=False):
        students = [outcome for outcome in outcomes if outcome.way == way]
        axis.plot(*_points(students), ".", color=colour, alpha=0.5)
        groups = [
            [each for each in students if each.recipe == recipe]
            for recipe in {each.recipe for each in students}
        ]
        means = sorted(tuple(map(statistics.fmean, _points(group))) for group in groups)
        axis.plot(*zip(*means, strict=True), "o-", color=colour, label=WAYS[way])
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.set(xlabel="seconds", ylabel="accuracy %")


def _points(outcomes: list[Outcome]) -> tuple[list[float], list[float]]:
    return [each.seconds for each in outcomes], [100 * each.student_accuracy for each in outcomes]


def _growth(lookup: Lookup) -> plt.Figure | None:
    grown = [name for name in ("impressions", "batch", "classes") if lookup.of(f"growth with {name}")]
    if not grown:
        return None
    size = (3.4 * len(grown), 5.5)
    figure, axes = plt.subplots(
        2, len(grown), figsize=size, layout="constrained", squeeze=False, sharey="row"
    )
    for column, name in enumerate(grown):
        rows = sorted(lookup.of(f"growth with {name}"), key=lambda row: int(row.key.shape))
        for axis, value, unit in zip(
            axes[:, column], ("median_s", "peak_mb"), ("seconds", "peak MB"), strict=True
        ):
            axis.plot(
                [int(row.key.shape) for row in rows],
                [getattr(row, value) for row in rows],
                "o-",
                color=_COLOURS[0],
            )
            axis.set(xscale="log", yscale="log", xlabel=name, ylabel=unit)
            exponent = growth_exponent(rows, value)
            if exponent is not None:
                axis.set_title(f"{unit} ~ {name}^{exponent:.2f}", loc="left", fontsize=9)
            if value == "peak_mb":
                axis.set_ylim(100, 10000)
    return figure
