"""The outcomes as a Markdown table: mean and standard deviation over the seeds, beside the published figures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from zskd_fast.repro.methods import METHODS
from zskd_fast.repro.results import Outcome
from zskd_fast.repro.setups import PAPER, SETUPS, Published

_HEADS = ["data", "student from", "accuracy %", "agreement %", "impressions", "image-steps", "seconds", "seeds"]


def accuracy_table(outcomes: Iterable[Outcome], *, published: bool = True) -> str:
    """Return one row per setup, recipe and method; agreement is on held-out impressions.

    ``published`` adds a row per published figure and, below the table, the paper's image-steps over those of a recipe.
    """
    lines, costs = [], []
    groups = _groups(outcomes)
    for title in sorted({SETUPS[group[0].setup].title for group in groups}):
        figures: dict[str, Published] = {}
        for group in groups:
            setup = SETUPS[group[0].setup]
            if setup.title == title:
                lines.append(_cells(title, group))
                figures |= setup.published if published else {}
                paper = figures.get(PAPER)
                if paper and paper.image_steps and group[0].method == "zskd" and group[0].image_steps:
                    costs.append(_cost(title, paper, group))
        lines += [_published_cells(title, source, figure) for source, figure in figures.items()]
    return "\n".join([markdown(_HEADS, lines), *([""] if costs else []), *costs])


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, ["---"] * len(heads), *rows])


def _mean_and_deviation(shares: Sequence[float | None]) -> str:
    """Return mean ± standard deviation of shares in percent; "" if one of them is None."""
    known = [share for share in shares if share is not None]
    if len(known) < len(shares):
        return ""
    mean = f"{100 * statistics.fmean(known):.2f}"
    return mean if len(known) == 1 else f"{mean} ± {100 * statistics.stdev(known):.2f}"


def _groups(outcomes: Iterable[Outcome]) -> list[list[Outcome]]:
    """Outcomes by setup, recipe and method, in the order of `METHODS`; longer numbers in a change come later."""
    order = list(METHODS)
    groups: dict[tuple[str | int, ...], list[Outcome]] = {}
    for each in outcomes:
        key = (each.setup, each.recipe, len(each.change), each.change, order.index(each.method))
        groups.setdefault(key, []).append(each)
    return [groups[key] for key in sorted(groups)]


def _recipe(outcome: Outcome) -> str:
    return f"{outcome.recipe} with {outcome.change}" if outcome.change else outcome.recipe


def _cells(title: str, group: list[Outcome]) -> list[str]:
    return [
        title,
        f"{_recipe(group[0])}: {METHODS[group[0].method]}",
        _mean_and_deviation([outcome.student_accuracy for outcome in group]),
        _mean_and_deviation([outcome.agreement_impressions for outcome in group]),
        _count(group[0].impressions),
        _count(group[0].image_steps),
        f"{statistics.fmean(outcome.seconds for outcome in group):,.0f}",
        str(len(group)),
    ]


def _published_cells(title: str, source: str, figure: Published) -> list[str]:
    counts = [_count(figure.impressions), _count(figure.image_steps)]
    return [title, source, f"{figure.accuracy:.2f}", "", *counts, "", ""]


def _cost(title: str, paper: Published, group: list[Outcome]) -> str:
    assert paper.image_steps and group[0].image_steps
    times = paper.image_steps / group[0].image_steps
    seconds = statistics.fmean(outcome.synthesis_seconds for outcome in group)
    return (
        f"- {title}: the paper's {_count(paper.image_steps)} image-steps are {times:,.3g} times those of "
        f"{_recipe(group[0])} and would take {times * seconds:,.0f} s of synthesis at its rate, not {seconds:,.0f} s."
    )


def _count(number: float | None) -> str:
    if number is None:
        return ""
    if number < 1e6:
        return f"{number:,.0f}"
    return f"{number / 1e6:.{max(0, 2 - math.floor(math.log10(number / 1e6)))}f} million"
