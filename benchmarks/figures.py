"""The figures to reach: what was wanted of the fast ops, and what the results say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.lookup import Lookup

Value = float | None
_Measured = Callable[[Lookup, int], Value]


@dataclass(frozen=True)
class Figure:
    """One figure: ``measured`` gives it for a number of threads, or None without the rows that it needs."""

    name: str
    wanted: float
    unit: str
    """"x" for a ratio of times, "%" for a share."""
    measured: _Measured

    def shown(self, value: Value) -> str:
        """The value, and plainly whether it reaches what was wanted."""
        if value is None:
            return "not measured"
        verdict = "reached" if value >= self.wanted else "**not reached**"
        return f"{self.number(value)}, {verdict}"

    def number(self, value: float) -> str:
        """The value with its unit."""
        return f"{value:.1f}x" if self.unit == "x" else f"{value:.0%}"


def times_faster(
    lookup: Lookup, op: str, peers: list[str], shape: str, threads: int, setting: str | None = None
) -> Value:
    """How many times faster zskd_fast is than the fastest of the peers, at the same shape and threads."""
    ours = lookup.find(op, "zskd_fast", shape, threads, setting)
    theirs = [lookup.find(op, peer, shape, threads, setting) for peer in peers]
    if ours is None or None in theirs:
        return None
    return min(row.median_s for row in theirs) / ours.median_s


def _against(
    op: str, peers: list[str], shapes: list[str], setting: str | None = None
) -> Callable[[Lookup, int], Value]:
    """The least speed-up over some shapes."""

    def measured(lookup: Lookup, threads: int) -> Value:
        ratios = [times_faster(lookup, op, peers, shape, threads, setting) for shape in shapes]
        return None if None in ratios else min(ratios)

    return measured


def _copy_share(lookup: Lookup, threads: int) -> Value:
    row = lookup.find("soft_cross_entropy", "zskd_fast, out=", "65536x1000", threads)
    return row and row.copy_share


_SCE, _EAGER = "soft_cross_entropy", ["F.cross_entropy"]
_LARGE = ["65536x10", "65536x100", "65536x1000"]

FIGURES = [
    Figure(f"{_SCE} 65536x10 against F.cross_entropy", 6.0, "x", _against(_SCE, _EAGER, _LARGE[:1])),
    Figure(f"{_SCE} 65536x100 against F.cross_entropy", 4.0, "x", _against(_SCE, _EAGER, _LARGE[1:2])),
    Figure(f"{_SCE} 65536x1000 against F.cross_entropy", 4.0, "x", _against(_SCE, _EAGER, _LARGE[2:])),
    Figure(
        f"{_SCE} with 65536 rows, the least against torch.compile",
        1.5,
        "x",
        _against(_SCE, ["torch.compile"], _LARGE),
    ),
    Figure(f"{_SCE} 65536x1000 with out=, share of the copy bandwidth", 0.8, "%", _copy_share),
    Figure(f"{_SCE} 100x10 against F.cross_entropy", 1.0, "x", _against(_SCE, _EAGER, ["100x10"])),
    *(
        Figure(
            f"dirichlet 1000000x10, {beta}, against the faster of torch and numpy",
            4.0,
            "x",
            _against("dirichlet", ["torch Dirichlet", "numpy dirichlet"], ["1000000x10"], beta),
        )
        for beta in ("beta=1", "beta=0.1")
    ),
    Figure(
        "impression_update_ 1000x1x32x32 against Adam fused, prior, clamp",
        2.0,
        "x",
        _against("impression_update_", ["Adam fused, prior, clamp"], ["1000x1x32x32"]),
    ),
    Figure(
        "synthesis, image-steps/s on LeNet-5 against the plain loop",
        3.0,
        "x",
        _against("synthesis", ["plain loop"], ["400"]),
    ),
]
