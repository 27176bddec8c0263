"""Recipes: named, complete sets of the numbers of a run.

No field has a default: a recipe names every number. The teacher's input is not in a recipe, since it is the user's.
Each class raises InputError that names the field if a value is out of its range.
"""

from dataclasses import dataclass
from typing import Literal

from zskd_fast.config.checks import Check, all_above_zero, is_size_range
from zskd_fast.errors import InputError

_TARGETS = ("dirichlet", "one_hot")
_PRECISIONS = ("float32", "bfloat16")
_STORE_DTYPES = ("float32", "float16", "bfloat16")
_CHOICES = ("auto", "on", "off")
_NOISES = ("uniform", "normal", "dead_leaves")


@dataclass(frozen=True, kw_only=True)
class NoiseRecipe:
    """Noise in units of the valid range of the input: shift + scale * noise."""

    _where = "recipe: synthesis.start_noise."

    kind: Literal["uniform", "normal", "dead_leaves"]
    """Uniform on (0, 1), standard normal, or dead leaves: overlapping shapes with values in (0, 1); images only."""
    scale: float
    """Factor of the noise."""
    shift: float
    """Added to the scaled noise."""
    leaves: int
    """Number of shapes (ellipses and boxes) in a dead-leaves image; 0 for the other kinds."""
    leaf_size: tuple[float, float]
    """Smallest and largest half-axis of a shape, as fractions of half the width and height; 0, 0 for other kinds."""

    def __post_init__(self) -> None:
        check = Check(self, self._where)
        check.one_of("kind", _NOISES)
        check.above_zero("scale")
        check.finite("shift")
        if self.kind == "dead_leaves":
            check.at_least(1, "leaves")
            in_order = is_size_range(self.leaf_size)
            check.that("leaf_size", "two numbers above 0, the smaller one first", in_order)
        else:
            check.that("leaves", f"0 where the noise is {self.kind}", self.leaves == 0)
            check.that("leaf_size", f"0, 0 where the noise is {self.kind}", self.leaf_size == (0, 0))


@dataclass(frozen=True, kw_only=True)
class FreshNoiseRecipe(NoiseRecipe):
    """Noise among the impressions of a batch, labeled by the teacher like them; each input is used only once."""

    _where = "recipe: distillation.fresh_noise."

    fraction: float
    """Share of every batch that is fresh noise; 0 for none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        Check(self, self._where).fraction("fraction")

    def count(self, batch_size: int) -> int:
        """Return how many inputs of a batch are fresh noise."""
        return round(self.fraction * batch_size)


@dataclass(frozen=True, kw_only=True)
class ImpressionRecipe:
    """All numbers that an impression depends on (sections 3.1 to 3.3 of the paper)."""

    betas: tuple[float, ...]
    """Factors of the Dirichlet concentration that the impressions take in turn; the paper's are 1.0 and 0.1."""
    targets: Literal["dirichlet", "one_hot"]
    """Dirichlet, with K > 10 classes over a class and the 9 nearest, or one-hot (the paper's class impressions)."""
    concentration_floor: float
    """Added to each class similarity, so that no concentration is 0; with K > 10 classes, times 9 / (K - 1)."""
    temperature: float
    """Temperature of the teacher's softmax; with K > 10 classes, 1 + (temperature - 1) * ln 9 / ln(K - 1)."""
    steps: int
    """Adam steps per impression; with 0 an impression is its start noise."""
    learning_rate: float
    """Adam's learning rate at the first step, in units of the valid range."""
    final_learning_rate_fraction: float
    """The learning rate falls linearly to this fraction of its first value; 1 keeps it constant."""
    adam_betas: tuple[float, float]
    """Adam's decay rates of the first and second moment."""
    adam_eps: float
    """Adam's epsilon."""
    start_noise: NoiseRecipe
    """The noise that an impression starts from."""
    clamp: bool
    """Clamp every impression to the valid range of the input, at the start and after each step."""
    l1: float
    """Weight of the sum of absolute values of an impression, in units of the valid range, in its loss."""
    l2: float
    """Weight of the sum of squares of an impression, in units of the valid range, in its loss."""
    total_variation: float
    """Weight of the sum of squared differences between neighboring pixels in the loss; images only."""
    statistics_prior: float
    """Weight of the distance of a batch from the running statistics of the teacher's batch normalization, times the
    size of the batch; 0 for none, as for a teacher without it. An impression then depends on its batch."""
    store_dtype: Literal["float32", "float16", "bfloat16"]
    """Data type of stored impressions; 16 bits take half the space, and the teacher labels the rounded values."""
    batch_size: int
    """Impressions optimized together; another size changes their rounding only."""
    teacher_precision: Literal["float32", "bfloat16"]
    """Data type of the teacher's convolutions and matrix products while an impression is optimized (by torch.autocast).
    The teacher labels the finished impression in float32."""
    fold_batch_norm: bool
    """Fold each batch normalization into the convolution or linear layer before it; changes the rounding only."""
    channels_last: Literal["auto", "on", "off"]
    """Run the teacher with channels last in memory; auto does for color images on a CPU, if the teacher can be run so.
    Changes the rounding only."""
    compile_teacher: bool
    """Run the teacher through torch.compile (needs a C++ compiler); changes the rounding only."""

    def __post_init__(self) -> None:
        check = Check(self, "recipe: synthesis.")
        check.at_least(1, "batch_size")
        check.above_zero("concentration_floor", "temperature", "learning_rate", "adam_eps")
        check.at_least(0, "steps", "l1", "l2", "total_variation", "statistics_prior", "final_learning_rate_fraction")
        check.integer("batch_size", "steps")
        check.decays("adam_betas")
        check.one_of("targets", _TARGETS)
        check.one_of("store_dtype", _STORE_DTYPES)
        check.one_of("teacher_precision", _PRECISIONS)
        check.one_of("channels_last", _CHOICES)
        check.that("betas", "one or more finite numbers above 0", all_above_zero(self.betas))


