"""A job: from a teacher to a distilled student in one folder, for the commands `demo`, `run` and `distill`."""

from __future__ import annotations

import contextlib
import resource
from dataclasses import dataclass
from pathlib import Path

import torch

from zskd_fast.config.identity import RunIdentity
from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.recipe import DistillationRecipe, SynthesisRecipe
from zskd_fast.distillation.distiller import Distiller
from zskd_fast.distillation.history import DistillationHistory
from zskd_fast.errors import InputError
from zskd_fast.models.checkpoint_files import load_state, save_weights
from zskd_fast.models.classifier import Classifier
from zskd_fast.real_data.evaluation import TestSet, accuracy
from zskd_fast.run.run_folder import Accuracy, DistillationRecord, RunFolder, SynthesisRecord
from zskd_fast.run.summary import print_change, print_warning
from zskd_fast.runtime.environment import environment
from zskd_fast.runtime.files import sha256
from zskd_fast.runtime.processes import World, joined
from zskd_fast.runtime.signals import continuing_from
from zskd_fast.store.store import Store
from zskd_fast.store.verify import require_same_teacher, require_whole
from zskd_fast.synthesis.class_similarity import ClassSimilarity
from zskd_fast.synthesis.shards import synthesize
from zskd_fast.synthesis.synthesizer import Synthesizer

# Points of the accuracy's curve, and the images for all but the last, which takes every one.
_EVALUATIONS, _CURVE_IMAGES = 10, 1000


@dataclass(frozen=True, kw_only=True)
class Job:
    """A student to be distilled, and the folder of the result; both models are on one device.

    Raises InputError if the test images do not fit the teacher's input.
    """

    teacher: Classifier
    student: Classifier
    distillation: DistillationRecipe
    out: Path
    seed: int
    test: TestSet | None = None
    """Real images that are only used to print an accuracy."""

    def __post_init__(self) -> None:
        if self.test is None:
            return
        got, labels = list(self.test.inputs.shape), len(self.test.labels)
        if got != [labels, *self.input_spec.shape] or not labels:
            wanted = ["N", *self.input_spec.shape]
            raise InputError(f"the test images have shape {got} and {labels} labels, wanted {wanted} and N >= 1 labels")

    @property
    def input_spec(self) -> InputSpec:
        """The input of both models."""
        return self.teacher.input_spec

    @property
    def device(self) -> torch.device:
        """Where both models are."""
        return self.teacher.device

    def distiller(self) -> Distiller:
        """Return the distiller of this job. Raises InputError if the student does not fit."""
        return Distiller(self.teacher, self.student, self.input_spec, self.distillation, seed=self.seed)


def run_job(
    job: Job, synthesis: SynthesisRecipe, *, layer: str | torch.Tensor | None = None, progress: bool = True
) -> RunFolder:
    """Make the impressions and distill the student, or continue an interrupted run in the same folder.

    The folder of a run with fewer impressions or other numbers of the student is taken over: the impressions in it are
    kept, the missing ones are made, and the student is trained from the start beside the one before (see `RunFolder`).
    A run that was finished before is only loaded. Everything that the user gave is checked before anything is written.
    ``layer`` is that of `Synthesizer`.
    """
    synthesizer = Synthesizer(job.teacher, job.input_spec, synthesis, seed=job.seed, layer=layer)
    distiller = job.distiller()
    identity = RunIdentity(
        impressions=synthesizer.identity, num_impressions=synthesis.impressions, student=distiller.identity
    )
    run = RunFolder.open_or_create(job.out, identity)
    if run.is_finished:
        return _shown_again(job, run)
    if progress:
        print_change(run)
    with run.locked():
        store = Store.open_or_create(
            run.impressions_path,
            synthesizer.identity,
            impressions=synthesis.impressions,
            shard_size=synthesis.shard_size,
            device=synthesizer.device,
        )
        run.begin()
        summary = synthesize(synthesizer, store, progress=progress)
        if summary.made:
            run.record.synthesis = SynthesisRecord(summary.made, summary.seconds, summary.phase_seconds)
        run.record.synthesis.health, run.record.synthesis.notes = summary.health, summary.notes
        run.save_class_similarity(synthesizer.class_similarity)
        run.save()
        if progress:
            print_warning(summary.health)
        made = f"{synthesis.impressions:,} of {synthesis.impressions:,} impressions"
        with continuing_from(lambda: made):
            if summary.elsewhere:  # every other shard was hashed, or written, by `synthesize`
                require_whole(store, job.device)
            _distill(job, run, distiller, store, progress)
    return run


