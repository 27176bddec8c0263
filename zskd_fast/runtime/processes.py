"""Cooperating processes, on one machine or many, started by torchrun or a similar launcher."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import distributed as dist

from zskd_fast.errors import InputError

_T = TypeVar("_T")
_VARIABLES = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}


@dataclass(frozen=True)
class World:
    """The place of this process among the cooperating processes."""

    rank: int = 0
    """From 0 to size - 1."""
    size: int = 1
    """Number of processes."""
    local_rank: int = 0
    """Rank among the processes of this machine."""

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes shared files and prints."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor over all processes, computed in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def from_first(self, value: _T, device: torch.device) -> _T:
        """Return the first process's value in every process."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, device=device)
        return values[0]


def launched() -> World:
    """Return this process as RANK, WORLD_SIZE and LOCAL_RANK in the environment describe it (torchrun sets them).

    Without them, one process alone. Raises InputError if they contradict each other or are no integers.
    """
    given = [os.environ.get(name, default) for name, default in _VARIABLES.items()]
    with contextlib.suppress(ValueError):
        world = World(*map(int, given))
        if 0 <= world.rank < world.size and world.local_rank >= 0:
            return world
    shown = ", ".join(f"{name}={value}" for name, value in zip(_VARIABLES, given, strict=True))
    raise InputError(f"the environment must give 0 <= RANK < WORLD_SIZE and LOCAL_RANK >= 0, got {shown}")


def joined() -> World:
    """Return this process's place in torch's process group; one process alone if there is no group."""
    if not (dist.is_available() and dist.is_initialized()):
        return World()
    return World(dist.get_rank(), dist.get_world_size())


def require_alone(command: str) -> None:
    """Raise InputError if a command that is made for one process was started as one of several."""
    size = launched().size
    if size > 1:
        raise InputError(
            f"{command} works in one process, got WORLD_SIZE={size}; only synthesize and distill can use several"
        )


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[World]:
    """Join the launched processes while the context is active: NCCL on CUDA devices, gloo on CPUs.

    Does nothing for one process alone.
    """
    if launched().size == 1:
        yield World()
        return
    # torch's optimizers import this module. Imported while the group exists, it keeps the group and its threads alive:
    # a thread of gloo that releases its last tensor after the end of the interpreter aborts the process.
    importlib.import_module("torch._dynamo")
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield joined()
    except BaseException as error:
        _release_locals(error)
        raise
    finally:
        dist.destroy_process_group()


def _release_locals(error: BaseException | None) -> None:
    """Free what the functions that an exception has ended still hold, such as torch's wrapper of a shared model.

    The wrapper would outlive the group, and delete its last reference while it holds the interpreter's lock: it waits
    for a thread of gloo that may want the same lock to release its last tensor.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
    gc.collect()


def weighted(value: torch.Tensor, share: float) -> torch.Tensor:
    """Return value * share; the value itself for the share of a process alone, 1: on a GPU that is one launch less."""
    return value if share == 1 else value * share
