"""What each command does with its parsed options."""

from __future__ import annotations

import json
import platform
import sys
from dataclasses import asdict, replace
from functools import singledispatch
from pathlib import Path
from typing import Any, TypeVar

import torch

from zskd_fast.cli.options import (
    Command,
    Demo,
    Distill,
    Export,
    Processor,
    Report,
    Repro,
    Run,
    Student,
    Synthesize,
    Teacher,
    TeacherWithLayer,
    TrainTeacher,
    Verify,
)
from zskd_fast.config.adaptation import adapt
from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.recipe import DistillationRecipe, SynthesisRecipe
from zskd_fast.errors import InputError
from zskd_fast.models.checkpoint_files import load_matrix, save_weights
from zskd_fast.models.classifier import Classifier
from zskd_fast.models.user_models import ASSETS, ModelSource, build_model, load_classifier
from zskd_fast.real_data.evaluation import accuracy, load_test_set
from zskd_fast.real_data.image_sets import load_folder, to_input
from zskd_fast.real_data.train_teacher import train_teacher
from zskd_fast.report import missing_extras, write_report
from zskd_fast.repro.repeat import Order, repeat
from zskd_fast.repro.table import accuracy_table
from zskd_fast.run.job import Job, distill_store, run_job
from zskd_fast.run.profiling import profile_job, profile_synthesis, require_writable_trace
from zskd_fast.run.run_folder import RunFolder
from zskd_fast.run.summary import print_health, print_run
from zskd_fast.runtime.environment import set_up
from zskd_fast.runtime.files import require_writable
from zskd_fast.runtime.processes import World, launched, process_group, require_alone
from zskd_fast.store.export import export_png, export_webdataset
from zskd_fast.store.store import Store
from zskd_fast.store.verify import shard_faults, teacher_faults
from zskd_fast.synthesis.shards import SynthesisSummary, synthesize
from zskd_fast.synthesis.synthesizer import Synthesizer

_Recipe = TypeVar("_Recipe", SynthesisRecipe, DistillationRecipe)
_DAMAGED = 1
_DEMO_TEACHER = TeacherWithLayer("zskd_fast.models:LeNet5", ASSETS / "lenet5-mnist.safetensors")
_DEMO_STUDENT = Student("zskd_fast.models:LeNet5Half")
_DEMO_INPUT = InputSpec((1, 32, 32))
_DEMO_TEST_DATA = ASSETS / "mnist-t10k"


@singledispatch
def execute(command: Command) -> int:
    """Execute a parsed command and return the exit code."""
    raise TypeError(f"no such command: {type(command).__name__}")


@execute.register
def _(command: Demo) -> int:
    job = _job(command, _DEMO_INPUT, _DEMO_TEACHER, _DEMO_STUDENT)
    test = load_test_set(_DEMO_TEST_DATA, job.input_spec, "the MNIST test split that comes with zskd_fast")
    return _run(command, replace(job, test=test), _DEMO_TEACHER)


@execute.register
def _(command: Run) -> int:
    job = _job(command, command.input.spec(), command.teacher, command.student)
    return _run(command, _with_test_set(job, command.test_data), command.teacher)


def _run(command: Demo | Run, job: Job, teacher: TeacherWithLayer) -> int:
    synthesis = _adapted(command.synthesis, job.input_spec)
    layer = _layer(teacher)
    if command.profile:
        steps = profile_job(job, synthesis, command.profile, layer=layer)
        _print_trace(command.profile, steps)
    _conclude(run_job(job, synthesis, layer=layer), teacher)
    return 0


@execute.register
def _(command: Distill) -> int:
    require_writable(command.out)
    store = Store.open(command.impressions)
    job = _job(command, store.identity.input, command.teacher, command.student)
    job = _with_test_set(job, command.test_data)
    with process_group(job.device):
        run = distill_store(job, store)
    if run:
        _conclude(run, command.teacher)
    return 0


