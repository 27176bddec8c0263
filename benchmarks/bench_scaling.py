"""Impressions per second of one and of two processes of one thread each, with a store in common and without one.

What two processes without a store gain over one is the limit that the machine sets: they have nothing in common but
its cores, caches and memory.
"""

import contextlib
import shutil

from benchmarks.measure import Bench
from benchmarks.worker import Worker, work_together

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
# The files of the first store of so many impressions, which every later one has to equal.
_FIRST_STORE: dict[int, dict[str, bytes]] = {}


def _workers(size, impressions, folder, stack):
    words = [impressions, impressions // _SHARDS, _STEPS, *([folder] if folder else [])]
    workers = [
        stack.enter_context(
            Worker(
                "benchmarks.scaling_worker",
                *words,
                RANK=rank,
                WORLD_SIZE=size,
                LOCAL_RANK=rank,
                OMP_NUM_THREADS=1,
            )
        )
        for rank in range(size)
    ]
    for worker in workers:
        worker.wait_until_ready()
    return workers


def _check_same_store(folder, impressions):
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert files == _FIRST_STORE.setdefault(impressions, files), (
        "the store depends on the number of processes"
    )
    shutil.rmtree(folder)


def test_scaling(shape, threads, provider, bench: Bench, tmp_path):
    size, with_store = _PROVIDERS[provider]
    folder = tmp_path / "store" if with_store else None
    answers = []
    with contextlib.ExitStack() as stack:
        workers = _workers(size, shape, folder, stack)
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
        _check_same_store(folder, shape)
