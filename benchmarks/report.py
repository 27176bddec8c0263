"""Redraw the tables and the plots from the results file: python -m benchmarks.report"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks import machine
from benchmarks.accuracy_curve import read_curve
from benchmarks.lookup import Lookup, lookups
from benchmarks.plots import draw_accuracy, draw_plots
from benchmarks.results import RESULTS, read_rows
from benchmarks.tables import figures_table, sections
from zskd_fast.repro.results import Outcome, read_table
from zskd_fast.repro.table import accuracy_table

ACCURACY = RESULTS.parent / "accuracy.csv"


def main() -> int:
    """Fill the marked place of both READMEs; returns 1 if there is nothing to show."""
    found = lookups(read_rows(RESULTS))
    if not found:
        print(f"{RESULTS} holds no results; run: make bench", file=sys.stderr)
        return 1
    first = found[0]
    pictures = [path.relative_to(RESULTS.parent) for path in draw_plots(first)]
    folder = RESULTS.parent
    fill(folder / "README.md", "\n\n".join([*map(_full, found), _images(pictures, "")]))
    short = [f"On {_place(first)}:", figures_table(first), _images(pictures, f"{folder.name}/")]
    fill(machine.ROOT / "README.md", "\n\n".join(short))
    outcomes = read_table(ACCURACY, Outcome)
    if outcomes:
        curve = draw_accuracy([*read_curve(), *outcomes]).relative_to(machine.ROOT)
        fill(
            machine.ROOT / "README.md",
            f"{accuracy_table(outcomes)}\n\n{_images([curve], '')}",
            mark="accuracy",
        )
    return 0


def fill(path: Path, text: str, mark: str = "benchmarks") -> None:
    """Put ``text`` between the two marks of a file. Raises ValueError if a mark is not there once, in order."""
    first, last = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    content = path.read_text("utf-8")
    before, begin, rest = content.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end or first in after or last in after:
        raise ValueError(f"{path} must hold {first} and after it {last}, once each")
    path.write_text(f"{before}{first}\n\n{text}\n\n{last}{after}", "utf-8")
    print(f"redrawn       {path}")


def _full(lookup: Lookup) -> str:
    return f"## Results on {_place(lookup)}\n\n{sections(lookup)}"


def _place(lookup: Lookup) -> str:
    commits = sorted({row.commit for row in lookup.rows})
    return f"{lookup.device}, torch {lookup.torch} (measured at {', '.join(commits)})"


def _images(paths: list[Path], prefix: str) -> str:
    return "\n\n".join(f"![{path.stem}]({prefix}{path.as_posix()})" for path in paths)


if __name__ == "__main__":
    sys.exit(main())
