"""The outcomes as a Markdown table: mean and standard deviation over the seeds, beside what others published."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable

from zskd_fast.repro.methods import WAYS
from zskd_fast.repro.results import Outcome
from zskd_fast.repro.setups import PAPER, SETUPS, Published

__all__ = ["accuracy_table"]

_HEADER = (
    "data",
    "student from",
    "accuracy %",
    "agreement %",
    "impressions",
    "image-steps",
    "seconds",
    "seeds",
)


def accuracy_table(outcomes: Iterable[Outcome]) -> str:
    """One row per setup, recipe and way, then one per published figure; agreement is that on held-out impressions.

    Below it, how many of the paper's image-steps were needed.
    """
    lines, costs = [_line(_HEADER), _line(["---"] * len(_HEADER))], []
    groups = _groups(outcomes)
    for data_set in sorted({SETUPS[setup].data_set for setup, _, _ in groups}):
        published: dict[str, Published] = {}
        for (setup, recipe, way), group in groups.items():
            if SETUPS[setup].data_set == data_set:
                lines.append(_line(_cells(data_set, f"{recipe}: {WAYS[way]}", group)))
                published |= SETUPS[setup].published
                costs += [_cost(data_set, recipe, published[PAPER], group)] if way == "zskd" else []
        lines += [_line(_published_cells(data_set, who, figure)) for who, figure in published.items()]
    return "\n".join([*lines, "", *costs])


def _groups(outcomes):
    """Outcomes by setup, recipe and way; the ways in the order in which they are described."""
    order = list(WAYS)
    groups: dict[tuple[str, str, str], list[Outcome]] = {}
    for outcome in sorted(
        outcomes, key=lambda each: (each.setup, each.recipe, order.index(each.way), each.seed)
    ):
        groups.setdefault((outcome.setup, outcome.recipe, outcome.way), []).append(outcome)
    return groups


def _cells(data_set, name, group):
    agreement = [outcome.agreement_impressions for outcome in group]
    return [
        data_set,
        name,
        _mean_and_deviation([outcome.student_accuracy for outcome in group]),
        "" if None in agreement else _mean_and_deviation(agreement),
        _count(statistics.fmean(outcome.impressions for outcome in group)),
        _count(statistics.fmean(outcome.image_steps for outcome in group)),
        f"{statistics.fmean(outcome.seconds for outcome in group):,.0f}",
        str(len(group)),
    ]


def _published_cells(data_set, who, figure):
    counts = ["" if count is None else _count(count) for count in (figure.impressions, figure.image_steps)]
    return [data_set, who, f"{figure.accuracy:.2f}", "", *counts, "", ""]


def _cost(data_set, recipe, paper, group):
    times = paper.image_steps / group[0].image_steps
    seconds = statistics.fmean(outcome.synthesis_seconds for outcome in group)
    return (
        f"- {data_set}: the paper's {_count(paper.image_steps)} image-steps are {times:,.3g} times those of {recipe}, "
        f"and at its rate would take {times * seconds:,.0f} s of synthesis, not {seconds:,.0f}."
    )


def _mean_and_deviation(shares):
    mean = 100 * statistics.fmean(shares)
    return f"{mean:.2f}" if len(shares) == 1 else f"{mean:.2f} ± {100 * statistics.stdev(shares):.2f}"


def _count(number):
    if number < 1e6:
        return f"{number:,.0f}"
    return f"{number / 1e6:.{max(0, 2 - math.floor(math.log10(number / 1e6)))}f} million"


def _line(cells):
    return "| " + " | ".join(cells) + " |"
