"""New processes that make impressions when they are told to, so that their start is not timed.

python -m benchmarks.store.worker JOB    where JOB is the JSON of a `Job`
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from zskd_fast.config.recipe_files import changed, load_recipe
from zskd_fast.models import LeNet5
from zskd_fast.models.user_models import load_model
from zskd_fast.repro.setups import SETUPS
from zskd_fast.runtime.processes import launched
from zskd_fast.store.store import Store
from zskd_fast.synthesis.shards import synthesize
from zskd_fast.synthesis.synthesizer import Synthesizer

_SETUP = SETUPS["fast-mnist"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a process does: the recipe `demo` with changed options, for a LeNet-5 of MNIST."""

    changes: dict[str, object]
    """Options of the recipe that differ."""
    classes: int | None = None
    """Number of classes of an untrained LeNet-5, in place of the trained one."""
    folder: str | None = None
    """The store; None makes the impressions without a store."""


class Worker:
    """A process of one thread, as a context manager; it is killed at the end."""

    def __init__(self, job: Job, rank: int = 0, world_size: int = 1) -> None:
        world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "OMP_NUM_THREADS": 1}
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, json.dumps(dataclasses.asdict(job))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=machine.ROOT,
            env={**os.environ, **{name: str(value) for name, value in world.items()}},
        )

    def wait_until_ready(self) -> None:
        """Block until the work can begin."""
        assert self._read_line() == "ready\n", "the worker did not start"

    def go(self) -> None:
        """Begin the work; returns at once."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Wait for the end of the work; returns ``made`` (impressions) and ``peak_bytes`` (None outside Linux)."""
        return json.loads(self._read_line())

    def _read_line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def work_together(workers: Sequence[Worker]) -> list[dict[str, Any]]:
    """Let all workers work at once and wait for the slowest."""
    for worker in workers:
        worker.go()
    return [worker.answer() for worker in workers]


def main(job: Job) -> None:
    """In the process: report that it is ready, wait for the start, work, and print the answer as JSON."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    teacher = LeNet5(job.classes) if job.classes else load_model(_SETUP.teacher.model, _SETUP.teacher.weights)
    recipe = changed(load_recipe("demo"), job.changes).synthesis
    synthesizer = Synthesizer(teacher, _SETUP.input_spec, recipe, seed=0)
    # The first batch includes work that torch does only once.
    synthesizer.run(range(min(recipe.shard_size, recipe.batch_size)))
    print("ready", flush=True)
    sys.stdin.readline()
    made = _make(synthesizer, job.folder)
    print(json.dumps({"made": made, "peak_bytes": _peak_bytes()}), flush=True)


def _make(synthesizer: Synthesizer, folder: str | None) -> int:
    world, recipe = launched(), synthesizer.recipe
    count, size = recipe.impressions, recipe.shard_size
    if folder is None:
        shards = torch.arange(count).split(size)[world.rank :: world.size]
        return sum(len(synthesizer.run(ids)) for ids in shards)
    store = Store.open_or_create(folder, synthesizer.identity, impressions=count, shard_size=size)
    return synthesize(synthesizer, store, world=world, progress=False).made


def _peak_bytes() -> int | None:
    """Return the peak resident memory of this process; getrusage would include that of the parent."""
    status = Path("/proc/self/status")
    lines = status.read_text("utf-8").splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


if __name__ == "__main__":
    main(Job(**json.loads(sys.argv[1])))
