"""The target figures: the speed-ups that are meant to be reached, and the measured ones."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from benchmarks.limits import Limit, always, by_convolutions, of_roofline, of_whole_job, without_overlap
from benchmarks.results import times_faster
from benchmarks.whole_jobs import FROZEN, RESNET_JOB, WholeJob
from zskd_fast.repro.table import markdown


@dataclass(frozen=True)
class Figure:
    """A target: the speed-up over the fastest of the peers, the least over all shapes.

    Without peers it is the share of the copy bandwidth that zskd_fast reaches with ``out=``.
    """

    name: str
    target: float | None
    op: str
    shapes: list[str]
    peers: list[str]
    setting: str | None = None
    limit: Limit | None = None
    """What keeps the figure from rising further; shown where the target is not reached."""

    def measured(self, rows: pd.DataFrame, threads: int) -> float | None:
        """Return the figure for the rows of one machine; None if a row is missing."""
        if not self.peers:
            ours = rows[(rows["provider"] == "zskd_fast, out=") & (rows["threads"] == threads)]
            found = ours[(ours["op"] == self.op) & (ours["shape"] == self.shapes[0])]
            return None if found.empty else float(found["copy_share"].iloc[0])
        each = [times_faster(rows, self.op, self.peers, shape, threads, self.setting) for shape in self.shapes]
        ratios = [ratio for ratio in each if ratio is not None]
        return min(ratios) if len(ratios) == len(each) else None

    @property
    def is_share(self) -> bool:
        """Whether the figure is a share and not a ratio."""
        return not self.peers


@dataclass(frozen=True)
class JobFigure:
    """A target for a whole job, whose seconds are derived from measured rates."""

    name: str
    target: float | None
    job: WholeJob
    limit: Limit | None = None
    is_share = False

    def measured(self, rows: pd.DataFrame, threads: int) -> float | None:
        """Return how many times faster zskd_fast is than the plain loop; None if a row is missing."""
        ours, theirs = (self.job.seconds(rows, loop, threads) for loop in ("zskd_fast", "plain loop"))
        return theirs / ours if ours and theirs else None


AnyFigure = Figure | JobFigure


def _number(figure: AnyFigure, value: float) -> str:
    return f"{value:.0%}" if figure.is_share else f"{value:.1f}x"


def _result(figure: AnyFigure, rows: pd.DataFrame, threads: int) -> str:
    """Return the measured value, whether it reaches the target, and if not, what limits it."""
    value = figure.measured(rows, threads)
    if value is None:
        return "not measured"
    if figure.target is None:
        return _number(figure, value)
    if value >= figure.target:
        return f"{_number(figure, value)}, reached"
    reason = figure.limit(rows, threads) if figure.limit else ""
    return f"{_number(figure, value)}, **not reached**" + (f" ({reason})" if reason else "")


_SCE = "soft_cross_entropy"
_SHAPES = ["65536x10", "65536x100", "65536x1000"]
_RANDOM = ["torch Dirichlet", "numpy dirichlet"]
_DIRICHLET = "dirichlet 1000000x10, {}, against the faster of torch and numpy"
_DRAWS = "Philox and the formulas of a draw"
_UPDATE, _ADAM, _IMAGES = "impression_update_", "Adam fused, prior, clamp", "1000x1x32x32"


def _row_loss(op: str, eager: str, targets: tuple[float, ...], compiled: float) -> list[Figure]:
    """Return the figures of a row loss: against eager torch for each shape, and against torch.compile."""

    def figure(name: str, target: float, shapes: list[str], peer: str) -> Figure:
        return Figure(f"{op} {name}", target, op, shapes, [peer], limit=of_roofline(op, shapes, peer))

    return [
        *(
            figure(f"{shape} against {eager}", target, [shape], eager)
            for shape, target in zip(_SHAPES, targets, strict=True)
        ),
        figure("65536x1000 against torch.compile", compiled, _SHAPES[2:], "torch.compile"),
        figure("with 65536 rows, the least against torch.compile", 1.5, _SHAPES, "torch.compile"),
        Figure(f"{op} 100x10 against {eager}", 1.0, op, ["100x10"], [eager]),
    ]


def _job(op: str, setting: str, shape: str, target: float | None, peer: str, convolutions: str = "") -> Figure:
    limit = by_convolutions(op, setting, peer, convolutions)
    return Figure(f"{op}, {setting}, against the {peer}", target, op, [shape], [peer], setting, limit)


FIGURES: list[AnyFigure] = [
    *_row_loss(_SCE, "F.cross_entropy", (6.0, 4.0, 12.0), 2.5),
    Figure(
        f"{_SCE} 65536x1000 with out=, share of the copy bandwidth",
        0.8,
        _SCE,
        _SHAPES[2:],
        [],
        limit=without_overlap(_SCE, _SHAPES[2]),
    ),
    *_row_loss("distillation_loss", "F.kl_div", (6.0, 4.0, 30.0), 8.0),
    *(
        Figure(_DIRICHLET.format(beta), 4.0, "dirichlet", ["1000000x10"], _RANDOM, beta, always(_DRAWS))
        for beta in ("beta=1", "beta=0.1")
    ),
    Figure(f"{_UPDATE} {_IMAGES} against {_ADAM}", 2.0, _UPDATE, [_IMAGES], [_ADAM]),
    _job("synthesis", "LeNet-5, batch 100, 50 steps", "400", 4.0, "plain loop", "LeNet-5, recipe fast"),
    _job("synthesis", "LeNet-5, recipe fast", "400", 4.0, "plain loop"),
    _job("synthesis", "AlexNet, recipe fast", "200", None, FROZEN),
    _job("synthesis", "ResNet-20, recipe fast", "200", None, FROZEN),
    _job("distillation", "LeNet-5 to LeNet-5-Half", "128", 2.5, "plain loop"),
    _job("distillation", "AlexNet to AlexNetHalf", "128", None, "plain loop"),
    _job("distillation", "ResNet-20 to ResNet-8", "128", None, "plain loop"),
    JobFigure(
        "ResNet-20 to ResNet-8, all of the recipe, derived from its two rates",
        1.5,
        RESNET_JOB,
        of_whole_job(RESNET_JOB),
    ),
]


def figures_table(rows: pd.DataFrame) -> str:
    """Return targets and results for each number of threads, as Markdown."""
    counts = sorted(set(rows["threads"]))
    heads = ["figure", "target", *(f"{count} thread{'s' * (count > 1)}" for count in counts)]
    lines = [
        [
            figure.name,
            _number(figure, figure.target) if figure.target is not None else "",
            *(_result(figure, rows, count) for count in counts),
        ]
        for figure in FIGURES
    ]
    return markdown(heads, lines)
