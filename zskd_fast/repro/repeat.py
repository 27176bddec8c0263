"""Repeats a setup for several seeds, and writes each outcome down as soon as it is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from zskd_fast.config.recipe import Recipe
from zskd_fast.errors import InputError
from zskd_fast.real_data.evaluation import load_test_set
from zskd_fast.real_data.images import LabelledImages, load_folder
from zskd_fast.repro.methods import REAL, Task, run_way
from zskd_fast.repro.results import Outcome, read_table, upsert
from zskd_fast.repro.setups import SETUPS
from zskd_fast.run.pipeline import load_teacher

__all__ = ["Order", "repeat"]


@dataclass(frozen=True)
class Order:
    """What to repeat, and where to put it."""

    name: str
    """Name of a setup."""
    recipe: Recipe
    ways: Sequence[str]
    seeds: Sequence[int]
    data: Path | None
    """Folder of the real data; None takes the setup's own test split and no training split."""
    out: Path
    results: Path
    """The CSV file of outcomes."""


def repeat(order: Order, device: torch.device) -> list[Outcome]:
    """Runs the ways for each seed; what the folder ``out`` holds already is not done again.

    Raises InputError before anything is made if the data are not there or a way cannot be taken.
    """
    setup = SETUPS[order.name]
    training = _training_split(order)
    test = load_test_set(order.data or setup.test_data, order.recipe.input)
    teacher = load_teacher(setup.teacher, device)
    done: list[Outcome] = []
    for seed in order.seeds:
        folder = order.out / f"seed-{seed}"
        task = Task(order.name, setup, order.recipe, teacher, test, training, folder, seed, device)
        done += _ways_of(task, order)
    return done


def _training_split(order: Order) -> LabelledImages | None:
    wanted = [way for way in order.ways if way in REAL]
    if not wanted:
        return None
    setup = SETUPS[order.name]
    try:
        return load_folder(order.data or setup.test_data, "train")
    except InputError as error:
        raise InputError(
            f"{', '.join(wanted)} need the training split of {setup.data_set} ({error}); "
            "give its folder as --data, or leave them out of --ways"
        ) from error


def _ways_of(task: Task, order: Order) -> list[Outcome]:
    file = task.folder / "outcomes.csv"
    known = {outcome.way: outcome for outcome in read_table(file, Outcome)}
    for way in order.ways:
        if way not in known:
            known[way] = run_way(way, task, known.get("zskd"))
            upsert(file, [known[way]])
        upsert(order.results, [known[way]])
    return [known[way] for way in order.ways]
