"""The commands of `zskd-fast` and their options, one dataclass each; free of torch, so that --help is quick."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.presets import INPUT_PRESETS
from zskd_fast.config.recipe import DistillationRecipe, SynthesisRecipe
from zskd_fast.config.recipe_files import load_recipe, recipe_names
from zskd_fast.config.teacher_recipe import TeacherRecipe
from zskd_fast.errors import InputError


@dataclass(frozen=True)
class Input:
    """The input of the teacher and of the student."""

    shape: tuple[int, ...] = ()
    """Shape of one input without the batch axis, such as 3 32 32; empty: as the teacher's own files say."""
    valid_range: tuple[float, float] = (0.0, 1.0)
    """Lowest and highest raw value of an input, before normalization."""
    mean: tuple[float, ...] = ()
    """Mean that the normalization subtracts: one value, or one per channel; empty for none."""
    std: tuple[float, ...] = ()
    """Standard deviation that the normalization divides by: as many values as the mean."""

    def spec(self) -> InputSpec | None:
        """Return the input; None if nothing is given. Raises InputError if the fields cannot describe an input."""
        if self == Input():
            return None
        if not self.shape:
            raise InputError("--input.valid-range, --input.mean and --input.std need --input.shape beside them")
        return InputSpec(self.shape, self.valid_range, self.mean, self.std)


@dataclass(frozen=True)
class Processor:
    """Where the work is done."""

    threads: int = 0
    """Number of CPU threads; 0 for torch's default."""
    device: str = "cpu"
    """Torch device, such as cpu, cuda or cuda:1."""


@dataclass(frozen=True)
class Machine(Processor):
    """Where the work is done, and the seed of its random numbers."""

    seed: int = 0
    """Seed of every random number; the same seed gives the same bits on the same machine."""


@dataclass(frozen=True)
class Teacher:
    """The trained classifier."""

    teacher: str | None = None
    """The teacher: package.module:callable, called without arguments; not needed for a whole model as weights."""
    weights: Path | None = None
    """The teacher's weights in a file of torch.save or safetensors, or a TorchScript or torch.export program."""
    weights_key: str | None = None
    """Place of the weights in the file, such as state_dict_ema or ema.module, if several fit the teacher."""
    logits_fn: str | None = None
    """package.module:callable that picks the logits out of the teacher's output, if that is not one tensor."""
    forward_fn: str | None = None
    """package.module:callable of the model and x that calls the teacher, if it takes something else than one tensor."""


@dataclass(frozen=True)
class TeacherWithLayer(Teacher):
    """The trained classifier and its last layer, whose weights tell which classes are similar."""

    layer: str | None = None
    """Name of the teacher's classifier layer or a parameter [K, D], if it cannot be found automatically."""
    layer_weights: Path | None = None
    """File with one matrix [classes, features] in place of the layer's weights: .npy, .pt or .safetensors."""


@dataclass(frozen=True)
class Student:
    """The model that learns."""

    student: str | None = None
    """The student: package.module:callable, called without arguments; not needed for a whole model as weights."""
    student_weights: Path | None = None
    """Initial weights of the student, in a file like the teacher's; without it the recipe and the seed decide them."""
    student_weights_key: str | None = None
    """Place of the student's weights in their file, if several fit."""
    student_logits_fn: str | None = None
    """package.module:callable that picks the logits out of the student's output, if that is not one tensor."""
    student_forward_fn: str | None = None
    """package.module:callable of the model and x that calls the student, if it takes something else than one tensor."""


