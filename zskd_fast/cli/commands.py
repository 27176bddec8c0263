"""What each command does, once its options are understood."""

from __future__ import annotations

import json
import platform
import sys
from dataclasses import asdict
from functools import singledispatch
from pathlib import Path

import torch

from zskd_fast.cli.options import (
    Command,
    Demo,
    Distill,
    Export,
    Machine,
    Report,
    Repro,
    Run,
    Student,
    Synthesize,
    Teacher,
    TrainTeacher,
    Verify,
)
from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.recipe import load_recipe
from zskd_fast.errors import InputError
from zskd_fast.models.classifier import Classifier
from zskd_fast.models.loading import ASSETS, build_model, save_weights
from zskd_fast.real_data.evaluation import TestSet, accuracy, load_test_set
from zskd_fast.real_data.images import load_folder, to_input
from zskd_fast.real_data.train_teacher import train_teacher
from zskd_fast.report import missing_extras, write_report
from zskd_fast.repro.repeat import Order, repeat
from zskd_fast.repro.setups import SETUPS
from zskd_fast.repro.table import accuracy_table
from zskd_fast.run.pipeline import (
    Job,
    distill_store,
    load_student,
    load_teacher,
    make_synthesizer,
    profile_job,
    profile_synthesis,
    run_job,
)
from zskd_fast.run.profiling import STEPS, require_writable_trace
from zskd_fast.run.run_folder import RunFolder, require_writable
from zskd_fast.run.summary import print_run
from zskd_fast.runtime.processes import World, launched, process_group, require_alone
from zskd_fast.store.export import export_png, export_webdataset
from zskd_fast.store.store import Store
from zskd_fast.store.verify import shard_faults, teacher_faults
from zskd_fast.synthesis.synthesizer import SynthesisSummary, synthesize

__all__ = ["execute"]

_DAMAGED = 1
_DEMO_TEACHER = Teacher("zskd_fast.models:LeNet5", ASSETS / "lenet5-mnist.safetensors")
_DEMO_STUDENT = Student("zskd_fast.models:LeNet5Half")
_DEMO_TEST_DATA = ASSETS / "mnist-t10k"


@singledispatch
def execute(command: Command) -> int:
    """Carry out a parsed command; returns the exit code."""
    raise TypeError(f"no such command: {type(command).__name__}")


@execute.register
def _(command: Demo) -> int:
    test = load_test_set(_DEMO_TEST_DATA, command.input, "the MNIST test split that comes with zskd_fast")
    return _run(command, _DEMO_TEACHER, _DEMO_STUDENT, test)


@execute.register
def _(command: Run) -> int:
    test = _test_set(command.test_data, command.input)
    return _run(command, command.teacher, command.student, test)


def _run(command: Demo | Run, teacher: Teacher, student: Student, test: TestSet | None) -> int:
    require_alone(type(command).__name__.lower())
    require_writable(command.out)
    _require_writable_trace(command.profile)
    job = _job(command, teacher, student, command.input, test)
    if command.profile:
        profile_job(job, command.synthesis, command.profile)
        _print_trace(command.profile)
    _conclude(run_job(job, command.synthesis))
    return 0


@execute.register
def _(command: Distill) -> int:
    require_writable(command.out)
    store = Store.open(command.impressions)
    spec = InputSpec(**store.manifest["fingerprint"]["input"])
    test = _test_set(command.test_data, spec)
    job = _job(command, command.teacher, command.student, spec, test)
    with process_group(job.device):
        run = distill_store(job, store)
    if run:
        _conclude(run)
    return 0


@execute.register
def _(command: Synthesize) -> int:
    world = launched()
    if world.size > 1 and command.resume == "never":
        raise InputError('resume "never" is for one process: of several, one may come late or be restarted')
    require_writable(command.out)
    _require_writable_trace(command.profile)
    teacher = load_teacher(command.teacher, set_up(command.machine))
    synthesizer = make_synthesizer(teacher, command.input, command.synthesis, command.machine.seed)
    store = Store.open_or_create(command.out, synthesizer.fingerprint(), resume=command.resume)
    if command.profile and world.is_first:
        profile_synthesis(synthesizer, command.profile)
        _print_trace(command.profile)
    summary = synthesize(synthesizer, store, rank=world.rank, world_size=world.size, progress=world.is_first)
    _print_synthesis(summary, command.out, world)
    return 0


