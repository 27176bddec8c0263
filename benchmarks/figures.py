"""The target figures: the speed-ups that the ops are meant to reach, and the measured ones."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from benchmarks.results import times_faster
from zskd_fast.repro.table import markdown


@dataclass(frozen=True)
class Figure:
    """A target: the speed-up over the fastest of the peers, the least over all shapes.

    Without peers it is the share of the copy bandwidth that zskd_fast reaches with ``out=``.
    """

    name: str
    target: float
    op: str
    shapes: list[str]
    peers: list[str]
    setting: str | None = None

    def measured(self, rows: pd.DataFrame, threads: int) -> float | None:
        """Return the figure for the rows of one machine; None if a row is missing."""
        if not self.peers:
            ours = rows[(rows["provider"] == "zskd_fast, out=") & (rows["threads"] == threads)]
            found = ours[(ours["op"] == self.op) & (ours["shape"] == self.shapes[0])]
            return None if found.empty else float(found["copy_share"].iloc[0])
        each = [times_faster(rows, self.op, self.peers, shape, threads, self.setting) for shape in self.shapes]
        ratios = [ratio for ratio in each if ratio is not None]
        return min(ratios) if len(ratios) == len(each) else None

    def number(self, value: float) -> str:
        """Return a value with its unit."""
        return f"{value:.1f}x" if self.peers else f"{value:.0%}"

    def result(self, rows: pd.DataFrame, threads: int) -> str:
        """Return the measured value and whether it reaches the target."""
        value = self.measured(rows, threads)
        if value is None:
            return "not measured"
        return f"{self.number(value)}, {'reached' if value >= self.target else '**not reached**'}"


_SCE, _EAGER, _COMPILED = "soft_cross_entropy", ["F.cross_entropy"], ["torch.compile"]
_LARGE = ["65536x10", "65536x100", "65536x1000"]
_RANDOM = ["torch Dirichlet", "numpy dirichlet"]
_DIRICHLET = "dirichlet 1000000x10, {}, against the faster of torch and numpy"
_UPDATE, _ADAM, _IMAGES = "impression_update_", "Adam fused, prior, clamp", "1000x1x32x32"

FIGURES = [
    *(
        Figure(f"{_SCE} {shape} against F.cross_entropy", target, _SCE, [shape], _EAGER)
        for shape, target in zip(_LARGE, (6.0, 4.0, 4.0), strict=True)
    ),
    Figure(f"{_SCE} with 65536 rows, the least against torch.compile", 1.5, _SCE, _LARGE, _COMPILED),
    Figure(f"{_SCE} 65536x1000 with out=, share of the copy bandwidth", 0.8, _SCE, _LARGE[2:], []),
    Figure(f"{_SCE} 100x10 against F.cross_entropy", 1.0, _SCE, ["100x10"], _EAGER),
    *(
        Figure(_DIRICHLET.format(beta), 4.0, "dirichlet", ["1000000x10"], _RANDOM, beta)
        for beta in ("beta=1", "beta=0.1")
    ),
    Figure(f"{_UPDATE} {_IMAGES} against {_ADAM}", 2.0, _UPDATE, [_IMAGES], [_ADAM]),
    Figure("synthesis on LeNet-5 against the plain loop", 3.0, "synthesis", ["400"], ["plain loop"]),
]


def figures_table(rows: pd.DataFrame) -> str:
    """Return targets and results for each number of threads, as Markdown."""
    counts = sorted(set(rows["threads"]))
    heads = ["figure", "target", *(f"{count} thread{'s' * (count > 1)}" for count in counts)]
    lines = [
        [figure.name, figure.number(figure.target), *(figure.result(rows, count) for count in counts)]
        for figure in FIGURES
    ]
    return markdown(heads, lines)