_Flat = tyro.conf.arg(name="")
# Options that several commands share; the help of each command shows them alike.
_Machine = Annotated[Machine, _Flat]
_Teacher = Annotated[Teacher, _Flat]
_TeacherWithLayer = Annotated[TeacherWithLayer, _Flat]
_Student = Annotated[Student, _Flat]
_RecipeName = Annotated[
    str,
    tyro.conf.arg(
        help=f"Name of a recipe ({', '.join(recipe_names())}) or a TOML file; the options below change its numbers."
    ),
]
_Input = Annotated[
    Input,
    tyro.conf.arg(
        help=f"The input of the teacher and of the student. --input NAME takes a preset: {', '.join(INPUT_PRESETS)}."
    ),
]
_Synthesis = Annotated[SynthesisRecipe, tyro.conf.arg(help="How the impressions are made.")]
_Distillation = Annotated[DistillationRecipe, tyro.conf.arg(help="How the student learns from the impressions.")]
_RunFolder = Annotated[
    Path,
    tyro.conf.arg(help="Folder of the results; an interrupted run in it is continued, a smaller one is extended."),
]
_Trace = Annotated[
    Path | None,
    tyro.conf.arg(help="File for a trace of a few steps, written before the job (JSON, for ui.perfetto.dev)."),
]
_TestData = Annotated[
    Path | None,
    tyro.conf.arg(help="Folder of real images (IDX or CIFAR-10); the test split only serves to print accuracies."),
]


@dataclass(frozen=True)
class Demo:
    """Distill the shipped LeNet-5 for MNIST into a LeNet-5-Half, without any real image."""

    synthesis: _Synthesis
    distillation: _Distillation
    recipe: _RecipeName = "demo"
    out: _RunFolder = Path("zskd-demo")
    profile: _Trace = None
    machine: _Machine = field(default_factory=Machine)


@dataclass(frozen=True)
class Synthesize:
    """Make impressions (synthetic inputs) from a teacher and store them."""

    synthesis: _Synthesis
    input: _Input = field(default_factory=Input)
    teacher: _TeacherWithLayer = field(default_factory=TeacherWithLayer)
    recipe: _RecipeName = "fast"
    out: Path = Path("impressions")
    """Folder of the store; impressions that it holds already are not made again."""
    resume: Literal["auto", "never", "must"] = "auto"
    """auto: continue the store in the folder, or start one; never: only start one; must: only continue one."""
    profile: _Trace = None
    machine: _Machine = field(default_factory=Machine)


@dataclass(frozen=True)
class Distill:
    """Train a student on stored impressions."""

    distillation: _Distillation
    impressions: Path
    """Folder of the store that `synthesize` wrote."""
    teacher: _Teacher = field(default_factory=Teacher)
    student: _Student = field(default_factory=Student)
    recipe: _RecipeName = "fast"
    out: _RunFolder = Path("zskd-run")
    test_data: _TestData = None
    machine: _Machine = field(default_factory=Machine)


@dataclass(frozen=True)
class Run:
    """Make impressions (synthetic inputs) from a teacher, then train a student on them."""

    synthesis: _Synthesis
    distillation: _Distillation
    input: _Input = field(default_factory=Input)
    teacher: _TeacherWithLayer = field(default_factory=TeacherWithLayer)
    student: _Student = field(default_factory=Student)
    recipe: _RecipeName = "fast"
    out: _RunFolder = Path("zskd-run")
    test_data: _TestData = None
    profile: _Trace = None
    machine: _Machine = field(default_factory=Machine)


@dataclass(frozen=True)
class TrainTeacher:
    """Train a teacher on real images."""

    data: Path
    """Folder of the images, with training and test split: IDX files in MNIST's format, or CIFAR-10."""
    out: Path
    """File of weights to write, ending in .safetensors."""
    model: str = "zskd_fast.models:LeNet5"
    """The teacher: package.module:callable, called without arguments."""
    training: Annotated[TeacherRecipe, _Flat] = field(default_factory=TeacherRecipe)
    machine: _Machine = field(default_factory=Machine)


