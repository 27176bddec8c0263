"""The synthesizer: it optimizes noise into inputs that the teacher answers with a drawn target (paper, section 3)."""

import contextlib
import copy
import dataclasses
import math
import threading
from collections.abc import Callable, Sequence

import torch
from torch import nn

from zskd_fast import ops
from zskd_fast.config.identity import ImpressionIdentity
from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.recipe import ImpressionRecipe, Recipe, SynthesisRecipe
from zskd_fast.errors import InputError
from zskd_fast.models.classifier import Classifier, ForwardFn, LogitsFn, as_classifier, frozen, tensor_sha256
from zskd_fast.models.classifier_layer import classifier_weight, find_classifier_layer
from zskd_fast.models.cpu_overrides import cpu_overrides
from zskd_fast.models.fast_copy import fast_copy
from zskd_fast.models.probe import reason
from zskd_fast.runtime import cuda_graph
from zskd_fast.runtime.precision import full_float32, repeatable
from zskd_fast.runtime.seeds import check_seed
from zskd_fast.runtime.threads import one_at_a_time, run_in_threads
from zskd_fast.runtime.timing import PhaseTimer
from zskd_fast.store.impressions import Impressions
from zskd_fast.synthesis.batch_norm import StatisticsPrior, statistics_prior
from zskd_fast.synthesis.class_similarity import ClassSimilarity, concentration
from zskd_fast.synthesis.plan import Plan
from zskd_fast.synthesis.priors import check_priors
from zskd_fast.synthesis.rounding import limits_in, round_
from zskd_fast.synthesis.scaling import scaled_recipe, scaling_note
from zskd_fast.synthesis.start_noise import check_noise, start_noise

# A teacher without any gradient for the first batch, at its first step and at this one, is refused.
_LAST_LOOK = 4


@dataclasses.dataclass
class _Batch:
    """The memory in which a batch is optimized, and the step that changes it."""

    x: torch.Tensor
    target: torch.Tensor
    exp_avg: torch.Tensor
    exp_avg_sq: torch.Tensor
    grad_logits: torch.Tensor
    step: cuda_graph.Step

    @property
    def changed(self) -> tuple[torch.Tensor, ...]:
        """The tensors that a step changes and the next one reads."""
        return self.x, self.exp_avg, self.exp_avg_sq

    def begin(self, part: Impressions) -> None:
        """Start another batch of the same shape in this memory."""
        self.x.copy_(part.x)
        self.target.copy_(part.target)
        self.exp_avg.zero_()
        self.exp_avg_sq.zero_()


_Kept = dict[torch.Size, _Batch]
"""The batches whose steps were captured in a call of `Synthesizer.run`, by the shape of x.

No longer than that: a graph keeps its memory, and a user may move the teacher between two calls.
"""


