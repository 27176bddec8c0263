"""Recipes: named, complete sets of the numbers of a run, read from TOML files.

No field has a default: a recipe names every number, so that a file says all there is to say about a run.
"""

import dataclasses
import json
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import dacite

from zskd_fast.config.checks import Check, all_above_zero, is_size_range
from zskd_fast.config.identity import as_json
from zskd_fast.config.input_spec import InputSpec
from zskd_fast.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_TARGETS = ("dirichlet", "one_hot")
_STORE_DTYPES = ("float32", "float16", "bfloat16")
_NOISES = ("uniform", "normal", "dead_leaves")


@dataclass(frozen=True)
class StartRecipe:
    """Where an impression starts: shift + scale * noise, in units of the raw input."""

    noise: Literal["uniform", "normal", "dead_leaves"]
    """Uniform on (0, 1), standard normal, or flat shapes in (0, 1) that cover one another; the last for images only."""
    scale: float
    """Factor of the noise."""
    shift: float
    """Added to the scaled noise."""
    leaves: int
    """Shapes of a dead-leaves image, ellipses and boxes; 0 for the other noises."""
    leaf_size: tuple[float, float]
    """Least and largest half-axis of a shape, as fractions of half the width and height; 0, 0 for the other noises."""

    def __post_init__(self):
        check = Check(self, "start")
        check.that("noise", f"one of {', '.join(_NOISES)}", self.noise in _NOISES)
        check.above_zero("scale")
        check.finite("shift")
        if self.noise == "dead_leaves":
            check.at_least(1, "leaves")
            check.that(
                "leaf_size", "two numbers above 0, the smaller one first", is_size_range(self.leaf_size)
            )
        else:
            check.that("leaves", f"0 where the noise is {self.noise}", self.leaves == 0)
            check.that("leaf_size", f"0, 0 where the noise is {self.noise}", self.leaf_size == (0, 0))


@dataclass(frozen=True)
class SynthesisRecipe:
    """How impressions are made from the teacher (sections 3.1 to 3.3 of the paper).

    Raises InputError that names the field if a value is out of its range.
    """

    impressions: int
    """How many impressions to make."""
    betas: tuple[float, ...]
    """Concentration scales that take turns; the paper gives half of the impressions 1.0 and half 0.1."""
    targets: Literal["dirichlet", "one_hot"]
    """Targets from the Dirichlet distribution or, for comparison, the class alone (the paper's class impressions)."""
    concentration_floor: float
    """Added to each class similarity before the scaling by beta, so that every concentration is positive."""
    temperature: float
    """Temperature of the teacher's softmax in the loss of an impression."""
    steps: int
    """Adam steps per impression; 0 leaves it the start noise that it was."""
    learning_rate: float
    """Adam's learning rate at the first step, in units of the raw input."""
    final_learning_rate_fraction: float
    """The learning rate falls linearly to this fraction at the last step; 1 keeps it constant."""
    adam_betas: tuple[float, float]
    """Adam's decay of the mean and of the squared gradient."""
    adam_eps: float
    """Adam's epsilon."""
    start: StartRecipe
    """What an impression is before its first step."""
    clamp: bool
    """Keep every impression inside the valid range of the input, at the start and after each step."""
    l1: float
    """Weight of the sum of absolute values of an impression, added to its loss."""
    l2: float
    """Weight of the sum of squares of an impression, added to its loss."""
    total_variation: float
    """Weight of the sum of squared differences of neighbouring pixels, added to the loss; images only."""
    batch_size: int
    """Impressions optimised together; it changes the speed, not the impressions."""
    shard_size: int
    """Impressions per file of the store."""
    store_dtype: Literal["float32", "float16", "bfloat16"]
    """How x is kept in the store. In 16 bits it takes half the space and is rounded before the teacher labels it."""
    parallel_batches: bool
    """On a CPU, as many batches at once as there are threads; for small teachers whose forward pass leaves nothing in
    the module. It changes the speed only."""
    fold_batch_norm: bool
    """Fold each batch normalisation into the convolution or linear layer before it; it changes the speed only."""
    channels_last: bool
    """Lay images out with the channels last inside the teacher; it changes the speed only."""
    compile_teacher: bool
    """Run the teacher through torch.compile (needs a C++ compiler); it changes the speed only."""

    def __post_init__(self):
        check = Check(self, "synthesis")
        check.at_least(1, "impressions", "batch_size", "shard_size")
        check.at_least(0, "steps")
        check.above_zero("concentration_floor", "temperature", "learning_rate", "adam_eps")
        check.at_least(0, "l1", "l2", "total_variation", "final_learning_rate_fraction")
        check.decays("adam_betas")
        check.that("targets", f"one of {', '.join(_TARGETS)}", self.targets in _TARGETS)
        check.that("betas", "one or more finite numbers above 0", all_above_zero(self.betas))
        check.that("store_dtype", f"one of {', '.join(_STORE_DTYPES)}", self.store_dtype in _STORE_DTYPES)


