"""Accuracy against seconds, of data impressions and of start noise alone: python -m benchmarks.accuracy_curve

The small recommended recipe with a half, a quarter and an eighth of its impressions and student steps; the whole of it
is in accuracy.csv. Each student is a row of accuracy-curve-<data set>.csv, and what the folder of the runs holds
already is not done again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks.ablation import DATA_SETS, changed
from zskd_fast.cli.commands import set_up
from zskd_fast.cli.options import Machine
from zskd_fast.config.recipe import Recipe, load_recipe
from zskd_fast.repro.repeat import Order, repeat
from zskd_fast.repro.results import Outcome, read_table

CURVE_WAYS = ("zskd", "start-noise")
_DIVISORS = (8, 4, 2)


@dataclass(frozen=True)
class Curve:
    """Run what the curve lacks, for seeds from --seed on."""

    data_sets: tuple[str, ...] = DATA_SETS
    """Setups of `zskd-fast repro` whose teacher and test data are used; two processes may take one each."""
    seeds: int = 3
    """How many."""
    out: Path = Path("zskd-curve")
    """Folder of the runs."""
    machine: Annotated[Machine, tyro.conf.arg(name="")] = field(default_factory=Machine)


def read_curve() -> list[Outcome]:
    """The rows of all data sets."""
    return [row for data_set in DATA_SETS for row in read_table(_results_of(data_set), Outcome)]


def main(curve: Curve) -> None:
    """Student after student, each added to its file when it is done."""
    device = set_up(curve.machine)
    first = curve.machine.seed
    for seed in range(first, first + curve.seeds):
        for data_set in curve.data_sets:
            for divisor in _DIVISORS:
                recipe = _part(load_recipe("fast-small"), divisor)
                out = curve.out / data_set / str(divisor)
                repeat(Order(data_set, recipe, CURVE_WAYS, [seed], None, out, _results_of(data_set)), device)


def _part(recipe: Recipe, divisor: int) -> Recipe:
    less = {
        "name": f"{recipe.name} / {divisor}",
        "synthesis.impressions": recipe.synthesis.impressions // divisor,
        "distillation.steps": recipe.distillation.steps // divisor,
    }
    return changed(recipe, less)


def _results_of(data_set: str) -> Path:
    return Path(__file__).parent / f"accuracy-curve-{data_set}.csv"


if __name__ == "__main__":
    main(tyro.cli(Curve))
