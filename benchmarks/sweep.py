"""Train students by changed recipes, one row of accuracy.csv each; rows that the table holds are not measured again.

python -m benchmarks.sweep curve       accuracy against seconds, for parts of the recipe `fast`
python -m benchmarks.sweep ablation    one factor at a time
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from zskd_fast.cli.options import Machine
from zskd_fast.errors import InputError
from zskd_fast.repro.repeat import Order, repeat
from zskd_fast.repro.results import change_text, read_outcomes
from zskd_fast.repro.setups import SETUPS
from zskd_fast.runtime.environment import set_up

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ACCURACY = Path(__file__).parent / "accuracy.csv"
_SWEEPS: dict[str, Any] = tomllib.loads(Path(__file__).with_name("sweeps.toml").read_text("utf-8"))

Changes = dict[str, object]
CURVE_METHODS = ("zskd", "start-noise")
CURVE: dict[str, Changes] = _SWEEPS["curve"]
"""Size of the recipe -> the options that it changes."""
BASE: Changes = _SWEEPS["base"]
FACTORS: dict[str, dict[str, Changes]] = _SWEEPS["ablation"]
"""Factor -> value as shown -> the options that it changes."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Run what the results table lacks."""

    kind: tyro.conf.Positional[Literal["curve", "ablation"]]
    only: tuple[str, ...] = ()
    """Sizes of the curve, such as 1/8, or factors of the ablation; none takes 1/8, 1/4 and 1/2 or all factors."""
    setups: tuple[str, ...] = ("fast-mnist", "fast-fashion")
    """Setups of `zskd-fast repro`; two processes may take one each."""
    seeds: int = 1
    """Number of seeds, from --seed on."""
    out: Path = Path("zskd-sweep")
    """Folder of the runs; an interrupted run in it is continued."""
    results: Path = ACCURACY
    """The results table."""
    machine: Annotated[Machine, tyro.conf.arg(name="")] = field(default_factory=Machine)

    def orders(self) -> Iterator[Order]:
        """Yield one order per seed, setup and changed recipe; agreement in the ablation is on the base's probe."""
        is_curve = self.kind == "curve"
        for seed in range(self.machine.seed, self.machine.seed + self.seeds):
            for setup in self.setups:
                for name, changes in self._recipes().items():
                    yield Order(
                        setup=setup,
                        changes=changes,
                        probe_changes=None if is_curve else BASE,
                        methods=CURVE_METHODS if is_curve else ["zskd"],
                        seeds=[seed],
                        out=self.out / self.kind / setup / name,
                        results=self.results,
                    )

    def _recipes(self) -> dict[str, Changes]:
        known = CURVE if self.kind == "curve" else FACTORS
        if unknown := set(self.only) - set(known):
            raise InputError(f"--only {', '.join(unknown)} is not known; give some of: {', '.join(known)}")
        if self.kind == "curve":
            return {size.replace("/", "-"): CURVE[size] for size in self.only or list(CURVE)[:3]}
        runs = {"base": BASE}
        for factor in self.only or FACTORS:
            runs |= {f"{factor}/{value}": BASE | changes for value, changes in FACTORS[factor].items()}
        return runs


def main(sweep: Sweep) -> None:
    """Run each order that the table lacks; a student is added to it as soon as it is trained."""
    orders = list(sweep.orders())
    device = set_up(threads=sweep.machine.threads, device=sweep.machine.device)
    measured = {outcome.run for outcome in read_outcomes(sweep.results)}
    for order in orders:
        name = (order.setup, SETUPS[order.setup].recipe, change_text(order.changes))
        if any((*name, method, *order.seeds) not in measured for method in order.methods):
            for outcome in repeat(order, device):
                print(*outcome.run, f"{outcome.student_accuracy:.2%} in {outcome.seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Sweep))
