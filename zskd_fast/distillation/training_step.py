"""One step of the distillation as far as the student's gradients, on a GPU as a CUDA graph."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from zskd_fast import ops
from zskd_fast.config.recipe import DistillationRecipe
from zskd_fast.distillation.batches import Batches
from zskd_fast.distillation.shared_layers import SharedLayers
from zskd_fast.models.classifier import Classifier
from zskd_fast.runtime import cuda_graph
from zskd_fast.runtime.processes import World, weighted
from zskd_fast.runtime.seeds import seed_torch
from zskd_fast.runtime.timing import PhaseTimer
from zskd_fast.store.mapped_rows import MappedRows
from zskd_fast.synthesis.batch_norm import on_batch_statistics

Rows = torch.Tensor | MappedRows


class TrainingStep:
    """Make the batch of a step, let the teacher label it, and compute the student's loss and gradients.

    A step of a small student is some hundred short kernels, whose launches take a GPU's host longer than the kernels
    take the GPU. All of them are one CUDA graph, which is captured before the first step. With several processes, whose
    gradients are averaged in the backward pass, the steps run without it.
    """

    def __init__(
        self,
        teacher: Classifier,
        student: Classifier,
        shared: SharedLayers | None,
        batches: Batches,
        stored_logits: Rows | None,
        recipe: DistillationRecipe,
        *,
        seed: int,
        labels_on_batch: bool,
        timer: PhaseTimer,
        world: World,
    ):
        """``stored_logits`` take the place of the teacher's labels; ``labels_on_batch`` is about its statistics."""
        self._teacher, self._student, self._shared = teacher, student, shared
        self._batches, self._stored_logits, self._recipe = batches, stored_logits, recipe
        self._seed, self._labels_on_batch, self._timer, self._world = seed, labels_on_batch, timer, world
        self._parameters = [parameter for parameter in student.model.parameters() if parameter.requires_grad]
        self._loss = torch.zeros((), device=teacher.device)
        self._gradients: list[torch.Tensor] = []  # that a graph writes
        self._one = torch.ones((), device=teacher.device)
        self._replay: cuda_graph.Step | None = None

    def capture(self, step: int) -> None:
        """Capture the step, if the steps from this one to the last are worth it, for all later calls.

        The graph writes the gradients where they are now, so from then on they are overwritten and not set to None.
        """
        if self._world.size > 1 or not cuda_graph.pays(self._teacher.device, self._recipe.steps - step):
            return
        self._gradients = [torch.zeros_like(parameter) for parameter in self._parameters]
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        changed = [self._loss, *self._gradients, *self._student.model.buffers()]
        arguments = [value.clone() for value in self._values(step)]
        work = self._compute
        replay = cuda_graph.Graphs().captured(work, arguments, changed, self._timer)
        if replay is work:  # it cannot be captured
            self._gradients = []
        else:
            self._replay = replay

    def __call__(self, step: int) -> torch.Tensor:
        """Leave the gradients of a step (from 0) in the student's parameters and return its loss, a scalar.

        The loss is the mean over the batch of all processes. It is overwritten by the next call.
        """
        # A student with dropout draws from torch's generator, and a resumed run must draw alike.
        rank = f":{self._world.rank}" if self._world.rank else ""
        seed_torch(self._teacher.device, f"{self._seed}:{step}{rank}")
        compute = self._replay or self._compute
        compute(*self._values(step))
        return self._world.sum(self._loss)

    def _values(self, step: int) -> list[torch.Tensor]:
        """Return what differs from step to step."""
        drawn = self._batches.drawn(step)
        stored = [] if self._stored_logits is None else [self._stored_logits[drawn.rows]]
        return [drawn.positions, drawn.stored, *stored]

    def _compute(self, positions: torch.Tensor, stored: torch.Tensor, wanted: torch.Tensor | None = None) -> None:
        timer, shared = self._timer, self._shared
        with timer("augmentation"):
            x = self._batches.augmented(positions, stored)
        if wanted is None:
            with timer("teacher forward"), torch.no_grad(), self._teacher_watched():
                wanted = self._teacher.logits(x)
        with timer("student"), shared.watching_student() if shared else contextlib.nullcontext():
            logits = self._student.logits(x)
        # Scaled so that the average over the processes is the gradient of the whole batch: shares may differ by a row.
        share = len(x) / self._recipe.batch_size
        with timer("loss"):
            loss = ops.distillation_loss(logits, wanted, self._recipe.temperature)
            if shared:
                loss = torch.add(loss, shared.loss(share, self._world), alpha=self._recipe.feature_weight)
        with timer("student"):
            self._differentiate(weighted(loss, share * self._world.size))
            self._loss.copy_(weighted(loss.detach(), share))

    def _differentiate(self, loss: torch.Tensor) -> None:
        if not self._gradients:
            for parameter in self._parameters:
                parameter.grad = None
            loss.backward()
            return
        # One copy of all gradients: a backward pass would add each of them to zeros.
        unused = {"allow_unused": True, "materialize_grads": True}
        torch._foreach_copy_(self._gradients, torch.autograd.grad(loss, self._parameters, self._one, **unused))

    @contextlib.contextmanager
    def _teacher_watched(self) -> Iterator[None]:
        with contextlib.ExitStack() as held:
            if self._labels_on_batch:
                held.enter_context(on_batch_statistics(self._teacher.model))
            if self._shared:
                held.enter_context(self._shared.watching_teacher())
            yield
