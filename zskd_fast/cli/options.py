"""The commands of `zskd-fast` and their options, one dataclass each; free of torch: --help is quick."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.recipe import DistillationRecipe, Recipe, SynthesisRecipe
from zskd_fast.config.teacher_recipe import TeacherRecipe

__all__ = [
    "Command",
    "Demo",
    "Distill",
    "Doctor",
    "Export",
    "Machine",
    "Report",
    "Repro",
    "Run",
    "Student",
    "Synthesize",
    "Teacher",
    "TrainTeacher",
    "Verify",
    "commands",
]


@dataclass(frozen=True)
class Machine:
    """What computes."""

    seed: int = 0
    """Source of every random number; the same seed gives the same bits on the same machine."""
    threads: int = 0
    """CPU threads; 0 lets torch choose."""
    device: str = "cpu"
    """Device of torch, such as cpu, cuda or cuda:1."""


@dataclass(frozen=True)
class Teacher:
    """The trained classifier."""

    teacher: str | None = None
    """The teacher, as package.module:callable without arguments; not needed for a .pt2 program."""
    weights: Path | None = None
    """Its weights: .safetensors, .pt or .pth with tensors only, or a torch.export program (.pt2)."""
    logits_fn: str | None = None
    """package.module:callable that picks the logits from the teacher's output, if that is no plain tensor."""
    layer: str | None = None
    """Name of the teacher's classifier layer, if it cannot be found without help."""


@dataclass(frozen=True)
class Student:
    """The model that learns."""

    student: str | None = None
    """The student, as package.module:callable without arguments; not needed for a .pt2 program."""
    student_weights: Path | None = None
    """Weights to start from, as for the teacher; without them the seed decides."""
    student_logits_fn: str | None = None
    """package.module:callable that picks the logits from the student's output."""


_Flat = tyro.conf.arg(name="")
_MachineOptions = Annotated[Machine, _Flat]
_TeacherOptions = Annotated[Teacher, _Flat]
_StudentOptions = Annotated[Student, _Flat]


@dataclass(frozen=True)
class Demo:
    """Distil the shipped LeNet-5 MNIST teacher into a LeNet-5-Half without one real image."""

    input: tyro.conf.Suppress[InputSpec]
    synthesis: SynthesisRecipe
    """How the impressions are made."""
    distillation: DistillationRecipe
    """How the student learns from them."""
    recipe: str = "demo-mnist"
    """Name of a recipe, or a file *.toml; each number below can be changed."""
    out: Path = Path("zskd-demo")
    """Folder of the results; an interrupted run in it goes on."""
    profile: Path | None = None
    """File for a trace of a few steps (Chrome's JSON, for ui.perfetto.dev), made before the job itself."""
    machine: _MachineOptions = field(default_factory=Machine)


@dataclass(frozen=True)
class Synthesize:
    """Make impressions from a teacher and store them."""

    input: InputSpec
    """The teacher's input: what anyone who deploys it knows."""
    synthesis: SynthesisRecipe
    """How the impressions are made."""
    teacher: _TeacherOptions
    recipe: str
    """Name of a recipe, or a file *.toml; each number below can be changed."""
    out: Path = Path("impressions")
    """Folder of the store; missing shards of the same run are added to it."""
    resume: Literal["auto", "never", "must"] = "auto"
    """Whether to go on with a store that is there: if it is, never (it must not be) or always (it must be)."""
    profile: Path | None = None
    """File for a trace of a few steps (Chrome's JSON, for ui.perfetto.dev), made before the job itself."""
    machine: _MachineOptions = field(default_factory=Machine)


@dataclass(frozen=True)
class Distill:
    """Train a student on stored impressions."""

    distillation: DistillationRecipe
    """How the student learns from them."""
    teacher: _TeacherOptions
    student: _StudentOptions
    impressions: Path
    """Folder of the store that `synthesize` wrote."""
    recipe: str
    """Name of a recipe, or a file *.toml; each number below can be changed."""
    out: Path = Path("zskd-run")
    """Folder of the results; an interrupted run in it goes on."""
    test_data: Path | None = None
    """Folder of real images (IDX or CIFAR-10) whose test split is only used to print an accuracy."""
    machine: _MachineOptions = field(default_factory=Machine)


