"""Impressions per second of one and of two processes with one thread each, with a common store and without a store.

The gain of two processes without a store is the limit of the machine: they share only its cores, caches and memory.
"""

import contextlib
import shutil
from pathlib import Path
from typing import Any

from benchmarks.measure import Bench
from benchmarks.store.worker import Job, Worker, work_together

_STEPS = 50
_SHARDS = 8
_PROVIDERS = {
    "1 process": (1, True),
    "2 processes": (2, True),
    "1 process, no store": (1, False),
    "2 processes, no store": (2, False),
}
SHAPES = [800]  # impressions, in shards of one batch
QUICK_SHAPES = [16]
PROVIDERS = list(_PROVIDERS)
THREADS = [1]  # of each process
TURNS = 5
# The files of the first store with a number of impressions; the later ones must equal them.
_FIRST_STORE: dict[int, dict[str, bytes]] = {}


def _check_same_store(folder: Path, impressions: int) -> None:
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    first = _FIRST_STORE.setdefault(impressions, files)
    assert files == first, "the store depends on the number of processes"
    shutil.rmtree(folder)


def test_scaling(shape: int, threads: int, provider: str, bench: Bench, tmp_path: Path) -> None:
    bench.require_cpu()
    size, with_store = _PROVIDERS[provider]
    sizes = {"impressions": shape, "shard_size": shape // _SHARDS, "steps": _STEPS}
    changes: dict[str, object] = {f"synthesis.{name}": value for name, value in sizes.items()}
    job = Job(changes=changes, folder=str(tmp_path / "store") if with_store else None)
    answers: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker(job, rank, size)) for rank in range(size)]
        for worker in workers:
            worker.wait_until_ready()
        bench(
            lambda: answers.extend(work_together(workers)),
            op="scaling",
            setting=f"LeNet-5, {_STEPS} steps, {_SHARDS} shards",
            provider=provider,
            shape=str(shape),
            items=shape,
            once=True,
        )
    assert sum(answer["made"] for answer in answers) == shape
    if with_store:
        _check_same_store(tmp_path / "store", shape)
