"""From a teacher to a distilled student in one folder: what `demo`, `run` and `distill` have in common."""

from __future__ import annotations

import copy
import resource
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zskd_fast.cli.doctor import environment
from zskd_fast.cli.options import Student, Teacher
from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.recipe import DistillationRecipe, SynthesisRecipe
from zskd_fast.distillation.distiller import DistillationHistory, Distiller
from zskd_fast.models.classifier import Classifier, LogitsFn, weights_sha256
from zskd_fast.models.loading import load_callable, load_model, load_state, save_weights
from zskd_fast.real_data.evaluation import TestSet, accuracy
from zskd_fast.run.profiling import STEPS, write_trace
from zskd_fast.run.run_folder import Accuracy, DistillationRecord, RunFolder, SynthesisRecord
from zskd_fast.runtime.files import sha256
from zskd_fast.runtime.processes import joined
from zskd_fast.store.mapped_rows import MappedRows
from zskd_fast.store.store import Store
from zskd_fast.store.verify import require_same_teacher, require_whole
from zskd_fast.synthesis.class_similarity import class_similarity
from zskd_fast.synthesis.synthesizer import Synthesizer, synthesize

__all__ = [
    "Job",
    "Model",
    "distill_store",
    "load_student",
    "load_teacher",
    "make_synthesizer",
    "profile_job",
    "profile_synthesis",
    "run_job",
]

_EVALUATIONS = 10


@dataclass(frozen=True)
class Model:
    """A teacher or a student, and what the user said about it."""

    module: nn.Module
    name: str
    """What the user called it: package.module:callable, or the file of a whole model."""
    logits_fn: LogitsFn | None = None
    layer: str | None = None

    @property
    def short_name(self) -> str:
        """`LeNet5` for zskd_fast.models:LeNet5."""
        return self.name.rpartition(":")[2]

    @property
    def parameters(self) -> int:
        """How many parameters it has."""
        return sum(parameter.numel() for parameter in self.module.parameters())


@dataclass(frozen=True)
class Job:
    """A student to be distilled, and where to put it; both models are on `device`."""

    teacher: Model
    student: Model
    input: InputSpec
    distillation: DistillationRecipe
    test: TestSet | None
    out: Path
    seed: int
    device: torch.device


def load_teacher(options: Teacher, device: torch.device) -> Model:
    """Load the teacher that the user named."""
    module = load_model(options.teacher, options.weights).to(device)
    name = options.teacher or Path(options.weights).name
    return Model(module, name, _optional(options.logits_fn), options.layer)