@dataclass(frozen=True)
class AugmentationRecipe:
    """How a batch of impressions is varied before it is labelled; each impression draws its own numbers."""

    rotation_sigma: float
    """Standard deviation of the rotation angle, in radians; images only."""
    scale_sigma: float
    """Standard deviation of the logarithm of the zoom; images only."""
    shift_sigma: float
    """Standard deviation of the shift along each axis, as a fraction of half the width; images only."""
    flip_probability: float
    """Probability of a left-right flip; images only."""
    mix_probability: float
    """Probability that an impression a is mixed with another, b: w*a + (1-w)*b with w uniform on (0, 1)."""
    noise_max: float
    """Noise is Gaussian with a deviation uniform on (0, noise_max), as a fraction of the valid range."""
    clamp: bool
    """Clamp the result to the valid range of the input."""

    def __post_init__(self):
        check = Check(self, "distillation.augmentation")
        check.at_least(0, "rotation_sigma", "scale_sigma", "shift_sigma", "noise_max")
        check.fraction("flip_probability", "mix_probability")

    @property
    def is_geometric(self) -> bool:
        """Whether the augmentation moves pixels, which only an image [C, H, W] can bear."""
        return any((self.rotation_sigma, self.scale_sigma, self.shift_sigma, self.flip_probability))


@dataclass(frozen=True)
class FreshRecipe:
    """Start noise among the impressions of a batch, labelled by the teacher like them; each is used once only."""

    fraction: float
    """Share of every batch that is fresh noise; 0 for none."""
    start: StartRecipe
    """What the noise is."""

    def __post_init__(self):
        Check(self, "distillation.fresh").fraction("fraction")

    def count(self, batch_size: int) -> int:
        """How many of a batch are fresh noise."""
        return round(self.fraction * batch_size)


@dataclass(frozen=True)
class AdversaryRecipe:
    """How a batch is moved to where the student departs from the teacher, before the teacher labels it."""

    steps: int
    """Steps up the distillation loss; 0 leaves the batch alone."""
    step_size: float
    """Length of a step: root mean square over the values of an input, as a fraction of the valid range."""
    wait_fraction: float
    """Share of the student's steps before the first batch is moved: an untrained student errs everywhere."""

    def __post_init__(self):
        check = Check(self, "distillation.adversary")
        check.at_least(0, "steps", "step_size")
        check.fraction("wait_fraction")
        if self.steps:
            check.above_zero("step_size")


@dataclass(frozen=True)
class RecyclingRecipe:
    """How units of the student that a ReLU has silenced are woken."""

    every: int
    """Steps from one look for silent units to the next; 0 never looks."""
    until_fraction: float
    """Share of the student's steps after which none is woken: it would have no time left to learn."""
    until_step: int
    """Step after which none is woken, however long the run: thousands of steps later the same units fall silent again
    and again, and waking them throws the student off."""
    least_active: float
    """A unit is silent if its ReLU lets less than this share of its values through."""
    woken_active: float
    """Share of its values that pass once it is woken."""
    woken_scale: float
    """Its standard deviation once it is woken, at most, in units of that of the layer's median unit which fires."""

    def __post_init__(self):
        check = Check(self, "distillation.recycling")
        check.at_least(0, "every", "until_step")
        check.fraction("until_fraction", "least_active", "woken_active")
        check.at_least(0, "woken_scale")
        if self.every:
            fires_then = self.woken_active > self.least_active
            check.that("woken_active", f"above least_active, {self.least_active}", fires_then)
            check.above_zero("woken_scale")


@dataclass(frozen=True)
class DistillationRecipe:
    """How the student learns from the impressions (section 3.4 of the paper).

    Raises InputError that names the field if a value is out of its range.
    """

    steps: int
    """Training steps of the student."""
    batch_size: int
    """Impressions per step."""
    temperature: float
    """Temperature of both softmaxes in the distillation loss."""
    relabel: bool
    """The teacher labels each augmented batch; if false, its stored logits for the plain impressions do."""
    max_learning_rate: float
    """Peak learning rate of the one-cycle schedule (Adam)."""
    warmup_fraction: float
    """Share of the steps in which the learning rate rises."""
    start_divisor: float
    """The learning rate starts at max_learning_rate / start_divisor."""
    final_divisor: float
    """The learning rate ends at its start value / final_divisor."""
    beta1_range: tuple[float, float]
    """Adam's first decay moves from the second value to the first and back, against the learning rate."""
    beta2: float
    """Adam's second decay."""
    adam_eps: float
    """Adam's epsilon."""
    fresh: FreshRecipe
    """What each batch has besides impressions."""
    augmentation: AugmentationRecipe
    """Variation of each batch."""
    adversary: AdversaryRecipe
    """What makes the varied batch harder for the student."""
    recycling: RecyclingRecipe
    """What wakes units of the student that have fallen silent."""

    def __post_init__(self):
        check = Check(self, "distillation")
        check.at_least(1, "steps", "batch_size")
        check.above_zero("temperature", "max_learning_rate", "start_divisor", "final_divisor", "adam_eps")
        check.fraction("warmup_fraction", "beta2")
        check.decays("beta1_range")
        one_step = self.steps * self.warmup_fraction == 1
        check.that("warmup_fraction", "more or less than one step: torch divides by 0 there", not one_step)
        moves = self.augmentation.is_geometric or self.augmentation.mix_probability
        moves = moves or self.adversary.steps or self.fresh.fraction
        if moves and not self.relabel:
            raise InputError(
                "recipe: with relabel = false the stored teacher logits belong to the plain impressions, so "
                "rotation, scale, shift, flip, mixing, the adversary's steps and the fresh fraction must be 0"
            )


