"""The distiller: it trains the student on impressions only (section 3.4 of the paper)."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from zskd_fast.config.identity import StudentIdentity
from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.recipe import DistillationRecipe, Recipe
from zskd_fast.distillation.augmentation import check_augmentation
from zskd_fast.distillation.batches import Batches
from zskd_fast.distillation.calibration import calibrate
from zskd_fast.distillation.checkpoint import Checkpoint, Saver, TrainingIdentity, TrainingState
from zskd_fast.distillation.dormant_units import reset_dormant_units
from zskd_fast.distillation.dropout import Dropout
from zskd_fast.distillation.history import DistillationHistory
from zskd_fast.distillation.pruned_start import PrunedStart, pruned_start
from zskd_fast.distillation.shared_layers import SharedLayers
from zskd_fast.distillation.student_probe import probe_labels_on_batch, probe_student, training
from zskd_fast.distillation.training_step import Rows, TrainingStep
from zskd_fast.errors import InputError
from zskd_fast.models.classifier import Classifier, ForwardFn, LogitsFn, as_classifier, frozen, tensor_sha256
from zskd_fast.models.fast_copy import in_fast_layout
from zskd_fast.runtime.environment import cuda_facts
from zskd_fast.runtime.precision import repeatable
from zskd_fast.runtime.processes import World, joined
from zskd_fast.runtime.progress import progress_bar
from zskd_fast.runtime.seeds import check_seed, seed_torch
from zskd_fast.runtime.signals import StopRequest, continuing_from, signals_deferred
from zskd_fast.runtime.timing import PhaseTimer
from zskd_fast.store.impressions import Impressions
from zskd_fast.store.mapped_rows import MappedRows
from zskd_fast.store.store import Store
from zskd_fast.synthesis.batch_norm import batch_norms
from zskd_fast.synthesis.start_noise import check_noise

# Steps between two checks of the losses; between checks the host never waits for the device.
_CHECK_EVERY = 100


@dataclass(frozen=True)
class _Data:
    """What the student learns from; the rows are in the order of the ids of the impressions."""

    x: Rows
    teacher_logits: Rows | None
    """The stored logits; None if the teacher labels every batch."""
    calibrates: bool
    """Whether the student is calibrated on x."""

    def to(self, device: torch.device) -> _Data:
        logits = self.teacher_logits
        return replace(self, x=self.x.to(device), teacher_logits=None if logits is None else logits.to(device))


@dataclass(frozen=True)
class _Observer:
    """What the caller of `Distiller.fit` wants to see of the student while it learns."""

    evaluate: Callable[[nn.Module], float] | None
    evaluate_every: int
    progress: bool


class Distiller:
    """Train a student to give the teacher's answers: tau^2 KL at the recipe's temperature.

    Each step the teacher labels the augmented batch (without ``relabel`` its stored logits are used). No label of any
    data set is used. Teacher and student are on one device. In a process group of torch each process takes its share of
    every batch, and all end with the same student. The functions are those of `Classifier`.

    The constructor takes one step of the student in train mode on as many inputs of noise as a process has in a batch;
    nothing remains of it. Raises InputError if either model cannot be used, their classes differ, that step fails, the
    student has no parameter to train or training it changes the teacher, or the augmentation does not fit the input.
    """

    @torch.inference_mode(False)
    def __init__(
        self,
        teacher: nn.Module | Classifier,
        student: nn.Module | Classifier,
        input_spec: InputSpec,
        recipe: DistillationRecipe | Recipe,
        *,
        seed: int,
        logits_fn: LogitsFn | None = None,
        student_logits_fn: LogitsFn | None = None,
        forward_fn: ForwardFn | None = None,
        student_forward_fn: ForwardFn | None = None,
    ):
        check_seed(seed)
        recipe = recipe.distillation if isinstance(recipe, Recipe) else recipe
        check_augmentation(recipe.augmentation, input_spec)
        if recipe.fresh_noise.fraction:
            check_noise(recipe.fresh_noise, input_spec)
        self.recipe = recipe
        self.input_spec = input_spec
        self.seed = seed
        self.timer = PhaseTimer()
        self._teacher = as_classifier(teacher, input_spec, logits_fn=logits_fn, forward_fn=forward_fn)
        self._student = as_classifier(
            student, input_spec, role="student", logits_fn=student_logits_fn, forward_fn=student_forward_fn
        )
        self.device = self._teacher.device
        if self._student.device != self.device:
            raise InputError(f"the student is on {self._student.device}, the teacher on {self.device}")
        classes = self._teacher.num_classes, self._student.num_classes
        if classes[0] != classes[1]:
            raise InputError("the teacher has {} classes, but the student has {}".format(*classes))
        self._dropout = None if recipe.student_dropout else Dropout(self._student.model)
        self._uses_every_parameter = probe_student(
            self._teacher, self._student, recipe.batch_size, without=self._dropout
        )
        has_batch_norm = bool(batch_norms(self._teacher.model))
        self._labels_on_batch = recipe.batch_statistics and recipe.relabel and has_batch_norm
        if self._labels_on_batch:
            probe_labels_on_batch(self._teacher, recipe.batch_size)
        self._can_calibrate = recipe.calibrate_student and has_batch_norm and bool(batch_norms(self._student.model))
        self.pruned = pruned_start(self._teacher, self._student) if recipe.pruned_start else None
        self.shared = SharedLayers.of(self._teacher, self._student) if recipe.shared_layers and recipe.relabel else None

    @property
    def identity(self) -> StudentIdentity:
        """All that the student depends on, besides the impressions."""
        return StudentIdentity(
            seed=self.seed,
            input=self.input_spec,
            teacher=self._teacher.identity,
            student=self._student.identity,
            recipe=self.recipe,
        )

    @torch.inference_mode(False)
    @repeatable()
    def fit(
        self,
        impressions: Impressions | Store | torch.Tensor,
        *,
        progress: bool = True,
        evaluate: Callable[[nn.Module], float] | None = None,
        evaluate_every: int = 0,
        checkpoint: str | Path | None = None,
        checkpoint_seconds: float = 30.0,
    ) -> DistillationHistory:
        """Train the student in place; the same seed gives the same bits on the same machine.

        ``impressions`` are Impressions in memory (in any order; their ids decide), a finished Store, whose rows are
        read from the mapped files and which may be larger than memory, or a tensor x[N, *shape] in the raw range, which
        needs ``relabel``. A store is not hashed here: see ``zskd_fast.store.verify.require_whole``. ``evaluate`` is
        called with the student in eval mode every ``evaluate_every`` steps (0: never) and at the end; its value is
        recorded and changes nothing. ``checkpoint`` names a file that is written every ``checkpoint_seconds`` seconds
        (0: after every step; infinity: never) and at the end; if it exists, the run continues from it. With it, SIGTERM
        and Ctrl-C wait until the step is finished and the file is written. In a process group all processes pass the
        same arguments and read the same file, and a signal to one stops all after the same step; only the first writes
        the file, evaluates and shows progress.

        Raises InputError if the data do not fit, the checkpoint is another run's, or the loss becomes NaN.
        """
        start, world = time.perf_counter(), joined()
        if world.size > self.recipe.batch_size:
            got = f"{world.size} processes for a batch of {self.recipe.batch_size}"
            raise InputError(f"every process needs a row of each batch, got {got}")
        data = self._data(impressions)
        file = self._checkpoint(checkpoint, data, world)
        with (
            in_fast_layout(self._teacher),
            in_fast_layout(self._student, trains=True),
            training(self._teacher, self._student, without=self._dropout),
            self._layers_taken_over(),
        ):
            state = TrainingState.at_start(self._student.model, self.recipe, self.device)
            state.started, state.phase_seconds = start, self.timer.seconds
            if file:
                file.restore(state)
            saver = Saver(file, seconds=checkpoint_seconds, step=state.step) if file else None
            self._check_same_step(state, world)
            self._train(state, data.to(self.device), saver, _Observer(evaluate, evaluate_every, progress), world)
        return DistillationHistory(
            loss=state.losses.tolist(),
            learning_rate=state.learning_rates,
            evaluations=state.evaluations,
            seconds=state.seconds,
            phase_seconds=dict(state.phase_seconds),
            notes=self._notes(data),
        )

    def _train(self, state: TrainingState, data: _Data, saver: Saver | None, observer: _Observer, world: World) -> None:
        """Take the steps that are left, up to the last or to a signal; see `fit`."""
        shown = observer.progress and world.is_first
        if self.pruned and state.step == 0:
            self._set_first_weights(self.pruned, data.x, shown=shown)
        batches = Batches(data.x, self.recipe, self.input_spec, seed=self.seed, device=self.device, world=world)
        training_step = self._training_step(batches, data, world)
        training_step.capture(state.step)
        bar = progress_bar("distillation", total=self.recipe.steps, done=state.step, unit="step", shown=shown)
        with self._stoppable(saver, world) as request, bar:
            is_stopped, told = False, torch.zeros((), device=self.device)
            while state.step < self.recipe.steps and not is_stopped:
                self._reset_dormant_units(batches, state.step, world)
                self._update(state, training_step(state.step))
                bar.update()
                if self._is_due(state, _CHECK_EVERY):
                    _require_finite_losses(state)
                    bar.set_postfix(loss=f"{float(state.losses[state.step - 1]):.4f}", refresh=False)
                self._observe(state, data, observer, world)
                if saver is None:
                    continue
                is_stopped, told = self._is_stopped(request, told, world)
                if world.is_first and (is_stopped or saver.is_due or state.step == self.recipe.steps):
                    with self.timer("io"):
                        saver.save(state)

    def _set_first_weights(self, pruned: PrunedStart, x: Rows, *, shown: bool) -> None:
        """Set the student's first weights from the teacher's; all processes compute the same, on whole batches."""
        batches = Batches(x, self.recipe, self.input_spec, seed=self.seed, device=self.device)

        def inputs() -> Iterator[torch.Tensor]:
            return (batches.of(step).x for step in range(math.ceil(pruned.num_inputs / self.recipe.batch_size)))

        projection = self.shared.projection if self.shared else None
        seed_torch(self.device, f"{self.seed}:start")  # for a student with dropout
        with self.timer("pruned start"):
            pruned.set_weights(inputs, projection, on_batch=self._labels_on_batch, shown=shown)

    def _training_step(self, batches: Batches, data: _Data, world: World) -> TrainingStep:
        return TrainingStep(
            self._teacher,
            _replicated(self._student, world, unused=not self._uses_every_parameter),
            self.shared,
            batches,
            data.teacher_logits,
            self.recipe,
            seed=self.seed,
            labels_on_batch=self._labels_on_batch,
            timer=self.timer,
            world=world,
        )

    def _observe(self, state: TrainingState, data: _Data, observer: _Observer, world: World) -> None:
        """Evaluate the student if that is due; in all processes calibrate it first, and always after the last step."""
        is_due = observer.evaluate is not None and self._is_due(state, observer.evaluate_every)
        if data.calibrates and (is_due or state.step == self.recipe.steps):
            with self.timer("calibration"):
                calibrate(self._student, data.x, self.recipe.batch_size)
        if world.is_first and observer.evaluate and is_due:
            with self.timer("evaluation"), frozen(self._student.model), torch.no_grad():
                state.evaluations.append((state.step, float(observer.evaluate(self._student.model))))

    def _notes(self, data: _Data) -> dict[str, str]:
        notes = {"pruned start": self.pruned.description} if self.pruned else {}
        notes |= {"shared layers": self.shared.description} if self.shared else {}
        uses = ["labels on the statistics of each batch"] if self._labels_on_batch else []
        uses += ["student calibrated on impressions"] if data.calibrates else []
        notes |= {"batch norm": ", ".join(uses)} if uses else {}
        is_off = self._dropout is not None and self._dropout.is_there
        return notes | ({"dropout": "that of the student is off while it learns"} if is_off else {})

    def _layers_taken_over(self) -> contextlib.AbstractContextManager[None]:
        return self.shared.taken_over(self.seed) if self.shared else contextlib.nullcontext()

    def _data(self, impressions: Impressions | Store | torch.Tensor) -> _Data:
        x: Rows
        teacher_logits: Rows | None = None
        if isinstance(impressions, Store):
            x = MappedRows(impressions, "x")
            if not self.recipe.relabel:
                teacher_logits = MappedRows(impressions, "teacher_logits")
        elif isinstance(impressions, Impressions):
            count = len(impressions)
            if any(tensor.shape[:1] != (count,) for tensor in impressions.tensors().values()):
                raise InputError(f"every tensor of the impressions must have {count} rows, one per id")
            order = impressions.id.argsort()
            x = impressions.x[order].detach().to(self.device, torch.float32)
            if not self.recipe.relabel:
                teacher_logits = impressions.teacher_logits[order].detach().to(self.device, torch.float32)
        elif isinstance(impressions, torch.Tensor):
            x = impressions.detach().to(self.device, torch.float32)
            self.input_spec.require_raw(x)
        else:
            kind = type(impressions).__name__
            raise InputError(f"impressions must be Impressions, a Store or a tensor x[N, *shape], got a {kind}")
        self._check_rows(x, teacher_logits)
        return _Data(x, teacher_logits, calibrates=self._can_calibrate and len(x) > 1 and _may_calibrate(impressions))

    def _check_rows(self, x: Rows, teacher_logits: Rows | None) -> None:
        if len(x.shape) == 0 or tuple(x.shape[1:]) != self.input_spec.shape or len(x) == 0:
            wanted = ["N", *self.input_spec.shape]
            raise InputError(f"the impressions have shape {list(x.shape)}, wanted {wanted} with N >= 1")
        if self.recipe.relabel:
            return
        if teacher_logits is None:
            raise InputError("without relabel the stored logits are needed, got a tensor; give Impressions or a Store")
        got, wanted = list(teacher_logits.shape), [len(x), self._teacher.num_classes]
        if got != wanted:
            raise InputError(f"without relabel, teacher_logits must have shape {wanted}, got {got}")

    def _checkpoint(self, path: str | Path | None, data: _Data, world: World) -> Checkpoint | None:
        if path is None:
            return None
        hashes = {"x": _sha256(data.x)}
        if data.teacher_logits is not None:
            hashes["teacher_logits"] = _sha256(data.teacher_logits)
        gpu = cuda_facts(self.device)
        identity = TrainingIdentity(student=self.identity, impressions=hashes, gpu=gpu, processes=world.size)
        return Checkpoint(Path(path), identity)

    @contextlib.contextmanager
    def _stoppable(self, saver: Saver | None, world: World) -> Iterator[StopRequest]:
        """Let signals wait for the end of a step if a checkpoint is kept; a KeyboardInterrupt names its step."""
        if saver is None:
            yield StopRequest()
            return
        finished = continuing_from(lambda: f"step {saver.step:,} of {self.recipe.steps:,}" if world.is_first else "")
        with finished, signals_deferred() as request:
            yield request

    def _is_stopped(self, request: StopRequest, told: torch.Tensor, world: World) -> tuple[bool, torch.Tensor]:
        """Return whether to stop now, the same in all processes, and how many of them have got a signal.

        With several processes the answer is that of the step before (``told``), for which no device needs to wait.
        """
        if world.size == 1:
            return bool(request), told
        if told:
            request.make()
        return bool(told), world.sum(torch.full_like(told, float(bool(request))))

    def _reset_dormant_units(self, batches: Batches, step: int, world: World) -> None:
        recipe = self.recipe.dormant_units
        is_late = step >= min(recipe.until_fraction * self.recipe.steps, recipe.until_step)
        if recipe.every and step % recipe.every == 0 and not is_late:
            with self.timer("dormant units"):
                # The step makes this batch again, on a GPU inside its graph: one batch more in every `every` steps.
                reset_dormant_units(self._student, batches.of(step).x, recipe, world)

    def _update(self, state: TrainingState, loss: torch.Tensor) -> None:
        with self.timer("update"):
            state.losses[state.step] = loss
            state.learning_rates.append(float(state.scheduler.get_last_lr()[0]))
            state.optimizer.step()
            state.step += 1
            if state.step < self.recipe.steps:
                state.scheduler.step()

    def _is_due(self, state: TrainingState, every: int) -> bool:
        return state.step == self.recipe.steps or (every > 0 and state.step % every == 0)

    def _check_same_step(self, state: TrainingState, world: World) -> None:
        steps = world.sum(torch.tensor(float(state.step), device=self.device))
        if steps != state.step * world.size:
            raise InputError("the processes read different checkpoints; put the file where all of them see it")


def _may_calibrate(impressions: Impressions | Store | torch.Tensor) -> bool:
    """Whether impressions may have the statistics of the training data; a store tells how its own were made."""
    if not isinstance(impressions, Store):
        return True
    recipe = impressions.identity.recipe
    return recipe.steps > 0 and recipe.statistics_prior > 0


def _sha256(rows: Rows) -> str:
    return rows.sha256 if isinstance(rows, MappedRows) else tensor_sha256(rows)


def _require_finite_losses(state: TrainingState) -> None:
    """Raise InputError that names the first step with a loss that is NaN or infinite: the student is lost then."""
    if not state.are_losses_finite:
        finite = torch.isfinite(state.losses[: state.step])
        step = int((~finite).nonzero()[0]) + 1
        raise InputError(f"the distillation loss became NaN or infinite at step {step}; lower max_learning_rate")


def _replicated(student: Classifier, world: World, *, unused: bool) -> Classifier:
    """Return the student with gradients averaged over all processes, which start from the first one's weights.

    ``unused`` says that some parameters get no gradient.
    """
    if world.size == 1:
        return student
    shared = copy.copy(student)
    shared.model = DistributedDataParallel(student.model, find_unused_parameters=unused)
    return shared
