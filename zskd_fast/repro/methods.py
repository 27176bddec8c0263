"""The methods that train a student: data impressions, the same without one of its parts, and real data."""

from __future__ import annotations

import functools
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zskd_fast.config.recipe import DistillationRecipe, Recipe, SynthesisRecipe
from zskd_fast.config.teacher_recipe import TeacherRecipe
from zskd_fast.distillation.distiller import Distiller
from zskd_fast.errors import InputError
from zskd_fast.models.classifier import Classifier
from zskd_fast.models.user_models import load_classifier
from zskd_fast.real_data.evaluation import TestSet, accuracy
from zskd_fast.real_data.image_sets import LabelledImages, to_input
from zskd_fast.real_data.train_teacher import train_teacher
from zskd_fast.repro.probe import Probe
from zskd_fast.repro.results import Outcome
from zskd_fast.repro.setups import Setup
from zskd_fast.run.job import Job, run_job
from zskd_fast.run.run_folder import RunFolder
from zskd_fast.runtime.environment import environment

METHODS = {
    "zskd": "data impressions",
    "class-impressions": "class impressions (one-hot targets)",
    "start-noise": "start noise alone, for as many seconds",
    "real-kd": "real data, distilled",
    "real-ce": "real data, labels alone",
}
"""The inputs that each method trains the student on."""
REAL = ("real-kd", "real-ce")
"""The methods that need real training data, for comparison only."""

_TIMED_STEPS, _TURNS = 50, 5


@dataclass(frozen=True, kw_only=True)
class Task:
    """One recipe of a setup and one seed: all that a method needs."""

    name: str
    """Name of the setup."""
    setup: Setup
    recipe: Recipe
    change: str
    """How the recipe differs from the named one."""
    teacher: Classifier
    teacher_accuracy: float
    test: TestSet
    training: LabelledImages | None
    """Real training images, for the methods that need them."""
    fixed_probe: Probe | None
    """The probe, if not that of the recipe and the seed."""
    folder: Path
    seed: int

    @functools.cached_property
    def probe(self) -> Probe:
        """Held-out inputs, the same for all methods."""
        return self.fixed_probe or Probe(self.teacher, self.recipe, seed=self.seed)

    def new_student(self) -> Classifier:
        """Return an untrained student; the seed decides its weights."""
        spec, device = self.setup.input_spec, self.teacher.device
        return load_classifier(self.setup.student, spec, role="student", device=device, seed=self.seed)


def run_method(method: str, task: Task, zskd: Outcome | None) -> Outcome:
    """Train a student with a method, from the point where an interrupted call stopped.

    ``zskd`` is the outcome of the method "zskd" for the same task: "start-noise" gets as many seconds and raises
    InputError without it. The methods in `REAL` need ``task.training``.
    """
    if method == "real-ce":
        return _from_labels(task)
    if method == "real-kd":
        return _from_real_images(task)
    synthesis, distillation = task.recipe.synthesis, task.recipe.distillation
    if method == "class-impressions":
        synthesis = replace(synthesis, targets="one_hot")
    elif method == "start-noise":
        if zskd is None:
            raise InputError("the method start-noise takes as many seconds as the method zskd; run that, too")
        synthesis = replace(synthesis, steps=0)
        distillation = _without_fresh_noise(distillation)
        steps = _interrupted_steps(task.folder / method) or _steps_within(zskd, task, distillation)
        distillation = replace(distillation, steps=steps)
    return _from_impressions(method, task, synthesis, distillation)


def _from_impressions(method: str, task: Task, synthesis: SynthesisRecipe, distillation: DistillationRecipe) -> Outcome:
    student = task.new_student()
    job = Job(
        teacher=task.teacher,
        student=student,
        distillation=distillation,
        out=task.folder / method,
        seed=task.seed,
        test=task.test,
    )
    run = run_job(job, synthesis)
    impressions, noise = task.probe.agreements(student)
    return _outcome(
        method,
        task,
        student,
        student_images=distillation.steps * distillation.batch_size,
        agreement_impressions=impressions,
        agreement_noise=noise,
        impressions=synthesis.impressions,
        image_steps=synthesis.impressions * synthesis.steps,
        synthesis_seconds=run.record.synthesis.seconds,
        distillation_seconds=run.record.distillation.seconds,
    )


def _from_real_images(task: Task) -> Outcome:
    """Distill from the real images: the paper's upper bound."""
    assert task.training is not None
    recipe, student = _without_fresh_noise(task.recipe.distillation), task.new_student()
    inputs = to_input(task.training.images, task.setup.input_spec.shape[-1])
    checkpoint = task.folder / "real-kd" / "checkpoint"
    seconds = _distiller(task, student, recipe).fit(inputs, checkpoint=checkpoint).seconds
    images = recipe.steps * recipe.batch_size
    return _outcome("real-kd", task, student, student_images=images, distillation_seconds=seconds)


def _from_labels(task: Task) -> Outcome:
    recipe = TeacherRecipe()
    assert task.training is not None
    trained = train_teacher(
        lambda: task.new_student().model, task.training, recipe, seed=task.seed, device=task.teacher.device
    )
    student = Classifier(trained.model, task.setup.input_spec, role="student")
    images = recipe.epochs * len(task.training)
    return _outcome("real-ce", task, student, student_images=images, distillation_seconds=trained.seconds)


def _without_fresh_noise(recipe: DistillationRecipe) -> DistillationRecipe:
    return replace(recipe, fresh_noise=replace(recipe.fresh_noise, fraction=0.0))


def _interrupted_steps(folder: Path) -> int | None:
    """Return the steps of an interrupted run; a second timing would give another number."""
    if not (folder / "run.json").exists():
        return None
    return RunFolder.read(folder).record.identity.student.recipe.steps


def _steps_within(zskd: Outcome, task: Task, distillation: DistillationRecipe) -> int:
    """Return how many steps of this distillation take as long as the whole method "zskd".

    Computed from the seconds per step of that method and the ratio of the two step times. The two are timed in turns,
    since the speed of a machine varies.
    """
    whole = task.recipe.distillation
    ratios = [_seconds_of_few(task, whole) / _seconds_of_few(task, distillation) for _ in range(_TURNS)]
    assert zskd.student_images is not None
    steps = zskd.student_images / whole.batch_size
    start = RunFolder.read(task.folder / "zskd").record.distillation.phase_seconds.get("pruned start", 0.0)
    share = (zskd.seconds - start) / (zskd.distillation_seconds - start)  # both students are given the same start
    return max(1, round(steps * share * statistics.median(ratios)))


def _seconds_of_few(task: Task, distillation: DistillationRecipe) -> float:
    few = replace(distillation, steps=_TIMED_STEPS, pruned_start=False)
    distiller = _distiller(task, task.new_student(), few)
    return distiller.fit(task.probe.impressions, progress=False).seconds


def _distiller(task: Task, student: Classifier, distillation: DistillationRecipe) -> Distiller:
    return Distiller(task.teacher, student, task.setup.input_spec, distillation, seed=task.seed)


def _outcome(method: str, task: Task, student: Classifier, **measured: Any) -> Outcome:
    facts = environment(task.teacher.device)
    return Outcome(
        setup=task.name,
        recipe=task.recipe.name,
        change=task.change,
        method=method,
        seed=task.seed,
        device=str(facts["device"]),
        threads=int(str(facts["threads"])),
        torch=str(facts["torch"]),
        teacher_accuracy=task.teacher_accuracy,
        student_accuracy=accuracy(student, task.test.inputs, task.test.labels),
        version=str(facts["zskd_fast"]),
        **measured,
    )
