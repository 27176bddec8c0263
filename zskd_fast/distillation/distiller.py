"""Trains the student on impressions alone (section 3.4 of the paper)."""

import contextlib
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from zskd_fast import ops
from zskd_fast.adversary import harden
from zskd_fast.config.identity import as_json
from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.recipe import DistillationRecipe
from zskd_fast.distillation.augmentation import check_augmentation
from zskd_fast.distillation.batches import Batches
from zskd_fast.distillation.checkpoint import Checkpoint, TrainingState
from zskd_fast.distillation.dormant_units import recycle
from zskd_fast.errors import InputError
from zskd_fast.models.classifier import (
    Classifier,
    LogitsFn,
    frozen,
    modes_kept,
    tensor_sha256,
    weights_sha256,
)
from zskd_fast.models.cpu_overrides import fast_calls
from zskd_fast.runtime.processes import joined, replicated
from zskd_fast.runtime.timing import PhaseTimer
from zskd_fast.store.mapped_rows import MappedRows
from zskd_fast.synthesis.start_noise import check_start
from zskd_fast.synthesis.synthesizer import check_seed

# How often the losses are looked at; between looks the host never waits for the device.
_LOOK_EVERY = 100


@dataclass(frozen=True)
class DistillationHistory:
    """What happened in a run of ``Distiller.fit``."""

    loss: list[float]
    """Loss of each step."""
    learning_rate: list[float]
    """Learning rate of each step."""
    evaluations: list[tuple[int, float]]
    """(steps done, value of ``evaluate``), in order."""
    seconds: float
    """Wall-clock time of this call."""
    phase_seconds: dict[str, float]
    """Wall-clock time per phase."""


