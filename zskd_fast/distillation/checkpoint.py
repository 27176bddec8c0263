"""Checkpoints of a distillation: one safetensors file from which it goes on as if never stopped."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors
from torch import nn

from zskd_fast.config.identity import differences
from zskd_fast.errors import InputError
from zskd_fast.runtime.files import write_atomically

_KEY = "zskd_fast"


@dataclass
class TrainingState:
    """What changes while the student learns."""

    student: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    losses: torch.Tensor
    """[steps] float32 on the student's device; entries from ``step`` on are yet to come."""
    learning_rates: list[float] = field(default_factory=list)
    evaluations: list[tuple[int, float]] = field(default_factory=list)
    step: int = 0
    """Steps done."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file of the run that ``fingerprint`` describes."""

    path: Path
    fingerprint: dict[str, Any]

    def save(self, state: TrainingState) -> None:
        """Writes the state, whole or not at all. Raises InputError if the path cannot be written."""
        described = {
            "fingerprint": self.fingerprint,
            "step": state.step,
            "learning_rates": state.learning_rates,
            "evaluations": state.evaluations,
            "param_groups": state.optimizer.state_dict()["param_groups"],
            "scheduler": state.scheduler.state_dict(),
        }
        data = safetensors.save(_tensors(state), {_KEY: json.dumps(described, sort_keys=True)})
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, data)
        except OSError as error:
            raise InputError(f"cannot write the checkpoint {self.path}: {error}") from error

    def restore(self, state: TrainingState) -> None:
        """Puts the saved state into ``state``; leaves it alone if there is no file yet.

        Raises InputError if the file is no checkpoint or, with one line per differing key, another run's.
        """
        if not self.path.exists():
            return
        described, tensors = _read(self.path)
        self._check_run(described)
        state.student.load_state_dict(_under("student.", tensors))
        groups = {"state": _optimizer_state(tensors), "param_groups": described["param_groups"]}
        state.optimizer.load_state_dict(groups)
        state.scheduler.load_state_dict(described["scheduler"])
        state.step = described["step"]
        state.losses[: state.step] = tensors["losses"]
        state.learning_rates = described["learning_rates"]
        state.evaluations = [(step, value) for step, value in described["evaluations"]]

    def _check_run(self, described):
        theirs = described["fingerprint"]
        lines = differences(self.fingerprint, theirs, here="in this run", there="in the checkpoint")
        if lines:
            shown = "".join(f"\n  {line}" for line in lines)
            raise InputError(
                f"the checkpoint {self.path} belongs to another run; choose another file:{shown}"
            )


def _tensors(state):
    tensors = {f"student.{name}": tensor for name, tensor in state.student.state_dict().items()}
    for index, moments in state.optimizer.state_dict()["state"].items():
        tensors.update({f"optimizer.{index}.{name}": tensor for name, tensor in moments.items()})
    tensors["losses"] = state.losses[: state.step]
    # Clones, since safetensors refuses tensors that share memory, as tied weights do.
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}


def _optimizer_state(tensors):
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in _under("optimizer.", tensors).items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    return state


def _read(path):
    try:
        with safe_open(path, framework="pt") as file:
            described = json.loads((file.metadata() or {})[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path} is not a readable checkpoint of a distillation: {error}") from error
    if "step" not in described:
        raise InputError(f"{path} is not a checkpoint of a distillation")
    return described, tensors


def _under(prefix, tensors):
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
