"""From a teacher to a distilled student in one folder: what `demo`, `run` and `distill` have in common."""

from __future__ import annotations

import resource
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zskd_fast.class_similarity import class_similarity
from zskd_fast.classifier import Classifier, weights_sha256
from zskd_fast.distiller import Distiller
from zskd_fast.doctor import environment
from zskd_fast.errors import InputError
from zskd_fast.evaluation import TestSet, accuracy
from zskd_fast.files import sha256
from zskd_fast.impressions import Impressions
from zskd_fast.input_spec import InputSpec
from zskd_fast.loading import load_callable, load_model, save_weights
from zskd_fast.options import Machine, Student, Teacher
from zskd_fast.recipe import DistillationRecipe, SynthesisRecipe
from zskd_fast.runs import Accuracy, DistillationRecord, RunFolder, SynthesisRecord
from zskd_fast.store import Store
from zskd_fast.synthesizer import Synthesizer, synthesize

__all__ = ["Job", "Models", "distill_store", "load_models", "run_job"]

_EVALUATIONS = 10


@dataclass(frozen=True)
class Models:
    """A teacher and a student on one device, with what the user said about them."""

    teacher: nn.Module
    student: nn.Module
    teacher_options: Teacher
    student_options: Student

    @property
    def names(self) -> dict[str, str]:
        """Short names for people."""
        return {"teacher": short_name(self.teacher_options), "student": short_name(self.student_options)}


@dataclass(frozen=True)
class Job:
    """A student to be distilled, and where to put it."""

    models: Models
    input: InputSpec
    distillation: DistillationRecipe
    test: TestSet | None
    out: Path
    seed: int
    device: torch.device


