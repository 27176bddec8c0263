"""The ways to a student that are compared: data impressions, what leaves a part of them out, and real data."""

from __future__ import annotations

import functools
import statistics
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from zskd_fast.cli.doctor import environment
from zskd_fast.config.recipe import DistillationRecipe, Recipe, SynthesisRecipe
from zskd_fast.config.teacher_recipe import TeacherRecipe
from zskd_fast.distillation.distiller import Distiller
from zskd_fast.errors import InputError
from zskd_fast.models.loading import load_state
from zskd_fast.real_data.evaluation import TestSet, accuracy
from zskd_fast.real_data.images import LabelledImages, to_input
from zskd_fast.real_data.train_teacher import train_teacher
from zskd_fast.repro.probe import Probe
from zskd_fast.repro.results import Outcome
from zskd_fast.repro.setups import Setup
from zskd_fast.run.pipeline import Job, Model, load_student, run_job
from zskd_fast.run.run_folder import RunFolder

__all__ = ["REAL", "WAYS", "Task", "run_way"]

WAYS = {
    "zskd": "data impressions",
    "class-impressions": "class impressions (one-hot targets)",
    "start-noise": "start noise alone, for as many seconds",
    "real-kd": "real data, distilled",
    "real-ce": "real data, labels alone",
}
"""What each way teaches the student from."""
REAL = ("real-kd", "real-ce")
"""The ways that need real training data, for comparison only."""

_TIMED_STEPS, _TURNS = 50, 5


@dataclass(frozen=True)
class Task:
    """One setup and one seed: all that a way needs."""

    name: str
    setup: Setup
    recipe: Recipe
    teacher: Model
    test: TestSet
    training: LabelledImages | None
    """Real training images, for the ways that compare with them."""
    folder: Path
    seed: int
    device: torch.device

    @functools.cached_property
    def probe(self) -> Probe:
        """The same for all ways."""
        return Probe(self.teacher, self.recipe, seed=self.seed)


def run_way(way: str, task: Task, zskd: Outcome | None) -> Outcome:
    """Makes a student in this way; goes on where an interrupted call stopped.

    ``zskd`` is the outcome of that way for the same task: "start-noise" is given as many seconds. Raises InputError
    if the way needs real data, or that outcome, and there is none.
    """
    if way in REAL and task.training is None:
        raise InputError(f"the way {way} needs the training split of {task.setup.data_set}; give --data")
    if way == "real-ce":
        return _from_labels(task)
    if way == "real-kd":
        return _from_real_images(task)
    synthesis, distillation = task.recipe.synthesis, task.recipe.distillation
    if way == "class-impressions":
        synthesis = replace(synthesis, targets="one_hot")
    elif way == "start-noise":
        if zskd is None:
            raise InputError("the way start-noise takes the seconds of the way zskd; run that, too")
        synthesis = replace(synthesis, steps=0)
        distillation = _without_optimisation(distillation)
        steps = _steps_begun(task.folder / way) or _steps_within(zskd, task, distillation)
        distillation = replace(distillation, steps=steps)
    return _from_impressions(way, task, synthesis, distillation)


def _from_impressions(
    way: str, task: Task, synthesis: SynthesisRecipe, distillation: DistillationRecipe
) -> Outcome:
    student = load_student(task.setup.student, task.seed, task.device)
    spec = task.recipe.input
    out = task.folder / way
    job = Job(task.teacher, student, spec, distillation, task.test, out, task.seed, task.device)
    run = run_job(job, synthesis)
    student.module.load_state_dict(load_state(run.student_path))
    impressions, noise = task.probe.agreements(student.module)
    record = run.record
    return replace(
        _outcome(way, task, student.module, distillation),
        agreement_impressions=impressions,
        agreement_noise=noise,
        impressions=synthesis.impressions,
        image_steps=synthesis.impressions * synthesis.steps,
        synthesis_seconds=record.synthesis.seconds,
        distillation_seconds=record.distillation.seconds,
    )


def _from_real_images(task: Task) -> Outcome:
    """What the student could learn from the teacher, were the data at hand: the paper's upper bound."""
    distillation = _without_optimisation(task.recipe.distillation)
    student = load_student(task.setup.student, task.seed, task.device)
    inputs = to_input(task.training.images, task.recipe.input.shape[-1])
    distiller = _distiller(task, student, distillation)
    history = distiller.fit(inputs, checkpoint=task.folder / "real-kd" / "checkpoint")
    return replace(
        _outcome("real-kd", task, student.module, distillation), distillation_seconds=history.seconds
    )


def _from_labels(task: Task) -> Outcome:
    def build() -> nn.Module:
        return load_student(task.setup.student, task.seed, task.device).module

    recipe = TeacherRecipe()
    trained = train_teacher(build, task.training, recipe, seed=task.seed, device=task.device)
    images = recipe.epochs * len(task.training)
    return replace(
        _outcome("real-ce", task, trained.model, task.recipe.distillation),
        student_images=images,
        distillation_seconds=trained.seconds,
    )


def _without_optimisation(recipe: DistillationRecipe) -> DistillationRecipe:
    """The same distillation of inputs as they are given: no adversary and no fresh noise."""
    return replace(
        recipe, adversary=replace(recipe.adversary, steps=0), fresh=replace(recipe.fresh, fraction=0.0)
    )


def _steps_begun(folder: Path) -> int | None:
    """Those of an interrupted run: timed again they would be others."""
    if not (folder / "run.json").exists():
        return None
    return RunFolder.read(folder).record.identity["recipe"]["distillation"]["steps"]


def _steps_within(zskd: Outcome, task: Task, distillation: DistillationRecipe) -> int:
    """How many steps of this distillation take as long as all of the way zskd.

    From the seconds of a step of that way, and what a step of this one takes beside it: timed in turns, since a machine
    has its moods.
    """
    whole = task.recipe.distillation
    ratios = [_seconds_of_few(task, whole) / _seconds_of_few(task, distillation) for _ in range(_TURNS)]
    steps = zskd.student_images / whole.batch_size
    return max(1, round(steps * zskd.seconds / zskd.distillation_seconds * statistics.median(ratios)))


def _seconds_of_few(task: Task, distillation: DistillationRecipe) -> float:
    student = load_student(task.setup.student, task.seed, task.device)
    distiller = _distiller(task, student, replace(distillation, steps=_TIMED_STEPS))
    return distiller.fit(task.probe.impressions, progress=False).seconds


def _distiller(task: Task, student: Model, distillation: DistillationRecipe) -> Distiller:
    return Distiller(task.teacher.module, student.module, distillation, task.recipe.input, seed=task.seed)


def _outcome(way: str, task: Task, student: nn.Module, distillation: DistillationRecipe) -> Outcome:
    facts = environment(task.device)
    return Outcome(
        setup=task.name,
        way=way,
        seed=task.seed,
        device=str(facts["device"]),
        threads=int(facts["threads"]),
        torch=str(facts["torch"]),
        recipe=task.recipe.name,
        teacher_accuracy=accuracy(task.teacher.module, task.test.inputs, task.test.labels),
        student_accuracy=accuracy(student, task.test.inputs, task.test.labels),
        agreement_impressions=None,
        agreement_noise=None,
        impressions=0,
        image_steps=0,
        student_images=distillation.steps * distillation.batch_size,
        synthesis_seconds=0.0,
        distillation_seconds=0.0,
        version=str(facts["zskd_fast"]),
    )