@dataclass(frozen=True, kw_only=True)
class SynthesisRecipe(ImpressionRecipe):
    """All numbers of the synthesis; those added here change no impression."""

    impressions: int
    """Number of impressions."""
    shard_size: int
    """Impressions per file of the store."""
    parallel_batches: bool
    """On a CPU, optimize one batch per thread; for small teachers whose forward pass changes no state."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check = Check(self, "recipe: synthesis.")
        check.at_least(1, "impressions", "shard_size")
        check.integer("impressions", "shard_size")


@dataclass(frozen=True, kw_only=True)
class AugmentationRecipe:
    """Random variation of a batch before the teacher labels it; each input draws its own numbers."""

    rotation_sigma: float
    """Standard deviation of the rotation angle, in radians; images only."""
    scale_sigma: float
    """Standard deviation of the logarithm of the zoom; images only."""
    shift_sigma: float
    """Standard deviation of the shift along each axis, as a fraction of half the width; images only."""
    flip_probability: float
    """Probability of a left-right flip; images only."""
    mix_probability: float
    """Probability that an input a is mixed with another, b: w*a + (1-w)*b with w uniform on (0, 1)."""
    noise_max: float
    """Gaussian noise is added; its deviation is uniform on (0, noise_max), as a fraction of the valid range."""
    clamp: bool
    """Clamp the result to the valid range of the input."""

    def __post_init__(self) -> None:
        check = Check(self, "recipe: distillation.augmentation.")
        check.at_least(0, "rotation_sigma", "scale_sigma", "shift_sigma", "noise_max")
        check.fraction("flip_probability", "mix_probability")

    @property
    def is_geometric(self) -> bool:
        """Whether the augmentation moves pixels, which needs images [C, H, W]."""
        return any((self.rotation_sigma, self.scale_sigma, self.shift_sigma, self.flip_probability))


@dataclass(frozen=True, kw_only=True)
class DormantUnitsRecipe:
    """When and how a unit of the student whose ReLU is almost never active is reset (after ReDo, Sokar et al. 2023)."""

    every: int
    """Steps between two searches for dormant units; 0 never searches."""
    until_fraction: float
    """Share of the steps after which no unit is reset, as it would have no time left to learn."""
    until_step: int
    """Step after which no unit is reset, however long the run; later resets made students diverge."""
    least_active: float
    """A unit is dormant if less than this share of its values is positive before the ReLU."""
    reset_active: float
    """Share of a unit's values that is positive after the reset."""
    reset_scale: float
    """Largest standard deviation of a unit's values after the reset, relative to the layer's median active unit."""

    def __post_init__(self) -> None:
        check = Check(self, "recipe: distillation.dormant_units.")
        check.at_least(0, "every", "until_step", "reset_scale")
        check.fraction("until_fraction", "least_active", "reset_active")
        if self.every:
            is_active = self.reset_active > self.least_active
            check.that("reset_active", f"above least_active, {self.least_active}", is_active)
            check.above_zero("reset_scale")


