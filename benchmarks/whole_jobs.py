"""Seconds of whole jobs, derived from the measured rates of synthesis and distillation and the counts of a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from benchmarks.results import of_op
from zskd_fast.config.recipe_files import changed, load_recipe
from zskd_fast.repro.setups import PAPER, SETUPS
from zskd_fast.repro.table import markdown

FROZEN, COMPILED = "plain loop, frozen teacher", "plain loop, torch.compile"
LOOPS = {"zskd_fast": ("zskd_fast", "zskd_fast"), "plain loop": (FROZEN, "plain loop"), COMPILED: (COMPILED, COMPILED)}
"""A loop -> the providers of its synthesis and of its distillation."""
ACCURACIES = {"fast-mnist": (0.97, 0.98, 0.985), "fast-fashion": (0.78, 0.80, 0.82)}
"""Setup -> the accuracies until which the time is taken."""
_LENET = ("LeNet-5, recipe fast", "LeNet-5 to LeNet-5-Half")
_RESNET = ("ResNet-20, recipe fast", "ResNet-20 to ResNet-8")
_PAPERS_LOOP = "LeNet-5, batch 100, 50 steps"


@dataclass(frozen=True)
class WholeJob:
    """A synthesis and the distillation after it: the settings of their rows, and how much of each."""

    synthesis: str
    distillation: str
    image_steps: int
    student_steps: int

    @classmethod
    def of_setup(cls, setup: str, settings: tuple[str, str]) -> WholeJob:
        """Return the job of `zskd-fast repro`."""
        recipe = changed(load_recipe(SETUPS[setup].recipe), SETUPS[setup].changes)
        image_steps = recipe.synthesis.impressions * recipe.synthesis.steps
        return cls(*settings, image_steps, recipe.distillation.steps)

    def seconds(self, rows: pd.DataFrame, loop: str, threads: int) -> float | None:
        """Return the seconds of a loop for the rows of one machine; None if a rate was not measured."""
        of_synthesis, of_distillation = LOOPS[loop]
        images = rate(rows, "synthesis", self.synthesis, of_synthesis, threads)
        steps = rate(rows, "distillation", self.distillation, of_distillation, threads)
        return self.image_steps / images + self.student_steps / steps if images and steps else None


RESNET_JOB = WholeJob.of_setup("fast-cifar10-resnet8", _RESNET)


def rate(rows: pd.DataFrame, op: str, setting: str, provider: str, threads: int) -> float | None:
    """Return the items per second of one row; None if it was not measured."""
    found = of_op(rows, op)
    is_case = (found["setting"] == setting) & (found["provider"] == provider) & (found["threads"] == threads)
    return float(found[is_case]["rate"].iloc[0]) if is_case.any() else None


def jobs_table(rows: pd.DataFrame) -> str:
    """Return the seconds of the whole ResNet job for each loop, as Markdown; "" without its rates."""
    lines = []
    for threads in sorted(set(rows["threads"])):
        ours, plain = (RESNET_JOB.seconds(rows, loop, threads) for loop in ("zskd_fast", "plain loop"))
        if ours and plain:
            lines.append([_RESNET[1], str(threads), f"{ours:,.0f} s", f"{plain:,.0f} s ({plain / ours:.1f}x)"])
    heads = ["all of the recipe, derived from its rates", "threads", "zskd_fast", "plain loop"]
    return markdown(heads, lines) if lines else ""


def accuracy_times_table(rows: pd.DataFrame) -> str:
    """Return the seconds until each accuracy, as Markdown: ours measured, the others' derived; "" without a run."""
    measured = of_op(rows, "time to accuracy")
    ours = measured[measured["provider"] == "zskd_fast"]
    heads = ["data", "accuracy of at least", "threads", "zskd_fast, median of its seeds", "student steps"]
    heads += [
        "plain loop, derived",
        "with torch.compile, derived",
        "paper's synthesis alone, derived",
        "plain loop, run",
    ]
    lines = [_accuracy_line(rows, measured, row) for row in ours.itertuples()]
    return markdown(heads, lines) if lines else ""


def _accuracy_line(rows: pd.DataFrame, measured: pd.DataFrame, row: Any) -> list[str]:
    setup = SETUPS[row.shape]
    recipe = changed(load_recipe(setup.recipe), setup.changes)
    job = WholeJob(*_LENET, recipe.synthesis.impressions * recipe.synthesis.steps, row.items)
    derived = [job.seconds(rows, loop, row.threads) for loop in ("plain loop", COMPILED)]
    papers_rate = rate(rows, "synthesis", _PAPERS_LOOP, "plain loop", row.threads)
    papers = (setup.published[PAPER].image_steps or 0) / papers_rate if papers_rate else None
    same = (measured["provider"] == "plain loop") & (measured["threads"] == row.threads)
    run = measured[same & (measured["shape"] == row.shape) & (measured["setting"] == row.setting)]
    others = [*derived, papers, None if run.empty else float(run["median_s"].iloc[0])]
    cells = [f"{seconds:,.0f} s ({seconds / row.median_s:.1f}x)" if seconds else "" for seconds in others]
    return [setup.data_set, row.setting, str(row.threads), f"{row.median_s:.0f} s", f"{row.items:,}", *cells]
