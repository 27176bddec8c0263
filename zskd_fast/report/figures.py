"""Figures of the report: each function returns an inline SVG or a PNG data URI."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import matplotlib
import matplotlib.image
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter, ScalarFormatter

TEACHER, STUDENT, GRAY = "#b45309", "#1d4ed8", "#94a3b8"
_CELLS_WITH_NUMBERS = 12
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "svg.fonttype": "none",
    "svg.hashsalt": "zskd",  # equal runs must give equal reports
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#64748b",
    "axes.labelcolor": "#334155",
    "axes.grid": True,
    "grid.color": "#e2e8f0",
    "xtick.color": "#475569",
    "ytick.color": "#475569",
}


def picture(x: np.ndarray, valid_range: tuple[float, float]) -> str:
    """Return one input of any shape as a PNG: in color if it has three channels, else its first channel in gray."""
    low, high = valid_range
    pixels = np.clip((x.astype(np.float64) - low) / (high - low), 0.0, 1.0)
    pixels = np.moveaxis(pixels, 0, -1) if x.ndim == 3 and len(x) == 3 else _as_gray(pixels)
    buffer = io.BytesIO()
    matplotlib.image.imsave(buffer, pixels, format="png", cmap="gray", vmin=0.0, vmax=1.0)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def target_bars(target: Sequence[float], answer: Sequence[float], own_class: int) -> str:
    """Return the bars of a target, with a tick at the teacher's answer; the bar of `own_class` is in color."""
    width, height, count = 64.0, 26.0, len(target)
    slot = width / count
    bars = [
        f'<rect x="{i * slot + 0.1 * slot:.2f}" y="{height * (1 - p):.2f}" width="{0.8 * slot:.2f}" '
        f'height="{height * p:.2f}" fill="{STUDENT if i == own_class else GRAY}"/>'
        for i, p in enumerate(target)
        if p >= 0.005
    ]
    ticks = [
        f'<path d="M{i * slot:.2f} {height * (1 - p):.2f}h{slot:.2f}" stroke="{TEACHER}" stroke-width="1.3"/>'
        for i, p in enumerate(answer)
        if p >= 0.005
    ]
    base = f'<path d="M0 {height}h{width}" stroke="#cbd5e1" stroke-width="1"/>'
    view = f"0 -1 {width:.0f} {height + 2:.0f}"
    return f'<svg viewBox="{view}" class="bars" role="img">{base}{"".join(bars)}{"".join(ticks)}</svg>'


def similarity_map(similarity: Sequence[Sequence[float]]) -> str:
    """Return the heat map of the class similarity [K, K]; row k shapes the targets of class k."""
    values = np.asarray(similarity)
    with matplotlib.rc_context({**_STYLE, "axes.grid": False}):
        figure = Figure(figsize=(5.2, 4.4), layout="constrained")
        axes = figure.add_subplot()
        image = axes.imshow(values, cmap="Blues", vmin=0.0, vmax=1.0)
        axes.set(xlabel="similar class", ylabel="class of the impression")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(nbins=10, integer=True))
        if len(values) <= _CELLS_WITH_NUMBERS:
            axes.set_xticks(range(len(values)))
            axes.set_yticks(range(len(values)))
            _write_cells(axes, values)
        figure.colorbar(image, ax=axes, shrink=0.85).outline.set_visible(False)
        return _svg(figure)


def loss_curve(loss: Sequence[float]) -> str:
    """Return the distillation loss per step with its running mean, on a logarithmic axis."""
    values = np.asarray(loss)
    window = max(1, len(values) // 50)
    with matplotlib.rc_context(_STYLE):
        figure, axes = _wide_axes()
        axes.semilogy(np.arange(1, len(values) + 1), values, color=STUDENT, alpha=0.25, linewidth=0.7)
        means = np.convolve(values, np.full(window, 1.0 / window), mode="valid")
        label = f"mean of {window} steps"
        axes.semilogy(np.arange(window, len(values) + 1), means, color=STUDENT, linewidth=1.6, label=label)
        axes.set(xlabel="step", ylabel="distillation loss")
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(ScalarFormatter() if np.ptp(np.log10(means)) < 1 else NullFormatter())
        axes.legend(frameon=False)
        return _svg(figure)


def accuracy_curve(accuracies: Sequence[tuple[int, float]], teacher: float) -> str:
    """Return the test accuracy of the student at some steps, with a line at the teacher's accuracy."""
    steps, values = zip(*accuracies, strict=True)
    with matplotlib.rc_context(_STYLE):
        figure, axes = _wide_axes()
        axes.axhline(teacher, color=TEACHER, linestyle="--", linewidth=1.4, label=f"teacher {teacher:.2%}")
        axes.plot(steps, values, "o-", color=STUDENT, markersize=4, label=f"student {values[-1]:.2%}")
        axes.set(xlabel="step", ylabel="test accuracy")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
        axes.legend(frameon=False, loc="lower right")
        return _svg(figure)


def _as_gray(pixels: np.ndarray) -> np.ndarray:
    while pixels.ndim > 2:
        pixels = pixels[0]
    return np.atleast_2d(pixels)


def _write_cells(axes: Axes, values: np.ndarray) -> None:
    for (row, column), value in np.ndenumerate(values):
        color = "white" if value > 0.6 else "#1e293b"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=color)


def _wide_axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    return figure, figure.add_subplot()


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