@dataclass(frozen=True, kw_only=True)
class DistillationRecipe:
    """How the student learns from the impressions (section 3.4 of the paper)."""

    steps: int
    """Training steps of the student."""
    batch_size: int
    """Inputs per step."""
    temperature: float
    """Temperature of both softmaxes in the distillation loss."""
    relabel: bool
    """Whether the teacher labels each augmented batch; if not, its stored logits of the impressions are used."""
    max_learning_rate: float
    """Peak learning rate of the one-cycle schedule (Adam)."""
    warmup_fraction: float
    """Share of the steps in which the learning rate rises."""
    start_divisor: float
    """The learning rate starts at max_learning_rate / start_divisor."""
    final_divisor: float
    """The learning rate ends at its start value / final_divisor."""
    beta1_range: tuple[float, float]
    """Lowest and highest value of Adam's first decay rate; it falls while the learning rate rises, then returns."""
    beta2: float
    """Adam's second decay rate."""
    adam_eps: float
    """Adam's epsilon."""
    batch_statistics: bool
    """Let the teacher's batch normalization, if it has any, use the statistics of each batch while it labels it."""
    student_dropout: bool
    """Whether the student's dropout is active while it learns. It keeps a student from learning its data by heart, and
    inputs that never repeat cannot be."""
    calibrate_student: bool
    """Compute the running statistics of the student's batch normalization from impressions, if the teacher has any."""
    pruned_start: bool
    """Start from the teacher's weights, pruned to the student, if it is its teacher with fewer layers or channels; a
    student with trained weights of its own needs false."""
    shared_layers: bool
    """Take over the teacher's last layers, frozen, where they fit the student, and match the features before them."""
    feature_weight: float
    """With shared layers, weight of the squared distance of the features, relative to the teacher's mean square."""
    fresh_noise: FreshNoiseRecipe
    """Noise that takes the place of impressions in a part of each batch."""
    augmentation: AugmentationRecipe
    """Random variation of each batch."""
    dormant_units: DormantUnitsRecipe
    """Reset of dormant units: units of the student whose ReLU is almost never active."""

    def __post_init__(self) -> None:
        check = Check(self, "recipe: distillation.")
        check.at_least(1, "steps", "batch_size")
        check.integer("steps", "batch_size")
        check.above_zero("temperature", "max_learning_rate", "start_divisor", "final_divisor", "adam_eps")
        check.fraction("warmup_fraction", "beta2")
        check.decays("beta1_range")
        check.at_least(0, "feature_weight")
        one_step = self.steps * self.warmup_fraction == 1
        check.that("warmup_fraction", "more or less than one step: torch divides by 0 there", not one_step)
        changes_inputs = (
            self.augmentation.is_geometric or self.augmentation.mix_probability or self.fresh_noise.fraction
        )
        if changes_inputs and not self.relabel:
            raise InputError(
                "recipe: with relabel = false the stored teacher logits belong to the plain impressions, so "
                "rotation, scale, shift, flip, mixing and the fraction of fresh noise must be 0"
            )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every number of a run, from the first step of an impression to the last step of the student."""

    name: str
    """Short name, also that of the file."""
    description: str
    """One sentence on what the recipe is for."""
    synthesis: SynthesisRecipe
    """How the impressions are made."""
    distillation: DistillationRecipe
    """How the student learns from them."""