class Distiller:
    """Teaches a student what the teacher says of the impressions: tau^2 KL at the recipe's temperature.

    Each step the teacher labels the augmented batch (or, without ``relabel``, its stored logits do), which the
    recipe's adversary may have moved to where the student departs from it. No label of any data set is used.
    Teacher and student lie on one device. In a process group of torch each process takes its share of every
    batch and all end with the same student. Raises InputError if either cannot be used, their classes differ,
    or the augmentation does not fit the input.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        recipe: DistillationRecipe,
        input_spec: InputSpec,
        *,
        seed: int,
        logits_fn: LogitsFn | None = None,
        student_logits_fn: LogitsFn | None = None,
        device: torch.device | str | None = None,
    ):
        check_seed(seed)
        check_augmentation(recipe.augmentation, input_spec)
        check_start(recipe.fresh.start, input_spec)
        self.recipe = recipe
        self.input_spec = input_spec
        self.seed = seed
        self.timer = PhaseTimer()
        self._teacher = Classifier(teacher, input_spec, logits_fn=logits_fn, device=device)
        self.device = self._teacher.device
        self._student = Classifier(
            student, input_spec, role="student", logits_fn=student_logits_fn, device=self.device
        )
        classes = self._teacher.num_classes, self._student.num_classes
        if classes[0] != classes[1]:
            raise InputError("the teacher has {} classes, but the student has {}".format(*classes))

    def fit(
        self,
        x: torch.Tensor | MappedRows,
        teacher_logits: torch.Tensor | MappedRows | None = None,
        ids: torch.Tensor | None = None,
        *,
        progress: bool = True,
        evaluate: Callable[[nn.Module], float] | None = None,
        evaluate_every: int = 0,
        checkpoint: str | Path | None = None,
        checkpoint_every: int = 500,
    ) -> DistillationHistory:
        """Trains the student in place on impressions x[N, *shape] (raw range); same seed, same bits.

        ``teacher_logits`` [N, K] are needed only without ``relabel``. With ``ids`` [N] the result does not
        depend on the order of the rows. Rows of a store larger than memory come as ``MappedRows``, which are in the
        order of their ids and give the same student as tensors. ``evaluate`` is given the student in eval mode, every
        ``evaluate_every`` steps (0: never) and at the end; its value is noted and nothing is chosen by it.
        ``checkpoint`` names a file that is written every ``checkpoint_every`` steps (0: never) and at the
        end; if it is there, the run goes on from it. In a process group all processes are given the same
        arguments and read the same file; the first alone writes it, evaluates and shows progress.

        Raises InputError if the data do not fit, the checkpoint is another run's, or the loss becomes NaN.
        """
        start, world = time.perf_counter(), joined()
        self._check_world(world)
        x, teacher_logits = self._prepare(x, teacher_logits, ids)
        state = self._new_state()
        file = None
        if checkpoint:
            file = Checkpoint(Path(checkpoint), self._fingerprint(x, teacher_logits, world))
            file.restore(state)
        x = x.to(self.device)
        if teacher_logits is not None:
            teacher_logits = teacher_logits.to(self.device)
        self._check_same_step(state, world)
        student = replicated(self._student, world)
        batches = Batches(x, self.recipe, self.input_spec, seed=self.seed, device=self.device, world=world)
        with self._training(), self._bar(state, progress and world.is_first) as bar:
            while state.step < self.recipe.steps:
                self._step(state, student, batches, teacher_logits, world)
                bar.update()
                save = file and self._is_due(state, checkpoint_every)
                if save or self._is_due(state, _LOOK_EVERY):
                    bar.set_postfix(loss=f"{_last_loss(state):.4f}", refresh=False)
                if not world.is_first:
                    continue
                if evaluate and self._is_due(state, evaluate_every):
                    state.evaluations.append((state.step, self._evaluate(evaluate)))
                if save:
                    with self.timer("io"):
                        file.save(state)
        return DistillationHistory(
            loss=state.losses.tolist(),
            learning_rate=state.learning_rates,
            evaluations=state.evaluations,
            seconds=time.perf_counter() - start,
            phase_seconds=dict(self.timer.seconds),
        )

    def _prepare(self, x, teacher_logits, ids):
        """The data in the order of their ids; tensors on the device."""
        if len(x.shape) == 0 or tuple(x.shape[1:]) != self.input_spec.shape or len(x) == 0:
            wanted = ["N", *self.input_spec.shape]
            raise InputError(f"the impressions have shape {list(x.shape)}, wanted {wanted} with N >= 1")
        if self.recipe.relabel:
            teacher_logits = None
        elif teacher_logits is None or teacher_logits.shape != (len(x), self._teacher.num_classes):
            got = None if teacher_logits is None else list(teacher_logits.shape)
            wanted = [len(x), self._teacher.num_classes]
            raise InputError(f"without relabel, teacher_logits must have shape {wanted}, got {got}")
        if ids is not None and ids.shape != (len(x),):
            raise InputError(f"ids must have shape {[len(x)]}, one per impression, got {list(ids.shape)}")
        if ids is not None and isinstance(x, MappedRows):
            raise InputError("ids are for tensors; the rows of a store are in the order of theirs")
        order = slice(None) if ids is None else ids.argsort()
        return _ordered(x, order, self.device), _ordered(teacher_logits, order, self.device)

    def _new_state(self):
        recipe, student = self.recipe, self._student.model
        parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
        if not parameters:
            raise InputError("the student has no parameter that requires a gradient, so it cannot learn")
        low, high = recipe.beta1_range
        optimizer = torch.optim.Adam(parameters, betas=(high, recipe.beta2), eps=recipe.adam_eps, fused=True)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            recipe.max_learning_rate,
            total_steps=recipe.steps,
            pct_start=recipe.warmup_fraction,
            div_factor=recipe.start_divisor,
            final_div_factor=recipe.final_divisor,
            base_momentum=low,
            max_momentum=high,
        )
        return TrainingState(student, optimizer, scheduler, torch.zeros(recipe.steps, device=self.device))

    @contextlib.contextmanager
    def _training(self):
        """The teacher frozen, the student in train mode, and torch's own random numbers put aside."""
        student = self._student.model
        devices = [self.device] if self.device.type == "cuda" else []
        with (
            modes_kept(student),
            frozen(self._teacher.model),
            torch.random.fork_rng(devices),
            torch.enable_grad(),
            fast_calls(self.device),
        ):
            student.train()
            yield

    def _bar(self, state, progress):
        total, done = self.recipe.steps, state.step
        return tqdm(desc="distillation", total=total, initial=done, unit="step", disable=not progress)

    def _step(self, state, student, batches, teacher_logits, world):
        with self.timer("augmentation"):
            batch = batches.of(state.step)
        x = self._hardened(batch.x, state)
        self._recycle(x, state, world)
        with self.timer("teacher forward"), torch.no_grad():
            wanted = self._teacher.logits(x) if self.recipe.relabel else teacher_logits[batch.rows]
        self._seed_dropout(state.step, world)
        with self.timer("student"):
            logits = student.logits(x)
        with self.timer("loss"):
            loss = ops.distillation_loss(logits, wanted, self.recipe.temperature)
        # Averaged over the processes, the gradient is that of the whole batch: shares may differ by a row.
        share = len(x) / self.recipe.batch_size
        with self.timer("student"):
            state.optimizer.zero_grad()
            (loss * (share * world.size)).backward()
        with self.timer("update"):
            self._update(state, world.sum(loss.detach() * share))

    def _hardened(self, x, state):
        adversary = self.recipe.adversary
        if not adversary.steps or state.step < adversary.wait_fraction * self.recipe.steps:
            return x
        with self.timer("adversary"):
            temperature, spec = self.recipe.temperature, self.input_spec
            return harden(x, self._teacher, self._student, adversary, temperature, spec)

    def _recycle(self, x, state, world):
        recycling = self.recipe.recycling
        late = state.step >= min(recycling.until_fraction * self.recipe.steps, recycling.until_step)
        if recycling.every and state.step % recycling.every == 0 and not late:
            with self.timer("recycling"):
                recycle(self._student, x, recycling, world)

    def _update(self, state, loss):
        state.losses[state.step] = loss
        state.learning_rates.append(state.scheduler.get_last_lr()[0])
        state.optimizer.step()
        state.step += 1
        if state.step < self.recipe.steps:
            state.scheduler.step()

    def _seed_dropout(self, step, world):
        """A student with dropout draws from torch's generator: seeded per step, a resumed run draws alike."""
        on_gpu = self.device.type == "cuda"
        generator = torch.cuda.default_generators[self.device.index] if on_gpu else torch.default_generator
        rank = f":{world.rank}" if world.rank else ""
        digest = hashlib.sha256(f"{self.seed}:{step}{rank}".encode()).digest()
        generator.manual_seed(int.from_bytes(digest[:7], "little"))

    def _evaluate(self, evaluate):
        with self.timer("evaluation"), frozen(self._student.model), torch.no_grad():
            return float(evaluate(self._student.model))

    def _is_due(self, state, every):
        return state.step == self.recipe.steps or (every > 0 and state.step % every == 0)

    def _check_world(self, world):
        if world.size > self.recipe.batch_size:
            got = f"{world.size} processes for a batch of {self.recipe.batch_size}"
            raise InputError(f"every process needs a row of each batch, got {got}")

    def _check_same_step(self, state, world):
        steps = world.sum(torch.tensor(float(state.step), device=self.device))
        if steps != state.step * world.size:
            raise InputError("not all processes read the same checkpoint; put it where all of them see it")

    def _fingerprint(self, x, teacher_logits, world):
        student, teacher = self._student.model, self._teacher.model
        data = {"x": _sha256(x)}
        if teacher_logits is not None:
            data["teacher_logits"] = _sha256(teacher_logits)
        return {
            "recipe": as_json(self.recipe),
            "seed": self.seed,
            "input": as_json(self.input_spec),
            "teacher": {"class": type(teacher).__name__, "sha256": weights_sha256(teacher)},
            "untrained student": {"class": type(student).__name__, "sha256": weights_sha256(student)},
            "impressions": data,
            # Sums over other shares round otherwise, so that the student would be another.
            "processes": world.size,
        }


def _ordered(rows, order, device):
    """The rows of a tensor in this order, on the device; a store's lie where they lie, in their own."""
    if rows is None or isinstance(rows, MappedRows):
        return rows
    order = order.to(rows.device) if isinstance(order, torch.Tensor) else order
    return rows[order].detach().to(device, torch.float32)


def _sha256(rows):
    return rows.sha256 if isinstance(rows, MappedRows) else tensor_sha256(rows)


def _last_loss(state):
    """The latest loss; refuses to go on once a loss was NaN or infinite, as the student is then lost."""
    finite = torch.isfinite(state.losses[: state.step])
    if not finite.all():
        step = int((~finite).nonzero()[0]) + 1
        raise InputError(
            f"the distillation loss became NaN or infinite at step {step}; lower max_learning_rate"
        )
    return float(state.losses[state.step - 1])