def distill_store(job: Job, store: Store, *, progress: bool = True) -> RunFolder | None:
    """Distill the student from a finished store of impressions of the same teacher.

    A folder is continued, taken over or only loaded as by `run_job`. In a process group all processes train together;
    the first keeps the folder, the others return None.
    """
    require_same_teacher(store, job.teacher)
    world, made = joined(), store.identity
    distiller = job.distiller()
    require_whole(store, job.device, world)
    identity = RunIdentity(impressions=made, num_impressions=store.num_impressions, student=distiller.identity)
    with contextlib.ExitStack() as held:
        run = _begun(job, identity, world, held, progress)
        if world.from_first(bool(run and run.is_finished), job.device):
            return run and _shown_again(job, run)
        if run is None:
            _fit(job, distiller, store, progress)
            return None
        run.record.impressions = str(store.folder.absolute())
        if not made.layer.startswith("matrix "):  # a matrix given in place of the layer is not in the store
            run.save_class_similarity(ClassSimilarity.of(job.teacher.model, layer=made.layer))
        _distill(job, run, distiller, store, progress)
    return run


def _begun(
    job: Job, identity: RunIdentity, world: World, held: contextlib.ExitStack, progress: bool
) -> RunFolder | None:
    """Open the folder, in the first process, and begin an unfinished run with its lock held.

    The others return None, once they may read the checkpoint. What the first raises as InputError, all raise.
    """
    run, refusal = None, ""
    if world.is_first:
        try:
            run = RunFolder.open_or_create(job.out, identity)
            if not run.is_finished:
                if progress:
                    print_change(run)
                held.enter_context(run.locked())
                run.begin()
        except InputError as error:
            refusal = str(error)
    refusal = world.from_first(refusal, job.device)
    if refusal:
        raise InputError(refusal)
    return run


def _distill(job: Job, run: RunFolder, distiller: Distiller, store: Store, progress: bool) -> None:
    history = _fit(job, distiller, store, progress)
    run.record.distillation = DistillationRecord(
        history.seconds,
        history.phase_seconds,
        history.loss,
        history.learning_rate,
        history.evaluations,
        history.notes,
    )
    steps = f"{job.distillation.steps:,}"
    with continuing_from(lambda: f"step {steps} of {steps}"):  # of the checkpoint, which exists until the end
        _describe(job, run)
        curve, measured = run.record.distillation.accuracies, run.record.accuracy
        if curve and measured:
            curve[-1] = (job.distillation.steps, measured.student)
        _finish(job, run)


def _fit(job: Job, distiller: Distiller, store: Store, progress: bool) -> DistillationHistory:
    test, few = job.test, slice(_CURVE_IMAGES)
    return distiller.fit(
        store,
        progress=progress,
        evaluate=None if test is None else lambda _: accuracy(job.student, test.inputs[few], test.labels[few]),
        evaluate_every=max(1, job.distillation.steps // _EVALUATIONS),
        checkpoint=RunFolder.checkpoint_of(job.out),
    )


def _describe(job: Job, run: RunFolder) -> None:
    teacher, student = job.teacher, job.student
    run.record.names = {
        "title": f"{teacher.name} to {student.name}",
        "teacher": teacher.name,
        "student": student.name,
    }
    run.record.parameters = {"teacher": teacher.num_parameters, "student": student.num_parameters}
    run.record.accuracy = _measured(job)
    run.record.environment = environment(job.device)


def _finish(job: Job, run: RunFolder) -> None:
    save_weights(job.student.model, run.student_path, {"zskd_fast": "student"})
    run.record.student_sha256 = sha256(run.student_path.read_bytes())
    run.record.peak_memory_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run.record.finished = True
    run.save()
    run.checkpoint_path.unlink(missing_ok=True)


def _shown_again(job: Job, run: RunFolder) -> RunFolder:
    """Load the student of a finished run; measure only an accuracy that was not asked for before."""
    job.student.model.load_state_dict(load_state(run.student_path))
    run.remark = "was finished before; nothing was left to do"
    if job.test is not None and run.record.accuracy is None:
        run.record.accuracy = _measured(job)
        run.save()
        run.remark = "was finished before; only its accuracy was measured"
    return run


def _measured(job: Job) -> Accuracy | None:
    test = job.test
    if test is None:
        return None
    teacher, student = (accuracy(model, test.inputs, test.labels) for model in (job.teacher, job.student))
    return Accuracy(test.source, len(test.labels), teacher, student)
