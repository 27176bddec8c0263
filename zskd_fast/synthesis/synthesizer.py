"""Makes impressions: inputs that the teacher answers with a drawn target (section 3 of the paper)."""

import contextlib
import copy
import dataclasses
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from tqdm import tqdm

from zskd_fast import ops
from zskd_fast.config.identity import as_json
from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.recipe import SynthesisRecipe
from zskd_fast.errors import InputError
from zskd_fast.models.classifier import Classifier, LogitsFn, frozen, tensor_sha256, weights_sha256
from zskd_fast.models.cpu_overrides import fast_calls
from zskd_fast.models.fast_copy import fast_teacher
from zskd_fast.runtime import cuda_graph
from zskd_fast.runtime.threads import side_by_side
from zskd_fast.runtime.timing import PhaseTimer
from zskd_fast.store.impressions import Impressions
from zskd_fast.synthesis.class_similarity import class_similarity, concentration, find_classifier_layer
from zskd_fast.synthesis.plan import Plan
from zskd_fast.synthesis.priors import add_total_variation_, check_priors
from zskd_fast.synthesis.rounding import limits_in, round_
from zskd_fast.synthesis.start_noise import check_start, start_noise

if TYPE_CHECKING:
    from zskd_fast.store.store import Store

_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} [{elapsed}<{remaining}, {rate_fmt}]"