@dataclass(frozen=True)
class Recipe:
    """Every number of a run, from the teacher's input to the last step of the student."""

    name: str
    """Short name, also that of the file."""
    description: str
    """One sentence on what the recipe is for."""
    input: InputSpec
    """The teacher's input."""
    synthesis: SynthesisRecipe
    """How the impressions are made."""
    distillation: DistillationRecipe
    """How the student learns from them."""


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package, sorted."""
    folder = resources.files("zskd_fast") / "recipes"
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Reads a recipe: one that comes with the package, by name, or a TOML file, by path (``*.toml``).

    Raises InputError that names the file, and the key where one is to blame, if the file is missing or is not
    TOML, or if a key is unknown, missing, of the wrong type or out of its range.
    """
    text = _read_text(str(name_or_path))
    try:
        return recipe_from_dict(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"recipe {name_or_path} is not valid TOML: {error}") from error
    except InputError as error:
        raise InputError(f"recipe {name_or_path}: {str(error).removeprefix('recipe: ')}") from error


def _read_text(name_or_path: str) -> str:
    if not name_or_path.endswith(".toml"):
        if name_or_path not in recipe_names():
            known = ", ".join(recipe_names())
            raise InputError(f"no recipe is named {name_or_path!r}; give a file *.toml or one of: {known}")
        return (resources.files("zskd_fast") / "recipes" / f"{name_or_path}.toml").read_text("utf-8")
    try:
        return Path(name_or_path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the recipe {name_or_path}: {error}") from error


def recipe_from_dict(values: dict[str, Any]) -> Recipe:
    """The recipe that ``recipe_to_dict`` described; unknown, missing or mistyped keys raise InputError."""
    _refuse_unknown_keys(Recipe, values, "")
    config = dacite.Config(strict=True, cast=[tuple], type_hooks={float: _whole_number_as_float})
    try:
        return dacite.from_dict(Recipe, values, config)
    except dacite.MissingValueError as error:
        raise InputError(f"recipe: the key {error.field_path} is missing") from error
    except dacite.WrongTypeError as error:
        wanted = getattr(error.field_type, "__name__", str(error.field_type))
        wanted = str(error.field_type) if "[" in str(error.field_type) else wanted
        raise InputError(f"recipe: {error.field_path} must be {wanted}, got {error.value!r}") from error


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as nested dicts of numbers, strings and lists, fit for JSON and TOML."""
    return as_json(recipe)


def recipe_to_toml(recipe: Recipe) -> str:
    """The recipe as a TOML file that ``load_recipe`` reads back to an equal recipe."""
    return "\n".join(_toml_lines(recipe_to_dict(recipe), ())) + "\n"


def _refuse_unknown_keys(kind, values, prefix):
    fields = {field.name: field.type for field in dataclasses.fields(kind)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        where = f"in [{prefix.removesuffix('.')}]" if prefix else "at the top level"
        known = ", ".join(fields)
        raise InputError(f"recipe: unknown key {prefix}{unknown[0]}; the keys {where} are: {known}")
    for name, value in values.items():
        if dataclasses.is_dataclass(fields[name]) and isinstance(value, dict):
            _refuse_unknown_keys(fields[name], value, f"{prefix}{name}.")


def _whole_number_as_float(value):
    return float(value) if type(value) is int else value


def _toml_lines(values, path):
    tables = {key: value for key, value in values.items() if isinstance(value, dict)}
    if path:
        yield f"\n[{'.'.join(path)}]"
    for key, value in values.items():
        if key not in tables:
            # A number, a boolean, a string or a list is spelled alike in JSON and in TOML.
            yield f"{key} = {json.dumps(value, ensure_ascii=False)}"
    for key, value in tables.items():
        yield from _toml_lines(value, (*path, key))
