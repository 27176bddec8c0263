"""Checkpoints of a distillation: one file of torch.save from which it continues as if it had never stopped."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zskd_fast.config.identity import StudentIdentity
from zskd_fast.config.recipe import DistillationRecipe
from zskd_fast.config.serialization import by_another_version, differences, from_plain, require_keys, to_plain
from zskd_fast.errors import InputError
from zskd_fast.runtime.files import write_atomically

_KEYS = (
    *("identity", "step", "student", "optimizer", "scheduler", "losses", "learning_rates", "evaluations"),
    *("seconds", "phase_seconds"),
)


@dataclass
class TrainingState:
    """Everything that changes while the student learns."""

    student: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    losses: torch.Tensor
    """[steps] float32 on the student's device; entries from ``step`` on are still unset."""
    learning_rates: list[float] = field(default_factory=list)
    evaluations: list[tuple[int, float]] = field(default_factory=list)
    step: int = 0
    """Steps done."""
    phase_seconds: dict[str, float] = field(default_factory=dict)
    """Of this call and of the interrupted ones before it; likewise ``seconds``."""
    started: float = field(default_factory=time.perf_counter)
    """When the run would have started if it had not been interrupted, on the clock of this process."""

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    @classmethod
    def at_start(cls, student: nn.Module, recipe: DistillationRecipe, device: torch.device) -> TrainingState:
        """Return the state before the first step."""
        parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
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
        return cls(student, optimizer, scheduler, torch.zeros(recipe.steps, dtype=torch.float32, device=device))

    @property
    def are_losses_finite(self) -> bool:
        """Whether no step had a loss that is NaN or infinite; a GPU is waited for."""
        return bool(torch.isfinite(self.losses[: self.step]).all())


@dataclass(frozen=True, kw_only=True)
class TrainingIdentity:
    """All that a checkpoint depends on, besides its step."""

    student: StudentIdentity
    impressions: dict[str, str]
    """SHA-256 of x and, where the recipe uses them, of the stored logits."""
    gpu: dict[str, str]
    """What decides the rounding on a GPU, its model and libraries; empty on a CPU."""
    processes: int
    """Sums over other shares of a batch round differently, so the number of processes changes the student."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file of the run with this identity."""

    path: Path
    identity: TrainingIdentity

    def save(self, state: TrainingState) -> None:
        """Write the state; the file is never half-written. Raises InputError if the path cannot be written."""
        content = {
            "identity": to_plain(self.identity),
            "step": state.step,
            "student": state.student.state_dict(),
            "optimizer": state.optimizer.state_dict(),
            "scheduler": state.scheduler.state_dict(),
            "losses": state.losses[: state.step].clone(),
            "learning_rates": state.learning_rates,
            "evaluations": state.evaluations,
            "seconds": state.seconds,
            "phase_seconds": state.phase_seconds,
        }
        data = io.BytesIO()
        torch.save(content, data)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, data.getvalue())
        except OSError as error:
            raise InputError(f"cannot write the checkpoint {self.path}: {error}") from error

    def restore(self, state: TrainingState) -> None:
        """Load the saved state into ``state``; leave it unchanged if there is no file yet.

        Raises InputError if the file is no checkpoint, another version's or, with one line per differing field, another
        run's.
        """
        if not self.path.exists():
            return
        content = _read(self.path)
        identity = from_plain(TrainingIdentity, content["identity"], by_another_version(self.path, "file"))
        lines = differences(self.identity, identity, here="in this run", there="in the checkpoint")
        if lines:
            shown = "".join(f"\n  {line}" for line in lines)
            raise InputError(f"the checkpoint {self.path} belongs to another run; choose another file:{shown}")
        state.student.load_state_dict(content["student"])
        state.optimizer.load_state_dict(content["optimizer"])
        state.scheduler.load_state_dict(content["scheduler"])
        state.step = content["step"]
        state.losses[: state.step] = content["losses"]
        state.learning_rates = content["learning_rates"]
        state.evaluations = content["evaluations"]
        state.started -= content["seconds"]
        for phase, seconds in content["phase_seconds"].items():
            state.phase_seconds[phase] = state.phase_seconds.get(phase, 0.0) + seconds


class Saver:
    """Save a checkpoint from time to time.

    A state whose losses are not all finite is not saved, since its student is lost.
    """

    def __init__(self, file: Checkpoint, *, seconds: float, step: int):
        if not seconds >= 0:
            raise InputError(f"checkpoint_seconds must be 0 or more, got {seconds}")
        self.step = step
        """Step of the file; the same run would continue from it."""
        self._file = file
        self._seconds = seconds
        self._last = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether this many seconds have passed since the last checkpoint."""
        return time.monotonic() - self._last >= self._seconds

    def save(self, state: TrainingState) -> None:
        """Save a state after a finished step. Raises InputError if the file cannot be written."""
        if state.are_losses_finite:
            self._file.save(state)
            self.step = state.step
        self._last = time.monotonic()


def _read(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the reader of a damaged pickle can raise anything
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path} is not a readable checkpoint of a distillation: {reason}") from error
    if not isinstance(content, dict) or not isinstance(content.get("identity"), dict):
        raise InputError(f"{path} is not a readable checkpoint of a distillation: it has no identity")
    require_keys(content, _KEYS, by_another_version(path, "file"))
    return content