@execute.register
def _(command: Synthesize) -> int:
    world = launched()
    if world.size > 1 and command.resume == "never":
        raise InputError('resume "never" is for one process: of several, one may start late or again')
    require_writable(command.out)
    if command.profile:
        require_writable_trace(command.profile)
    teacher = _load_teacher(command.teacher, command.input.spec(), command.machine)
    spec, layer = teacher.input_spec, _layer(command.teacher)
    synthesis = _adapted(command.synthesis, spec, shown=world.is_first)
    synthesizer = Synthesizer(teacher, spec, synthesis, seed=command.machine.seed, layer=layer)
    store = Store.open_or_create(
        command.out,
        synthesizer.identity,
        impressions=synthesis.impressions,
        shard_size=synthesis.shard_size,
        resume=command.resume,
        device=synthesizer.device,
    )
    if command.profile and world.is_first:
        steps = profile_synthesis(synthesizer, command.profile)
        _print_trace(command.profile, steps)
    summary = synthesize(synthesizer, store, world=world, progress=world.is_first)
    _print_synthesis(summary, command.out, world)
    return 0


def _print_synthesis(summary: SynthesisSummary, store: Path, world: World) -> None:
    who = f"rank {world.rank}: " if world.size > 1 else ""
    rate = summary.made / summary.seconds
    print(f"{who}impressions   {summary.made:,} made in {summary.seconds:.1f} s, {rate:.1f} per second")
    print(f"{who}              {summary.reused:,} existed already")
    if summary.elsewhere:
        print(f"{who}              {summary.elsewhere:,} are being made by another process")
    print_health(summary.health, summary.notes, who)
    print(f"{who}store         {store}")


@execute.register
def _(command: Verify) -> int:
    store = Store.open(command.store)
    faults = list(shard_faults(store))
    with_teacher = command.teacher != Teacher()
    if with_teacher:
        faults += teacher_faults(store, _load_teacher(command.teacher, store.identity.input, command.processor))
    for fault in faults:
        print(f"zskd-fast: {store.folder}: {fault}", file=sys.stderr)
    print(f"store         {store.folder}, {store.num_impressions:,} impressions, {store.num_shards:,} shards")
    compared = "logits compared with the teacher's" if with_teacher else "no teacher given to compare logits"
    print(f"faults        {len(faults)}; {compared}")
    return _DAMAGED if faults else 0


@execute.register
def _(command: Export) -> int:
    require_writable(command.out)
    store = Store.open(command.store)
    if command.format == "png":
        print(f"images        {export_png(store, command.out):,} in {command.out}")
    else:
        print(f"tar files     {len(export_webdataset(store, command.out)):,} in {command.out}")
    return 0


@execute.register
def _(command: Repro) -> int:
    require_alone("repro")
    require_writable(command.out)
    if command.seeds < 1 or not command.methods:
        raise InputError(
            f"nothing to do: got {command.seeds} seeds and {len(command.methods)} methods, wanted 1 or more"
        )
    results = command.results or command.out / "outcomes.csv"
    require_writable(results.parent)
    first = command.machine.seed
    order = Order(
        setup=command.name,
        methods=command.methods,
        seeds=range(first, first + command.seeds),
        data=command.data,
        weights=command.weights,
        out=command.out / command.name,
        results=results,
    )
    print(accuracy_table(repeat(order, _device(command.machine))))
    print(f"\noutcomes      {results}")
    return 0


@execute.register
def _(command: Report) -> int:
    print(f"report        {write_report(RunFolder.read(command.run), command.out)}")
    return 0


@execute.register
def _(command: TrainTeacher) -> int:
    require_alone("train-teacher")
    if command.out.suffix != ".safetensors":
        raise InputError(f"{command.out}: the file of weights must end in .safetensors")
    require_writable(command.out.parent)
    device, seed = _device(command.machine), command.machine.seed
    images, test = load_folder(command.data, "train"), load_folder(command.data, "test")
    build_model(command.model)  # refuses a wrong name before the long work
    trained = train_teacher(lambda: build_model(command.model), images, command.training, seed=seed, device=device)
    inputs = to_input(test.images)
    classifier = Classifier(trained.model, InputSpec(tuple(inputs.shape[1:])))
    measured = accuracy(classifier, inputs, test.labels)
    command.out.parent.mkdir(parents=True, exist_ok=True)
    save_weights(trained.model, command.out, {"teacher": json.dumps(_training_facts(command, measured))})
    print(f"teacher       {measured:.2%} on {len(test):,} real test images, trained in {trained.seconds:.0f} s")
    print(f"weights       {command.out}")
    return 0


