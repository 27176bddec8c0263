"""Several processes that work together, on one machine or many, started by torchrun or anything like it."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from zskd_fast.errors import InputError
from zskd_fast.models.classifier import Classifier

_T = TypeVar("_T")
_VARIABLES = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}


@dataclass(frozen=True)
class World:
    """Which of how many processes this one is."""

    rank: int = 0
    """From 0 to size - 1."""
    size: int = 1
    """Number of processes."""
    local_rank: int = 0
    """The same as rank, but counted on this machine alone."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def from_first(self, value: _T, device: torch.device) -> _T:
        """What the first process gives, in all of them."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, device=device)
        return values[0]


def launched() -> World:
    """This process by RANK, WORLD_SIZE and LOCAL_RANK in the environment, as torchrun sets them.

    One process alone without them. Raises InputError if they make no sense.
    """
    given = [os.environ.get(name, default) for name, default in _VARIABLES.items()]
    try:
        world = World(*map(int, given))
    except ValueError:
        world = None
    if world is None or not 0 <= world.rank < world.size or world.local_rank < 0:
        shown = ", ".join(f"{name}={value}" for name, value in zip(_VARIABLES, given, strict=True))
        raise InputError(f"the environment names no process among others: {shown}")
    return world


def joined() -> World:
    """This process in torch's process group; one process alone if there is none."""
    if not (dist.is_available() and dist.is_initialized()):
        return World()
    return World(dist.get_rank(), dist.get_world_size())


def require_alone(command: str) -> None:
    """Raises InputError if the command was started as one of several processes but is made for one."""
    size = launched().size
    if size > 1:
        raise InputError(
            f"{command} works in one process, got WORLD_SIZE={size}; several share synthesize and distill"
        )


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[World]:
    """Joins the launched processes meanwhile: by NCCL on CUDA devices, by gloo on CPUs; nothing for one alone."""
    if launched().size == 1:
        yield World()
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield joined()
    finally:
        dist.destroy_process_group()


def replicated(student: Classifier, world: World) -> Classifier:
    """The student with gradients that are averaged over all processes, which start from the first's weights."""
    if world.size == 1:
        return student
    shared = copy.copy(student)
    shared.model = DistributedDataParallel(student.model)
    return shared