def load_models(teacher: Teacher, student: Student, machine: Machine, device: torch.device) -> Models:
    """Load both models; the seed alone decides the first weights of a student that has none."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(machine.seed)
        learner = load_model(student.student, student.student_weights)
    return Models(load_teacher(teacher, device), learner.to(device), teacher, student)


def load_teacher(options: Teacher, device: torch.device) -> nn.Module:
    """Load the teacher that the user named."""
    return load_model(options.teacher, options.weights).to(device)


def optional_callable(spec: str | None) -> Any:
    """The callable that a user named, or None."""
    return None if spec is None else load_callable(spec)


def short_name(options: Teacher | Student) -> str:
    """`LeNet5` for zskd_fast.models:LeNet5, or the file name of a whole model."""
    spec = options.teacher if isinstance(options, Teacher) else options.student
    return spec.partition(":")[2] if spec else Path(str(getattr(options, "weights", ""))).name


def make_synthesizer(
    teacher: nn.Module, options: Teacher, spec: InputSpec, recipe: SynthesisRecipe, seed: int
) -> Synthesizer:
    """A synthesizer as the options ask for; everything about the teacher is checked here."""
    logits_fn = optional_callable(options.logits_fn)
    return Synthesizer(teacher, spec, recipe, seed=seed, layer=options.layer, logits_fn=logits_fn)


def run_job(job: Job, synthesis: SynthesisRecipe) -> RunFolder:
    """Make the impressions and distil the student; goes on with an interrupted run in the same folder.

    All that the user gave is checked before anything is written.
    """
    options = job.models.teacher_options
    synthesizer = make_synthesizer(job.models.teacher, options, job.input, synthesis, job.seed)
    distiller = _distiller(job)
    identity = _identity(job, {"synthesis": asdict(synthesis), "layer": synthesizer.layer})
    run = RunFolder.open_or_create(job.out, identity)
    if run.is_finished:
        return run
    store = Store.open_or_create(run.impressions_path, synthesizer.fingerprint())
    summary = synthesize(synthesizer, store)
    if summary.made:
        run.record.synthesis = SynthesisRecord(summary.made, summary.seconds, summary.phase_seconds)
    run.record.class_similarity = synthesizer.similarity.tolist()
    run.save()
    _distil(job, run, distiller, store.read_all())
    return run


def distill_store(job: Job, store: Store) -> RunFolder:
    """Distil the student from a finished store of impressions of the same teacher."""
    _require_same_teacher(store, job.models.teacher)
    fingerprint = store.manifest["fingerprint"]
    distiller = _distiller(job)
    impressions = store.read_all()
    identity = _identity(job, {"synthesis": fingerprint["recipe"], "synthesis_seed": fingerprint["seed"]})
    run = RunFolder.open_or_create(job.out, identity)
    if run.is_finished:
        return run
    run.record.impressions = str(store.folder.absolute())
    similarity = class_similarity(job.models.teacher, layer=fingerprint["layer"])
    run.record.class_similarity = similarity.tolist()
    _distil(job, run, distiller, impressions)
    return run


def _distiller(job: Job) -> Distiller:
    return Distiller(
        job.models.teacher,
        job.models.student,
        job.distillation,
        job.input,
        seed=job.seed,
        logits_fn=optional_callable(job.models.teacher_options.logits_fn),
        student_logits_fn=optional_callable(job.models.student_options.student_logits_fn),
    )


def _identity(job: Job, synthesis: dict[str, Any]) -> dict[str, Any]:
    """All that the student depends on."""
    recipe = {"input": asdict(job.input), **synthesis, "distillation": asdict(job.distillation)}
    options = job.models.teacher_options, job.models.student_options
    return {
        "seed": job.seed,
        "teacher": {"model": options[0].teacher, "sha256": weights_sha256(job.models.teacher)},
        "student": {"model": options[1].student, "start sha256": weights_sha256(job.models.student)},
        "recipe": recipe,
    }


def _distil(job: Job, run: RunFolder, distiller: Distiller, impressions: Impressions) -> None:
    record, models = run.record, job.models
    evaluate, teacher_accuracy = _evaluation(job)
    history = distiller.fit(
        impressions.x,
        impressions.teacher_logits,
        impressions.id,
        evaluate=evaluate,
        evaluate_every=max(1, job.distillation.steps // _EVALUATIONS) if evaluate else 0,
        checkpoint=run.checkpoint_path,
    )
    record.distillation = DistillationRecord(
        history.seconds, history.phase_seconds, history.loss, history.learning_rate, history.evaluations
    )
    if job.test is not None:
        final = history.evaluations[-1][1]
        record.accuracy = Accuracy(job.test.source, len(job.test.labels), teacher_accuracy, final)
    names = models.names
    record.names = {**names, "title": f"{names['teacher']} to {names['student']}"}
    record.parameters = {"teacher": _count(models.teacher), "student": _count(models.student)}
    record.environment = environment(job.device)
    _finish(run, models.student)


def _finish(run: RunFolder, student: nn.Module) -> None:
    save_weights(student, run.student_path, {"zskd_fast": "student"})
    run.record.student_sha256 = sha256(run.student_path.read_bytes())
    run.record.peak_memory_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run.record.finished = True
    run.save()
    run.checkpoint_path.unlink(missing_ok=True)


def _evaluation(job: Job):
    """(function that measures the student, accuracy of the teacher); (None, 0) without test images."""
    test = job.test
    if test is None:
        return None, 0.0
    options = job.models.teacher_options, job.models.student_options
    teacher_fn = optional_callable(options[0].logits_fn)
    student_fn = optional_callable(options[1].student_logits_fn)
    teacher = Classifier(job.models.teacher, job.input, logits_fn=teacher_fn)
    student = Classifier(job.models.student, job.input, role="student", logits_fn=student_fn)

    def evaluate(model: nn.Module) -> float:
        return accuracy(model, test.inputs, test.labels, forward=student.logits)

    return evaluate, accuracy(teacher.model, test.inputs, test.labels, forward=teacher.logits)


def _require_same_teacher(store: Store, teacher: nn.Module) -> None:
    wanted, got = store.manifest["fingerprint"]["teacher"]["sha256"], weights_sha256(teacher)
    if got != wanted:
        raise InputError(
            f"{store.folder} holds impressions of another teacher: its weights have SHA-256 {wanted[:12]}, "
            f"the teacher given has {got[:12]}"
        )


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