class Synthesizer:
    """Makes impressions of a teacher.

    ``layer`` names the classifier layer, or is its weights [K, D]; by default it is found. ``logits_fn``
    picks the logits out of what the teacher returns. Everything runs where the teacher lies. ``timer`` adds
    up the seconds per phase over all runs.

    An impression depends on the recipe, the seed, the teacher and its id; its batch mates matter to no more
    than float rounding. Raises InputError if the teacher, its output or its classifier layer cannot be used.
    """

    def __init__(
        self,
        teacher: nn.Module,
        input_spec: InputSpec,
        recipe: SynthesisRecipe,
        *,
        seed: int,
        num_classes: int | None = None,
        layer: str | torch.Tensor | None = None,
        logits_fn: LogitsFn | None = None,
        device: torch.device | str | None = None,
    ):
        check_seed(seed)
        check_start(recipe.start, input_spec)
        check_priors(recipe, input_spec)
        self.input_spec = input_spec
        self.recipe = recipe
        self.seed = seed
        self.timer = PhaseTimer()
        self._teacher = Classifier(teacher, input_spec, logits_fn=logits_fn, device=device)
        if num_classes not in (None, self._teacher.num_classes):
            got = self._teacher.num_classes
            raise InputError(f"the teacher has {got} classes, but num_classes says {num_classes}")
        self.device = self._teacher.device
        self.plan = Plan(self._teacher.num_classes, recipe.betas)
        self._store_dtype = getattr(torch, recipe.store_dtype)
        self._store_limits = limits_in(self._store_dtype, *self._limits())
        self.layer, self.similarity = self._similarity(layer)
        self._check_gradient()
        self._fast_teacher = fast_teacher(self._teacher, recipe, logits_fn=logits_fn)
        self._fast_calls = contextlib.nullcontext() if recipe.compile_teacher else fast_calls(self.device)

    def run(
        self, ids: torch.Tensor | Sequence[int], *, progress: Callable[[int], object] | None = None
    ) -> Impressions:
        """Makes the impressions with these ids (integers from 0 up), on the teacher's device.

        x is float32, rounded to the recipe's ``store_dtype`` before it is labelled, so that a store gives it back.
        The teacher is in eval mode with frozen parameters meanwhile, and as before afterwards. ``progress``
        is called after each step with the number of impressions that took it, and once where no step is taken;
        with ``parallel_batches`` from several threads, one at a time. Raises InputError that names the first id
        if an impression comes out with NaN or infinity.
        """
        result = self._start(_as_ids(ids, self.device))
        batches = [
            result[first : first + self.recipe.batch_size]
            for first in range(0, len(result), self.recipe.batch_size)
        ]
        workers, stop = self._workers(batches), threading.Event()
        one_at_a_time = _one_at_a_time(progress)
        with frozen(self._teacher.model), self.timer.shared_by(workers):
            side_by_side(lambda part: self._make(part, one_at_a_time, stop), batches, workers, stop)
        _refuse_non_finite(result)
        return result

    def shortened(self, steps: int) -> "Synthesizer":
        """The same synthesizer with another number of steps, and a timer of its own."""
        short = copy.copy(self)
        short.recipe = dataclasses.replace(self.recipe, steps=steps)
        short.timer = PhaseTimer()
        return short

    def fingerprint(self) -> dict[str, Any]:
        """All that the impressions depend on, fit for JSON; equal fingerprints mean equal impressions."""
        teacher = self._teacher.model
        return {
            "recipe": as_json(self.recipe),
            "seed": self.seed,
            "input": as_json(self.input_spec),
            "plan": as_json(self.plan),
            "teacher": {"class": type(teacher).__name__, "sha256": weights_sha256(teacher)},
            "layer": self.layer,
        }

    def _similarity(self, layer):
        if isinstance(layer, torch.Tensor):
            if layer.ndim != 2 or len(layer) != self.plan.num_classes:
                wanted = f"[{self.plan.num_classes}, D]"
                raise InputError(
                    f"the classifier weights given as layer are {list(layer.shape)}, wanted {wanted}"
                )
            return f"matrix {tensor_sha256(layer)}", class_similarity(layer.to(self.device))
        teacher = self._teacher
        with frozen(teacher.model):
            name, _ = find_classifier_layer(
                teacher.model,
                teacher.num_classes,
                layer,
                forward=lambda: teacher.logits(teacher.probe_input()),
            )
        return name, class_similarity(teacher.model, layer=name)

    def _check_gradient(self):
        x = self._teacher.probe_input().requires_grad_()
        with frozen(self._teacher.model), torch.enable_grad():
            if not self._teacher.logits(x).requires_grad:
                raise InputError(
                    "no gradient flows from the teacher's logits to its input, so none can be made"
                )

    def _start(self, ids):
        """Targets and start noise of every impression; the rest of the record is filled in later."""
        count, num_classes = len(ids), self.plan.num_classes
        with self.timer("targets"):
            return Impressions(
                x=self._start_noise(ids),
                target=self._targets(ids),
                teacher_logits=torch.empty((count, num_classes), device=self.device),
                id=ids,
                class_index=self.plan.class_of(ids),
                beta=self.plan.beta_of(ids),
                loss=torch.empty(count, device=self.device),
                steps=torch.full((count,), self.recipe.steps, device=self.device),
            )

    def _start_noise(self, ids):
        recipe = self.recipe
        return start_noise(ids, recipe.start, self.input_spec, seed=self.seed, clamp=recipe.clamp)

    def _targets(self, ids):
        if self.recipe.targets == "one_hot":
            return nn.functional.one_hot(self.plan.class_of(ids), self.plan.num_classes).float()
        alpha = concentration(self.similarity, ids, self.plan, self.recipe.concentration_floor)
        return ops.dirichlet(alpha, ids, seed=self.seed)

    def _workers(self, batches):
        """How many batches are made at once; a compiled teacher is compiled by one thread."""
        if self.device.type != "cpu" or not self.recipe.parallel_batches or self.recipe.compile_teacher:
            return 1
        return min(torch.get_num_threads(), len(batches))

    def _make(self, part, progress, stop):
        # Batches are slices of one tensor: a change of one is a change of all to autograd, but for a copy.
        x = part.x.clone()
        self._optimise(dataclasses.replace(part, x=x), progress, stop)
        part.x.copy_(x)
        round_(part.x, self._store_dtype, self._store_limits)
        self._label(part)

    def _optimise(self, part, progress, stop):
        """Adam on part.x, in place; on a CUDA device each step is one launch of a graph."""
        recipe = self.recipe
        exp_avg, exp_avg_sq = torch.zeros_like(part.x), torch.zeros_like(part.x)
        grad_logits = torch.empty_like(part.target)
        low, high = self._limits()
        x = part.x.detach().requires_grad_()  # a leaf over the same memory

        def take_step(step, learning_rate):
            grad = self._gradient(x, part.target, grad_logits)
            with self.timer("update"):
                if recipe.total_variation:
                    add_total_variation_(grad, part.x, recipe.total_variation)
                ops.impression_update_(
                    part.x,
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

        if x.is_cuda and recipe.steps >= cuda_graph.WORTH_CAPTURING:
            take_step = cuda_graph.captured(take_step, (part.x, exp_avg, exp_avg_sq), self.timer)
        for step in range(1, recipe.steps + 1):
            if stop.is_set():
                return
            take_step(step, _learning_rate(recipe, step))
            progress(len(part))
        if recipe.steps == 0:
            progress(len(part))

    def _gradient(self, x, target, grad_logits):
        """Gradient of the summed loss: a sum, unlike a mean, leaves each impression to itself.

        The op's own gradient of the logits, written into a buffer, starts the teacher's backward pass.
        """
        with torch.enable_grad(), self.timer("teacher forward"), self._fast_calls:
            logits = self._fast_teacher.logits(x)
        with self.timer("loss"):
            ops.soft_cross_entropy_value_and_grad(
                logits, target, self.recipe.temperature, reduction="sum", out=grad_logits
            )
        with self.timer("teacher backward"):
            return torch.autograd.grad(logits, x, grad_logits)[0]

    @torch.no_grad()
    def _label(self, part):
        """Writes down what the teacher says of the finished impressions."""
        with self.timer("teacher forward"):
            part.teacher_logits.copy_(self._teacher.logits(part.x))
        with self.timer("loss"):
            loss = ops.soft_cross_entropy(
                part.teacher_logits, part.target, self.recipe.temperature, reduction="none"
            )
            part.loss.copy_(loss)

    def _limits(self):
        return self.input_spec.valid_range if self.recipe.clamp else (-math.inf, math.inf)


@dataclass(frozen=True)
class SynthesisSummary:
    """What a call of ``synthesize`` did."""

    made: int
    """Impressions made by this call."""
    reused: int
    """Impressions found in the store, their shards hashed anew."""
    elsewhere: int
    """Impressions in shards that another process was making."""
    seconds: float
    """Wall-clock time of the call."""
    phase_seconds: dict[str, float]
    """Wall-clock time per phase."""


def synthesize(
    synthesizer: Synthesizer, store: "Store", *, rank: int = 0, world_size: int = 1, progress: bool = True
) -> SynthesisSummary:
    """Makes and writes every shard that the store lacks or that is not as it was written.

    Of several processes, each of ``world_size`` looks after the shards rank, rank + world_size and so on; the
    store is the same for any number. A finished store is hashed and left alone. A shard that another process
    is making is left to it. Raises InputError if the store belongs to another run.
    """
    store.check_fingerprint(synthesizer.fingerprint())
    start = time.perf_counter()
    mine = range(rank, store.num_shards, world_size)
    faulty = [shard for shard in mine if store.fault(shard)]
    count = {"made": 0, "reused": _size(store, mine) - _size(store, faulty), "elsewhere": 0}
    steps = max(synthesizer.recipe.steps, 1)
    with _bar(_size(store, mine), count["reused"], steps, progress and faulty) as bar:
        for shard in faulty:
            count[_make_shard(synthesizer, store, shard, bar)] += len(store.shard_ids(shard))
    return SynthesisSummary(
        **count, seconds=time.perf_counter() - start, phase_seconds=dict(synthesizer.timer.seconds)
    )


def _make_shard(synthesizer, store, shard, bar):
    """Makes a shard unless another process has made it, or is at it; says which."""
    with store.claim(shard) as claimed:
        if not claimed:
            return "elsewhere"
        store.refresh()
        if store.fault(shard) is None:
            return "reused"
        impressions = synthesizer.run(store.shard_ids(shard), progress=bar.update)
        with synthesizer.timer("io"):
            store.write_shard(shard, impressions)
    return "made"


def _one_at_a_time(progress):
    """The callback, or nothing, for several threads."""
    lock = threading.Lock()

    def call(count):
        if progress is not None:
            with lock:
                progress(count)

    return call


def _size(store, shards):
    return sum(len(store.shard_ids(shard)) for shard in shards)


def _bar(total, reused, steps, shown):
    return tqdm(
        desc="impressions",
        total=total * steps,
        initial=reused * steps,
        unit="impression",
        unit_scale=1 / steps,
        bar_format=_BAR,
        disable=not shown,
    )


def check_seed(seed: int) -> None:
    """Raises InputError unless the seed is an integer of 63 bits."""
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise InputError(f"the seed must be an integer from 0 to 2^63 - 1, got {seed!r}")


def _learning_rate(recipe, step):
    """Falls linearly, so that the first step has the full rate and the last one the final fraction of it."""
    done = (step - 1) / max(recipe.steps - 1, 1)
    return recipe.learning_rate * (1 + done * (recipe.final_learning_rate_fraction - 1))


def _as_ids(ids, device):
    ids = torch.as_tensor(ids, device=device)
    if ids.ndim != 1 or len(ids) == 0 or ids.dtype != torch.int64 or bool((ids < 0).any()):
        raise InputError(
            f"ids must be one or more integers from 0 up, got {ids.dtype} {list(ids.shape)}"
            + (f" from {ids.min()} up" if ids.numel() else "")
        )
    return ids


def _refuse_non_finite(impressions):
    finite = torch.isfinite(impressions.x).flatten(1).all(dim=1) & torch.isfinite(impressions.loss)
    if not finite.all():
        bad = impressions.id[~finite]
        raise InputError(
            f"{len(bad)} of {len(impressions)} impressions came out with NaN or infinity, the first is id "
            f"{int(bad[0])}; lower the recipe's learning_rate, set clamp or give store_dtype more range"
        )