@dataclass(frozen=True)
class Repro:
    """Measure the claimed accuracies again, over several seeds and beside other methods."""

    name: tyro.conf.Positional[
        Literal[
            "fast-mnist",
            "fast-fashion",
            "fast-cifar10",
            "fast-cifar10-resnet8",
            "fast-cifar10-alexnet",
            "paper-mnist",
            "paper-fashion",
        ]
    ]
    """Recipe (fast: the recommended one; paper: the paper's) and data set. On CIFAR-10 the teacher is a ResNet-20 and
    its student has half the channels or, as a ResNet-8, fewer layers; or it is the paper's AlexNet, whose weights are
    not shipped."""
    methods: tuple[Literal["zskd", "class-impressions", "start-noise", "real-kd", "real-ce"], ...] = (
        "zskd",
        "class-impressions",
        "start-noise",
    )
    """What the students learn from; real-kd and real-ce need --data with a training split."""
    seeds: int = 3
    """Number of students per method; their seeds count up from --seed."""
    data: Path | None = None
    """Folder of the real images; by default the shipped test split of MNIST or Debian's dataset-fashion-mnist."""
    weights: Path | None = None
    """File of the teacher's weights; by default the shipped ones."""
    out: Path = Path("zskd-repro")
    """Folder of the runs; a finished run in it is not repeated."""
    results: Path | None = None
    """CSV file to which a row per student is added; by default outcomes.csv in the folder of the runs."""
    machine: _Machine = field(default_factory=Machine)


@dataclass(frozen=True)
class Report:
    """Write the report of a finished run, one HTML file with impressions, curves and times."""

    run: tyro.conf.Positional[Path]
    """Folder that `demo`, `run` or `distill` wrote."""
    out: Path | None = None
    """File to write; by default report.html in the folder of the run."""


@dataclass(frozen=True)
class Verify:
    """Check the hash of every file of a store and, if a teacher is given, the stored logits of a sample."""

    store: tyro.conf.Positional[Path]
    """Folder of the store."""
    teacher: _Teacher = field(default_factory=Teacher)
    processor: Annotated[Processor, _Flat] = field(default_factory=Processor)


@dataclass(frozen=True)
class Export:
    """Write a store as tar files for WebDataset, or as PNG files to look at."""

    store: tyro.conf.Positional[Path]
    """Folder of the store."""
    out: Path
    """Folder of the files to write; new or empty."""
    format: Literal["webdataset", "png"] = "webdataset"
    """webdataset: all tensors, x in float32, one tar file per shard; png: the images only, in 8 bits."""


@dataclass(frozen=True)
class PrintRecipe:
    """Print a recipe as a TOML file, complete, to read or to change."""

    recipe: tyro.conf.Positional[str] = "fast"
    """Name of a recipe, or a TOML file."""


@dataclass(frozen=True)
class Doctor:
    """Show versions and build, and compare every compiled op with its reference in plain torch."""


Command = Demo | Synthesize | Distill | Run | TrainTeacher | Repro | Report | Verify | Export | PrintRecipe | Doctor


def commands(recipe: str | None = None, input_preset: str | None = None) -> dict[str, Command]:
    """Return each command's name and defaults; what the user must give is `tyro.MISSING_NONPROP`.

    The numbers are those of the recipe (a name or a file); by default "demo" for the demo and "fast" for the others.
    Raises InputError if the recipe cannot be read or no preset of the input has that name.
    """
    if input_preset is not None and input_preset not in INPUT_PRESETS:
        known = ", ".join(INPUT_PRESETS)
        raise InputError(f"no input is named {input_preset!r}; the names are {known}, or give --input.shape")
    preset = Input() if input_preset is None else Input(**vars(INPUT_PRESETS[input_preset]))
    required: Any = tyro.MISSING_NONPROP
    demo, chosen = load_recipe(recipe or Demo.recipe), load_recipe(recipe or Run.recipe)
    name = str(recipe or Run.recipe)
    synthesis, distillation = chosen.synthesis, chosen.distillation
    return {
        "demo": Demo(synthesis=demo.synthesis, distillation=demo.distillation, recipe=recipe or Demo.recipe),
        "run": Run(input=preset, synthesis=synthesis, distillation=distillation, recipe=name),
        "synthesize": Synthesize(input=preset, synthesis=synthesis, recipe=name),
        "distill": Distill(distillation=distillation, impressions=required, recipe=name),
        "repro": Repro(name=required),
        "report": Report(run=required),
        "train-teacher": TrainTeacher(data=required, out=required),
        "verify": Verify(store=required),
        "export": Export(store=required, out=required),
        "recipe": PrintRecipe(),
        "doctor": Doctor(),
    }