def load_student(options: Student, seed: int, device: torch.device) -> Model:
    """Load the student that the user named; the seed alone decides weights that no file gives."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = load_model(options.student, options.student_weights).to(device)
    name = options.student or Path(options.student_weights).name
    return Model(module, name, _optional(options.student_logits_fn))


def make_synthesizer(teacher: Model, spec: InputSpec, recipe: SynthesisRecipe, seed: int) -> Synthesizer:
    """A synthesizer of this teacher; everything about the teacher is checked here."""
    return Synthesizer(
        teacher.module, spec, recipe, seed=seed, layer=teacher.layer, logits_fn=teacher.logits_fn
    )


def run_job(job: Job, synthesis: SynthesisRecipe) -> RunFolder:
    """Make the impressions and distil the student; goes on with an interrupted run in the same folder.

    Everything that the user gave is checked before anything is written.
    """
    synthesizer = make_synthesizer(job.teacher, job.input, synthesis, job.seed)
    distiller = _make_distiller(job)
    run = RunFolder.open_or_create(job.out, _identity(job, synthesizer.layer, asdict(synthesis), job.seed))
    if run.is_finished:
        return _shown_again(job, run)
    with run.at_work():
        store = Store.open_or_create(run.impressions_path, synthesizer.fingerprint())
        summary = synthesize(synthesizer, store)
        if summary.made:
            run.record.synthesis = SynthesisRecord(summary.made, summary.seconds, summary.phase_seconds)
        run.record.class_similarity = synthesizer.similarity.tolist()
        run.save()
        require_whole(store, job.device)
        _distil(job, run, distiller, store)
    return run


def profile_synthesis(synthesizer: Synthesizer, path: Path) -> None:
    """Write a trace of a few steps of one batch of impressions, which are thrown away."""
    short = synthesizer.shortened(STEPS)
    write_trace(path, lambda: short.run(range(short.recipe.batch_size)))


def profile_job(job: Job, synthesis: SynthesisRecipe, path: Path) -> None:
    """Write a trace of a few steps of one batch of impressions, and of as many of a copy of the student."""
    synthesizer = make_synthesizer(job.teacher, job.input, synthesis, job.seed).shortened(STEPS)
    student = replace(job.student, module=copy.deepcopy(job.student.module))
    # Half the steps warm up, whatever the recipe's share: it may fall on one step of so few, which torch refuses.
    recipe = replace(job.distillation, steps=STEPS, warmup_fraction=0.5)
    distiller = _make_distiller(replace(job, student=student, distillation=recipe))

    def work() -> None:
        made = synthesizer.run(range(synthesis.batch_size))
        distiller.fit(made.x, made.teacher_logits, made.id, progress=False)

    write_trace(path, work)


def distill_store(job: Job, store: Store) -> RunFolder | None:
    """Distil the student from a finished store of impressions of the same teacher.

    In a process group all processes train together; the first keeps the folder, the others return None.
    """
    require_same_teacher(store, job.teacher.module)
    made, world = store.manifest["fingerprint"], joined()
    distiller = _make_distiller(job)
    require_whole(store, job.device, world)
    identity = _identity(job, made["layer"], made["recipe"], made["seed"])
    run = RunFolder.open_or_create(job.out, identity) if world.is_first else None
    if world.from_first(run and run.is_finished, job.device):
        return run and _shown_again(job, run)
    if run is None:
        _fit(job, distiller, store)
        return None
    run.record.impressions = str(store.folder.absolute())
    run.record.class_similarity = class_similarity(job.teacher.module, layer=made["layer"]).tolist()
    with run.at_work():
        _distil(job, run, distiller, store)
    return run


def _make_distiller(job: Job) -> Distiller:
    return Distiller(
        job.teacher.module,
        job.student.module,
        job.distillation,
        job.input,
        seed=job.seed,
        logits_fn=job.teacher.logits_fn,
        student_logits_fn=job.student.logits_fn,
    )


def _identity(job: Job, layer: str, synthesis: dict[str, Any], synthesis_seed: int) -> dict[str, Any]:
    """All that the student depends on."""
    return {
        "seed": job.seed,
        "synthesis_seed": synthesis_seed,
        "teacher": {"model": job.teacher.name, "sha256": weights_sha256(job.teacher.module), "layer": layer},
        "student": {"model": job.student.name, "start_sha256": weights_sha256(job.student.module)},
        "recipe": {
            "input": asdict(job.input),
            "synthesis": synthesis,
            "distillation": asdict(job.distillation),
        },
    }


def _distil(job: Job, run: RunFolder, distiller: Distiller, store: Store) -> None:
    history = _fit(job, distiller, store)
    run.record.distillation = DistillationRecord(
        history.seconds, history.phase_seconds, history.loss, history.learning_rate, history.evaluations
    )
    _describe(job, run)
    _finish(run, job.student.module)


def _fit(job: Job, distiller: Distiller, store: Store) -> DistillationHistory:
    return distiller.fit(
        MappedRows(store, "x"),
        None if job.distillation.relabel else MappedRows(store, "teacher_logits"),
        evaluate=None if job.test is None else lambda _: _accuracy(job, job.student, "student"),
        evaluate_every=max(1, job.distillation.steps // _EVALUATIONS),
        checkpoint=RunFolder.checkpoint_of(job.out),
    )


def _describe(job: Job, run: RunFolder) -> None:
    record, teacher, student = run.record, job.teacher, job.student
    title = f"{teacher.short_name} to {student.short_name}"
    record.names = {"title": title, "teacher": teacher.short_name, "student": student.short_name}
    record.parameters = {"teacher": teacher.parameters, "student": student.parameters}
    record.accuracy = _measured(job)
    record.environment = environment(job.device)


def _finish(run: RunFolder, student: nn.Module) -> None:
    save_weights(student, run.student_path, {"zskd_fast": "student"})
    run.record.student_sha256 = sha256(run.student_path.read_bytes())
    run.record.peak_memory_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run.record.finished = True
    run.save()
    run.checkpoint_path.unlink(missing_ok=True)


def _shown_again(job: Job, run: RunFolder) -> RunFolder:
    """A finished run is not done again; only an accuracy that was not asked for then is measured now."""
    if job.test is not None and run.record.accuracy is None:
        job.student.module.load_state_dict(load_state(run.student_path))
        run.record.accuracy = _measured(job)
        run.save()
    return run


def _measured(job: Job) -> Accuracy | None:
    if job.test is None:
        return None
    teacher, student = _accuracy(job, job.teacher, "teacher"), _accuracy(job, job.student, "student")
    return Accuracy(job.test.source, len(job.test.labels), teacher, student)


def _accuracy(job: Job, model: Model, role: str) -> float:
    classifier = Classifier(model.module, job.input, role=role, logits_fn=model.logits_fn)
    return accuracy(model.module, job.test.inputs, job.test.labels, forward=classifier.logits)


def _optional(spec: str | None) -> Any:
    return None if spec is None else load_callable(spec)