def _print_synthesis(summary: SynthesisSummary, store: Path, world: World) -> None:
    who = f"rank {world.rank}: " if world.size > 1 else ""
    rate = summary.made / summary.seconds
    print(f"{who}impressions   {summary.made:,} made in {summary.seconds:.1f} s, {rate:.1f} per second")
    print(f"{who}              {summary.reused:,} were there already")
    if summary.elsewhere:
        print(f"{who}              {summary.elsewhere:,} are being made by another process")
    print(f"{who}store         {store}")


@execute.register
def _(command: Verify) -> int:
    store = Store.open(command.store)
    faults = list(shard_faults(store))
    asked = command.teacher != Teacher()
    if asked:
        model = load_teacher(command.teacher, set_up(command.machine))
        spec = InputSpec(**store.manifest["fingerprint"]["input"])
        faults += teacher_faults(store, Classifier(model.module, spec, logits_fn=model.logits_fn))
    for fault in faults:
        print(f"zskd-fast: {store.folder}: {fault}", file=sys.stderr)
    print(f"store         {store.folder}, {store.num_impressions:,} impressions, {store.num_shards:,} shards")
    print(
        f"faults        {len(faults)}; " + ("asked the teacher too" if asked else "no teacher given to ask")
    )
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
    if command.seeds < 1 or not command.ways:
        raise InputError(
            f"nothing to do: got {command.seeds} seeds and {len(command.ways)} ways, wanted 1 or more"
        )
    results = command.results or command.out / "outcomes.csv"
    require_writable(results.parent)
    recipe = load_recipe(SETUPS[command.name].recipe_name(command.size))
    first = command.machine.seed
    seeds = range(first, first + command.seeds)
    out = command.out / recipe.name / command.name
    order = Order(command.name, recipe, command.ways, seeds, command.data, out, results)
    print(accuracy_table(repeat(order, set_up(command.machine))))
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
    device, seed = set_up(command.machine), command.machine.seed
    images, test = load_folder(command.data, "train"), load_folder(command.data, "test")
    build_model(command.model)  # a bad name is refused before the long work
    trained = train_teacher(
        lambda: build_model(command.model), images, command.training, seed=seed, device=device
    )
    measured = accuracy(trained.model, to_input(test.images), test.labels)
    command.out.parent.mkdir(parents=True, exist_ok=True)
    save_weights(trained.model, command.out, {"teacher": json.dumps(_training_facts(command, measured))})
    print(
        f"teacher       {measured:.2%} on {len(test):,} real test images, trained in {trained.seconds:.0f} s"
    )
    print(f"weights       {command.out}")
    return 0


def set_up(machine: Machine) -> torch.device:
    """Apply the thread count and check the device; only the command line touches torch's global state."""
    if machine.threads < 0:
        raise InputError(f"threads must not be negative, got {machine.threads}")
    if machine.threads:
        torch.set_num_threads(machine.threads)
    try:
        device = _own_device(machine.device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"the device {machine.device!r} cannot be used here: {reason}") from error
    return device


def _own_device(name: str) -> torch.device:
    """Of several processes on a machine, each that is told "cuda" takes a GPU of its own."""
    world = launched()
    if name == "cuda" and world.size > 1:
        torch.cuda.set_device(world.local_rank)
        return torch.device("cuda", world.local_rank)
    return torch.device(name)


def _job(
    command: Demo | Run | Distill, teacher: Teacher, student: Student, spec: InputSpec, test: TestSet | None
) -> Job:
    device, seed = set_up(command.machine), command.machine.seed
    return Job(
        load_teacher(teacher, device),
        load_student(student, seed, device),
        spec,
        command.distillation,
        test,
        command.out,
        seed,
        device,
    )


def _test_set(folder: Path | None, spec: InputSpec) -> TestSet | None:
    return None if folder is None else load_test_set(folder, spec)


def _require_writable_trace(path: Path | None) -> None:
    if path is not None:
        require_writable_trace(path)


def _print_trace(path: Path) -> None:
    print(f"profile       {path}, {STEPS} steps of one batch")


def _conclude(run: RunFolder) -> None:
    print_run(run)
    absent = missing_extras()
    if absent:
        print(f"report        left out, it needs {' and '.join(absent)}: pip install 'zskd_fast[report]'")
    else:
        print(f"report        {write_report(run)}")


def _training_facts(command: TrainTeacher, test_accuracy: float) -> dict[str, object]:
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