@dataclass(frozen=True)
class Run:
    """Make impressions, then train a student on them."""

    input: InputSpec
    """The teacher's input: what anyone who deploys it knows."""
    synthesis: SynthesisRecipe
    """How the impressions are made."""
    distillation: DistillationRecipe
    """How the student learns from them."""
    teacher: _TeacherOptions
    student: _StudentOptions
    recipe: str
    """Name of a recipe, or a file *.toml; each number below can be changed."""
    out: Path = Path("zskd-run")
    """Folder of the results; an interrupted run in it goes on."""
    test_data: Path | None = None
    """Folder of real images (IDX or CIFAR-10) whose test split is only used to print an accuracy."""
    profile: Path | None = None
    """File for a trace of a few steps (Chrome's JSON, for ui.perfetto.dev), made before the job itself."""
    machine: _MachineOptions = field(default_factory=Machine)


@dataclass(frozen=True)
class TrainTeacher:
    """Train a teacher on the real images of a folder."""

    data: Path
    """Folder of an image set: MNIST-like IDX files or CIFAR-10."""
    out: Path
    """The file of weights to write, *.safetensors."""
    model: str = "zskd_fast.models:LeNet5"
    """The teacher, as package.module:callable without arguments."""
    training: Annotated[TeacherRecipe, _Flat] = field(default_factory=TeacherRecipe)
    machine: _MachineOptions = field(default_factory=Machine)


@dataclass(frozen=True)
class Repro:
    """Repeat what is claimed, and what it is compared with: accuracies over several seeds, in one table."""

    name: tyro.conf.Positional[Literal["fast-mnist", "fast-fashion", "paper-mnist", "paper-fashion"]]
    """The recommended recipe or the paper's choices, with the LeNet-5 teacher of a data set that comes along."""
    size: Literal["small", "medium", "large"] = "small"
    """Size of the recommended recipe; the paper's has one."""
    ways: tuple[Literal["zskd", "class-impressions", "start-noise", "real-kd", "real-ce"], ...] = (
        "zskd",
        "class-impressions",
        "start-noise",
    )
    """What the students learn from; those from real data need --data with a training split."""
    seeds: int = 3
    """How many seeds, from --seed on."""
    data: Path | None = None
    """Folder of the real data set; without it MNIST's own test split, or Debian's dataset-fashion-mnist."""
    out: Path = Path("zskd-repro")
    """Folder of the runs; what is in it already is not done again."""
    results: Path | None = None
    """CSV file that the outcomes are added to; by default outcomes.csv in the folder of the runs."""
    machine: _MachineOptions = field(default_factory=Machine)


@dataclass(frozen=True)
class Report:
    """Write the report of a finished run as one HTML file."""

    run: tyro.conf.Positional[Path]
    """Folder that `demo`, `run` or `distill` wrote."""
    out: Path | None = None
    """The file to write; by default report.html in the folder of the run."""


@dataclass(frozen=True)
class Verify:
    """Hash every shard of a store anew and, if the teacher is given, ask it again about a sample."""

    store: tyro.conf.Positional[Path]
    """Folder of the store."""
    teacher: _TeacherOptions = field(default_factory=Teacher)
    machine: _MachineOptions = field(default_factory=Machine)


@dataclass(frozen=True)
class Export:
    """Write a store as tar files for WebDataset, or as PNG files to look at."""

    store: tyro.conf.Positional[Path]
    """Folder of the store."""
    out: Path
    """Folder of the files to write; new or empty."""
    format: Literal["webdataset", "png"] = "webdataset"
    """WebDataset: all that is stored, in float32, a tar file per shard; PNG: images alone, in 8 bits."""


@dataclass(frozen=True)
class Doctor:
    """Show versions and build, and check each op against its reference."""


Command = Demo | Synthesize | Distill | Run | TrainTeacher | Repro | Report | Verify | Export | Doctor


def commands(recipe: Recipe, recipe_name: str | None) -> dict[str, object]:
    """Each command's name and default, taken from `recipe`; what a user has to give is `tyro.MISSING`."""
    named = tyro.MISSING if recipe_name is None else recipe_name
    synthesis = {"input": recipe.input, "synthesis": recipe.synthesis}
    distillation = {"distillation": recipe.distillation}
    users = {"teacher": Teacher(), "recipe": named}
    return {
        "demo": Demo(**synthesis, **distillation, recipe=recipe_name or Demo.recipe),
        "run": Run(**synthesis, **distillation, **users, student=Student()),
        "synthesize": Synthesize(**synthesis, **users),
        "distill": Distill(**distillation, **users, student=Student(), impressions=tyro.MISSING),
        "repro": Repro(name=tyro.MISSING),
        "report": Report(run=tyro.MISSING),
        "train-teacher": TrainTeacher(data=tyro.MISSING, out=tyro.MISSING),
        "verify": Verify(store=tyro.MISSING),
        "export": Export(store=tyro.MISSING, out=tyro.MISSING),
        "doctor": Doctor(),
    }
