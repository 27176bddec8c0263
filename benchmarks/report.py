"""Redraw the marked tables and the plots from results.csv and accuracy.csv: python -m benchmarks.report"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from benchmarks.accuracy import ablation_text, curve_outcomes, draw_curve, summary_table
from benchmarks.figures import figures_table
from benchmarks.machine import ROOT
from benchmarks.plots import draw_plots
from benchmarks.results import RESULTS, machines, read_rows
from benchmarks.sweep import ACCURACY, CURVE
from benchmarks.tables import sections
from zskd_fast.repro.results import change_text, read_outcomes
from zskd_fast.repro.setups import SETUPS
from zskd_fast.repro.table import accuracy_table

UNPRUNED = {"distillation.pruned_start": False}
"""The change of a setup whose students start from random weights."""


def main() -> int:
    """Fill the marked places; returns 1 if there is nothing to show."""
    found, outcomes = machines(read_rows()), read_outcomes(ACCURACY)
    if not found or not outcomes:
        print(f"{RESULTS} or {ACCURACY} holds no rows; run: make bench", file=sys.stderr)
        return 1
    full = [f"## Results on {_place(rows)}\n\n{sections(rows)}" for rows in found]
    plots = [f"![{path.stem}](plots/{path.name})" for path in draw_plots(found[0])]
    fill(ROOT / "benchmarks" / "README.md", "\n\n".join([*full, *plots]))
    fill(ROOT / "README.md", f"On {_place(found[0])}:\n\n{figures_table(found[0])}")
    plain = [each for each in outcomes if each.change == change_text(SETUPS[each.setup].changes)]
    unpruned = [each for each in outcomes if each.change == change_text({**SETUPS[each.setup].changes, **UNPRUNED})]
    fill(ROOT / "README.md", summary_table(plain, unpruned), mark="accuracy")
    whole = [*plain, *unpruned, *(each for each in outcomes if each.change == change_text(CURVE["1"]))]
    fill(ROOT / "docs" / "recipes.md", accuracy_table(whole), mark="accuracy")
    picture = f"![accuracy](../benchmarks/plots/{draw_curve(outcomes).name})"
    curve = accuracy_table(curve_outcomes(outcomes), published=False)
    fill(ROOT / "docs" / "recipes.md", f"{picture}\n\n{curve}", mark="accuracy-curve")
    fill(ROOT / "docs" / "recipes.md", ablation_text(outcomes), mark="ablation")
    return 0


def fill(path: Path, text: str, mark: str = "benchmarks") -> None:
    """Put text between the two marks of a file. Raises ValueError unless the file has each mark once, in order."""
    first, last = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    content = path.read_text("utf-8")
    before, begin, rest = content.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end or first in after or last in after:
        raise ValueError(f"{path} must hold {first} and after it {last}, once each")
    path.write_text(f"{before}{first}\n\n{text}\n\n{last}{after}", "utf-8")
    print(f"redrawn       {path}")


def _place(rows: pd.DataFrame) -> str:
    device, torch, commits = rows["device"].iloc[0], rows["torch"].iloc[0], sorted(set(rows["commit"]))
    return f"{device}, torch {torch} (measured at {', '.join(commits)})"


if __name__ == "__main__":
    sys.exit(main())
