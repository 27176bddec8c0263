"""Repeat a setup for several seeds; each outcome is written as soon as it is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from zskd_fast.config.recipe_files import changed, load_recipe
from zskd_fast.errors import InputError
from zskd_fast.models.user_models import ModelSource, load_classifier
from zskd_fast.real_data.evaluation import accuracy, load_test_set
from zskd_fast.real_data.image_sets import LabelledImages, load_folder
from zskd_fast.repro.methods import METHODS, REAL, Task, run_method
from zskd_fast.repro.probe import Probe
from zskd_fast.repro.results import Outcome, change_text, read_outcomes, upsert
from zskd_fast.repro.setups import SETUPS


@dataclass(frozen=True, kw_only=True)
class Order:
    """What to repeat, and where to write it."""

    setup: str
    """Name of a setup."""
    methods: Sequence[str]
    seeds: Sequence[int]
    out: Path
    """Folder of the runs: a run of the same recipe and changes that is finished in it is not repeated."""
    results: Path
    """The results table."""
    data: Path | None = None
    """Folder of the real data; None takes the setup's own test split and no training split."""
    weights: Path | None = None
    """The teacher's weights, in place of the setup's own."""
    changes: Mapping[str, object] = field(default_factory=dict)
    """Options that differ from the setup's recipe, by dotted name."""
    probe_changes: Mapping[str, object] | None = None
    """If given, agreement is measured on one probe for all seeds: seed 0 of the recipe with these changes."""


def repeat(order: Order, device: torch.device) -> list[Outcome]:
    """Run the methods for each seed.

    Raises InputError before any run if data is missing or a method cannot be used.
    """
    setup = SETUPS[order.setup]
    recipe, changes = load_recipe(setup.recipe), {**setup.changes, **order.changes}
    source, training = _teacher(order), _training_split(order)
    test = load_test_set(_data(order), setup.input_spec)
    teacher = load_classifier(source, setup.input_spec, role="teacher", device=device)
    probe = order.probe_changes
    task = Task(
        name=order.setup,
        setup=setup,
        recipe=changed(recipe, changes),
        change=change_text(changes),
        teacher=teacher,
        teacher_accuracy=accuracy(teacher, test.inputs, test.labels),
        test=test,
        training=training,
        fixed_probe=None if probe is None else Probe(teacher, changed(recipe, probe), seed=0),
        folder=order.out,
        seed=0,
    )
    of_seeds = [replace(task, seed=seed, folder=order.out / f"seed-{seed}") for seed in order.seeds]
    return [outcome for task in of_seeds for outcome in _run_methods(task, order)]


def _data(order: Order) -> Path:
    setup = SETUPS[order.setup]
    folder = order.data or setup.test_data
    if folder is None:
        raise InputError(f"{order.setup} needs the test images of {setup.data_set}; give their folder as --data")
    return folder


def _teacher(order: Order) -> ModelSource:
    teacher = SETUPS[order.setup].teacher
    weights = order.weights or teacher.weights
    if weights is None:
        raise InputError(
            f"{order.setup} needs the weights of its teacher {teacher.name}, which are not shipped; train it with "
            f"train-teacher --model {teacher.model} and give the file as --weights"
        )
    return replace(teacher, weights=weights)


def _training_split(order: Order) -> LabelledImages | None:
    wanted = [method for method in order.methods if method in REAL]
    if not wanted:
        return None
    setup = SETUPS[order.setup]
    try:
        return load_folder(_data(order), "train")
    except InputError as error:
        raise InputError(
            f"{', '.join(wanted)} need the training split of {setup.data_set} ({error}); "
            "give its folder as --data, or leave them out of --methods"
        ) from error


def _run_methods(task: Task, order: Order) -> list[Outcome]:
    file = task.folder / "outcomes.csv"
    runs = {method: (task.name, task.recipe.name, task.change, method, task.seed) for method in METHODS}
    same_teacher = [each for each in read_outcomes(file) if each.teacher_accuracy == task.teacher_accuracy]
    known = {outcome.run: outcome for outcome in same_teacher}
    for method in order.methods:
        run = runs[method]
        if run not in known:
            known[run] = run_method(method, task, known.get(runs["zskd"]))
            upsert(file, [known[run]])
        upsert(order.results, [known[run]])
    return [known[runs[method]] for method in order.methods]