def _device(processor: Processor) -> torch.device:
    return set_up(threads=processor.threads, device=processor.device)


def _load_teacher(options: Teacher, spec: InputSpec | None, processor: Processor) -> Classifier:
    source = _teacher_source(options)
    if source.note and launched().is_first:
        print(f"zskd-fast: {source.note}; --weights gives one", file=sys.stderr)
    teacher = _noted(load_classifier(source, spec, device=_device(processor)))
    if spec is None and launched().is_first:
        print(f"input         {teacher.input_spec}, from the teacher's own files")
    return teacher


def _layer(teacher: TeacherWithLayer) -> str | torch.Tensor | None:
    return load_matrix(teacher.layer_weights) if teacher.layer_weights else teacher.layer


def _teacher_source(options: Teacher) -> ModelSource:
    return ModelSource(
        model=options.teacher,
        weights=options.weights,
        weights_key=options.weights_key,
        logits_fn=options.logits_fn,
        forward_fn=options.forward_fn,
    )


def _job(command: Demo | Run | Distill, spec: InputSpec | None, teacher: Teacher, student: Student) -> Job:
    if not isinstance(command, Distill):
        require_alone(type(command).__name__.lower())
        if command.profile:
            require_writable_trace(command.profile)
    require_writable(command.out)
    loaded = _load_teacher(teacher, spec, command.machine)
    source = ModelSource(
        model=student.student,
        weights=student.student_weights,
        weights_key=student.student_weights_key,
        logits_fn=student.student_logits_fn,
        forward_fn=student.student_forward_fn,
    )
    seed, spec = command.machine.seed, loaded.input_spec
    distillation = _adapted(command.distillation, spec, shown=launched().is_first)
    if student.student_weights:  # which are not to be replaced
        distillation = replace(distillation, pruned_start=False)
    return Job(
        teacher=loaded,
        student=_noted(load_classifier(source, spec, role="student", device=loaded.device, seed=seed)),
        distillation=distillation,
        out=command.out,
        seed=seed,
    )


def _noted(classifier: Classifier) -> Classifier:
    for note in classifier.notes if launched().is_first else ():
        print(f"{classifier.role:<14}{note}")
    return classifier


def _with_test_set(job: Job, folder: Path | None) -> Job:
    return job if folder is None else replace(job, test=load_test_set(folder, job.input_spec))


def _adapted(recipe: _Recipe, spec: InputSpec, *, shown: bool = True) -> _Recipe:
    """Return the recipe that fits the input, and print what was changed."""
    adapted, notes = adapt(recipe, spec)
    if notes and shown:
        print(f"recipe        inputs of shape {list(spec.shape)} are no images: {', '.join(notes)}")
    return adapted


def _print_trace(path: Path, steps: int) -> None:
    print(f"profile       {path}, {steps} steps of one batch")


def _conclude(run: RunFolder, teacher: Teacher) -> None:
    print_run(run, teacher_note=_teacher_source(teacher).note)
    absent = missing_extras()
    if absent:
        print(f"report        not written, it needs {' and '.join(absent)}: pip install 'zskd_fast[report]'")
    else:
        print(f"report        {write_report(run)}")


def _training_facts(command: TrainTeacher, test_accuracy: float) -> dict[str, Any]:
    seed, threads = command.machine.seed, torch.get_num_threads()
    return {
        "command": f"zskd-fast train-teacher --data FOLDER --out FILE --seed {seed} --threads {threads}",
        "model": command.model,
        "training": asdict(command.training),
        "seed": seed,
        "threads": threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "test_accuracy": test_accuracy,
    }