class Synthesizer:
    """Make impressions of a teacher.

    ``layer`` names the classifier layer or a parameter, or is its weight matrix [K, D]; by default the layer is found.
    ``logits_fn`` and ``forward_fn`` are those of `Classifier`. All work is done on the teacher's device. ``timer`` adds
    up the seconds per phase over all runs.

    An impression depends on ``identity`` and its id; the other impressions of its batch change its rounding at most. If
    the recipe has the statistics prior and the teacher batch normalization, it depends on its batch, the ids from
    n * batch_size to (n + 1) * batch_size - 1, all of which are then made for any of them.
    Raises InputError if the teacher, its output or its classifier layer cannot be used.
    """

    @torch.inference_mode(False)
    def __init__(
        self,
        teacher: nn.Module | Classifier,
        input_spec: InputSpec,
        recipe: SynthesisRecipe | Recipe,
        *,
        seed: int,
        layer: str | torch.Tensor | None = None,
        logits_fn: LogitsFn | None = None,
        forward_fn: ForwardFn | None = None,
    ):
        check_seed(seed)
        recipe = recipe.synthesis if isinstance(recipe, Recipe) else recipe
        check_noise(recipe.start_noise, input_spec)
        check_priors(recipe, input_spec)
        self.input_spec = input_spec
        self.seed = seed
        self.timer = PhaseTimer()
        self._teacher = as_classifier(teacher, input_spec, logits_fn=logits_fn, forward_fn=forward_fn)
        self.device = self._teacher.device
        self.plan = Plan(self._teacher.num_classes, recipe.betas)
        self.recipe = scaled_recipe(recipe, self.plan.num_classes)
        self._scaling = scaling_note(recipe, self.plan.num_classes)
        self._store_dtype = getattr(torch, recipe.store_dtype)
        limits = input_spec.valid_range if recipe.clamp else (-math.inf, math.inf)
        self._store_limits = limits_in(self._store_dtype, *limits)
        self.layer, self.class_similarity = self._similarity(layer)
        self._check_gradient()
        self._moves = False  # whether some impression has had a gradient that is not zero
        self._graphs = cuda_graph.Graphs()
        self._fast_teacher = fast_copy(self._teacher, recipe)
        self._statistics = statistics_prior(self._teacher.model, self._fast_teacher.model, recipe)
        is_plain = recipe.teacher_precision == "float32" and not recipe.compile_teacher
        self._overrides = cpu_overrides(self.device) if is_plain else contextlib.nullcontext()

    @property
    def notes(self) -> dict[str, str]:
        """What follows from the teacher, by caption: numbers scaled for its classes, the use of batch normalization."""
        notes = {"scaled": self._scaling} if self._scaling else {}
        return notes | ({"batch norm": self._statistics.description} if self._statistics else {})

    @property
    def identity(self) -> ImpressionIdentity:
        """All that the impressions depend on, besides their ids."""
        fields = dataclasses.fields(ImpressionRecipe)
        return ImpressionIdentity(
            seed=self.seed,
            input=self.input_spec,
            teacher=self._teacher.identity,
            layer=self.layer,
            num_classes=self.plan.num_classes,
            recipe=ImpressionRecipe(**{field.name: getattr(self.recipe, field.name) for field in fields}),
        )

    @torch.inference_mode(False)
    @repeatable()
    def run(self, ids: torch.Tensor | Sequence[int], *, progress: Callable[[int], object] | None = None) -> Impressions:
        """Make the impressions with these ids (integers from 0 up), in their order, on the teacher's device.

        x is float32, rounded to the recipe's ``store_dtype`` before it is labeled, so that a store returns the same
        values. The teacher is in eval mode with frozen parameters in the meantime, and restored afterwards.
        ``progress`` is called after each step with the number of these impressions in the batch, and once per batch if
        there are no steps; with ``parallel_batches`` from several threads, one at a time. Raises InputError that names
        the first id if an impression holds NaN or infinity.
        """
        ids = _as_ids(ids, self.device)
        result = self._start(self._with_batch_mates(ids))
        batches = [
            result[first : first + self.recipe.batch_size] for first in range(0, len(result), self.recipe.batch_size)
        ]
        workers, stop = self._workers(batches), threading.Event()
        report = one_at_a_time(progress)

        def make(part: Impressions) -> None:
            asked = int(torch.isin(part.id, ids).sum())  # batch mates that nobody asked for are no progress
            self._make(part, lambda: report(asked), stop, kept)

        watching = self._statistics.watching() if self._statistics else contextlib.nullcontext()
        with frozen(self._teacher.model), watching, self.timer.shared_by(workers):
            kept: _Kept = {}
            run_in_threads(make, batches, workers, stop)
        _refuse_non_finite(result)
        return result if torch.equal(result.id, ids) else result[torch.searchsorted(result.id, ids)]

    def shortened(self, steps: int) -> "Synthesizer":
        """Return the same synthesizer with another number of steps, and a timer of its own."""
        short = copy.copy(self)
        short.recipe = dataclasses.replace(self.recipe, steps=steps)
        short.timer = PhaseTimer()
        return short

    @property
    def similarity(self) -> torch.Tensor:
        """The class similarity as a whole, [K, K] float32, computed at each call."""
        return self.class_similarity.matrix()

    def _similarity(self, layer: str | torch.Tensor | None) -> tuple[str, ClassSimilarity]:
        """Return the name of the classifier layer (or the hash of the matrix given) and the class similarity."""
        teacher = self._teacher
        if isinstance(layer, torch.Tensor):
            if layer.ndim != 2 or len(classifier_weight(layer)) != teacher.num_classes:
                wanted = f"[{teacher.num_classes}, D]"
                raise InputError(f"the classifier weights given as layer are {list(layer.shape)}, wanted {wanted}")
            return f"matrix {tensor_sha256(layer)}", ClassSimilarity(classifier_weight(layer).to(self.device))
        if not isinstance(layer, str | None):
            kind = type(layer).__name__
            raise InputError(f"layer must be the name of a layer or a tensor [{teacher.num_classes}, D], got a {kind}")
        with frozen(teacher.model):
            name, _ = find_classifier_layer(
                teacher.model,
                teacher.num_classes,
                layer,
                forward=lambda: teacher.logits(teacher.probe_input()),
            )
        return name, ClassSimilarity.of(teacher.model, layer=name)

    def _check_gradient(self) -> None:
        """A gradient that is there but zero is no error: the start noise may just be where the teacher is flat."""
        x = self._teacher.probe_input().requires_grad_()
        with frozen(self._teacher.model), torch.enable_grad():
            logits = self._teacher.logits(x)
            if not logits.requires_grad:
                raise InputError(
                    "no gradient flows from the teacher's logits to its input, so no impression can be made"
                )
            try:
                torch.autograd.grad(logits.sum(), x)
            except Exception as error:  # the backward pass of a user's model can raise anything
                raise InputError(f"the teacher's backward pass to its input fails: {reason(error)}") from error

    def _start(self, ids: torch.Tensor) -> Impressions:
        """Return targets and start noise of every impression; logits and loss are filled in later."""
        count, recipe = len(ids), self.recipe
        with self.timer("targets"):
            return Impressions(
                x=start_noise(ids, recipe.start_noise, self.input_spec, seed=self.seed, clamp=recipe.clamp),
                target=self._targets(ids),
                teacher_logits=torch.empty((count, self.plan.num_classes), dtype=torch.float32, device=self.device),
                id=ids,
                class_index=self.plan.class_of(ids),
                beta=self.plan.beta_of(ids),
                loss=torch.empty(count, dtype=torch.float32, device=self.device),
                steps=torch.full((count,), recipe.steps, device=self.device),
            )

    def _with_batch_mates(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the ids, or with the statistics prior every id of their batches: id i is in batch i // batch_size.

        There an impression depends on its batch, which must not depend on the ids asked for.
        """
        if self._statistics is None:
            return ids
        size = self.recipe.batch_size
        first = (ids // size).unique() * size
        return (first[:, None] + torch.arange(size, device=ids.device)).flatten()

    def _targets(self, ids: torch.Tensor) -> torch.Tensor:
        if self.recipe.targets == "one_hot":
            return nn.functional.one_hot(self.plan.class_of(ids), self.plan.num_classes).float()
        alpha = concentration(self.class_similarity, ids, self.plan, self.recipe.concentration_floor)
        return ops.dirichlet(alpha, ids, seed=self.seed)

    def _workers(self, batches: Sequence[Impressions]) -> int:
        """Return how many batches are made at once; only one thread may compile a teacher."""
        if self.device.type != "cpu" or not self.recipe.parallel_batches or self.recipe.compile_teacher:
            return 1
        return min(torch.get_num_threads(), len(batches))

    def _make(self, part: Impressions, progress: Callable[[], object], stop: threading.Event, kept: _Kept) -> None:
        # A copy, since batches are slices of one tensor and autograd takes a change of one for a change of all.
        unit = self.input_spec.to_unit(part.x.clone())
        self._optimize(dataclasses.replace(part, x=unit), progress, stop, kept)
        part.x.copy_(self.input_spec.to_raw(unit, clamp=self.recipe.clamp))
        round_(part.x, self._store_dtype, self._store_limits)
        self._label(part)

    def _optimize(self, part: Impressions, progress: Callable[[], object], stop: threading.Event, kept: _Kept) -> None:
        """Run Adam on part.x (in units of the valid range), in place; on a CUDA device each step launches a graph."""
        recipe = self.recipe
        batch = self._batch(part, kept)
        for step in range(1, recipe.steps + 1):
            if stop.is_set():
                return
            if not self._moves:
                self._look_at_gradient(batch.x.detach().requires_grad_(), batch.target, batch.grad_logits, step)
            batch.step(step, _learning_rate(recipe, step))
            progress()
        if recipe.steps == 0:
            progress()
        if batch.x is not part.x:
            part.x.copy_(batch.x)

    def _batch(self, part: Impressions, kept: _Kept) -> _Batch:
        """Return the memory of a batch and its step. A graph is captured once per shape and kept, with its memory."""
        if not cuda_graph.pays(self.device, self.recipe.steps):
            return self._new_batch(part.x, part.target)
        batch = kept.get(part.x.shape)
        if batch is not None:
            batch.begin(part)
            return batch
        batch = kept[part.x.shape] = self._new_batch(part.x, part.target.clone())
        number_and_rate = torch.ones(2, dtype=torch.float64, device=self.device).unbind()
        batch.step = self._graphs.captured(batch.step, number_and_rate, batch.changed, self.timer)
        return batch

    def _new_batch(self, x: torch.Tensor, target: torch.Tensor) -> _Batch:
        """Return a batch at its start, whose step changes x."""
        recipe, low, high = self.recipe, *((0.0, 1.0) if self.recipe.clamp else (-math.inf, math.inf))
        exp_avg, exp_avg_sq = torch.zeros_like(x), torch.zeros_like(x)
        grad_logits = torch.empty_like(target)
        leaf = x.detach().requires_grad_()  # a leaf that shares the memory of x

        def take_step(step: int | torch.Tensor, learning_rate: float | torch.Tensor) -> None:
            grad = self._gradient(leaf, target, grad_logits, self._statistics)
            with self.timer("update"):
                grad = grad.contiguous()  # like x; a convolution may return a gradient whose channels are last
                if recipe.total_variation:
                    ops.total_variation_grad_(grad, x, recipe.total_variation)
                ops.impression_update_(
                    x,
                    grad,
                    exp_avg,
                    exp_avg_sq,
                    step,
                    lr=learning_rate,
                    betas=recipe.adam_betas,
                    eps=recipe.adam_eps,
                    l1=recipe.l1,
                    l2=recipe.l2,
                    lo=low,
                    hi=high,
                )

        return _Batch(x, target, exp_avg, exp_avg_sq, grad_logits, take_step)

    def _gradient(
        self, x: torch.Tensor, target: torch.Tensor, grad_logits: torch.Tensor, prior: StatisticsPrior | None
    ) -> torch.Tensor:
        """Return the gradient of the summed loss: unlike a mean, a sum does not depend on the size of the batch.

        The op writes the gradient of the logits into a buffer, from which the teacher's backward pass starts. The sum
        itself is not computed.
        """
        in_bfloat16 = torch.autocast(self.device.type, torch.bfloat16, self.recipe.teacher_precision == "bfloat16")
        with torch.enable_grad(), self.timer("teacher forward"), self._overrides, in_bfloat16:
            if prior:
                prior.begin()
            logits = self._fast_teacher.logits(self.input_spec.to_raw(x))
            distance = prior.distance() if prior else None
        with self.timer("loss"):
            ops.soft_cross_entropy_value_and_grad(
                logits, target, self.recipe.temperature, reduction="none", out=grad_logits
            )
        with self.timer("teacher backward"):
            if distance is None:
                return torch.autograd.grad(logits, x, grad_logits)[0]
            weight = torch.full_like(distance, self.recipe.statistics_prior * len(x))
            return torch.autograd.grad((logits, distance), x, (grad_logits, weight))[0]

    def _look_at_gradient(self, x: torch.Tensor, target: torch.Tensor, grad_logits: torch.Tensor, step: int) -> None:
        """Raise InputError if the teacher gives no value of x a gradient: priors alone would move it, or nothing."""
        last = min(_LAST_LOOK, self.recipe.steps)
        if step not in (1, last):
            return
        self._moves = bool(self._gradient(x, target, grad_logits, None).any())
        if step == last and not self._moves:
            raise InputError(
                "x does not move: the gradient of the teacher with respect to its input is zero for all "
                f"{len(x)} impressions of the first batch, at the start and at step {step}; a step of the teacher that "
                "is flat, such as rounding, the sign or a saturated softmax, needs another one in its place"
            )

    @torch.no_grad()
    @full_float32()
    def _label(self, part: Impressions) -> None:
        """Fill in the teacher's logits and the loss of the finished impressions, as `teacher_faults` compares them."""
        with self.timer("teacher forward"):
            part.teacher_logits.copy_(self._teacher.logits(part.x))
        with self.timer("loss"):
            loss = ops.soft_cross_entropy(part.teacher_logits, part.target, self.recipe.temperature, reduction="none")
            part.loss.copy_(loss)


def _learning_rate(recipe: ImpressionRecipe, step: int) -> float:
    """Return the rate of a step (from 1): linear from the full rate at the first to its final fraction at the last."""
    done = (step - 1) / max(recipe.steps - 1, 1)
    return recipe.learning_rate * (1 + done * (recipe.final_learning_rate_fraction - 1))


def _as_ids(ids: torch.Tensor | Sequence[int], device: torch.device) -> torch.Tensor:
    ids = torch.as_tensor(ids, device=device)
    if ids.ndim != 1 or len(ids) == 0 or ids.dtype != torch.int64 or bool((ids < 0).any()):
        raise InputError(
            f"ids must be one or more integers from 0 up, got {ids.dtype} {list(ids.shape)}"
            + (f" from {ids.min()} up" if ids.numel() else "")
        )
    return ids


def _refuse_non_finite(impressions: Impressions) -> None:
    finite = torch.isfinite(impressions.x).flatten(1).all(dim=1) & torch.isfinite(impressions.loss)
    if not finite.all():
        bad = impressions.id[~finite]
        raise InputError(
            f"{len(bad)} of {len(impressions)} impressions hold NaN or infinity, the first is id "
            f"{int(bad[0])}; lower the recipe's learning_rate, set clamp or use a store_dtype with more range"
        )
