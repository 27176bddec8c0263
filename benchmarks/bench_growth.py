"""Time and peak memory of a synthesis into a store, as the impressions, the batch and the classes grow.

Each size is a fresh process of its own, so that no size inherits the memory of another.
"""

import json
import shutil
import subprocess
import sys

import pytest

from benchmarks import machine
from benchmarks.measure import Bench

_STEPS = 2
_BATCH, _CLASSES, _IMPRESSIONS = 100, 10, 4000
_AXES = ["impressions", "batch", "classes"]
_SIZES = {
    "impressions": [1000, 4000, 16000, 64000],
    "batch": [25, 100, 400, 1600],
    "classes": [10, 100, 1000],
}
SHAPES = [(axis, size) for axis in _AXES for size in _SIZES[axis]]
QUICK_SHAPES = [("impressions", 100)]
PROVIDERS = ["zskd_fast"]
THREADS = [1]  # steadier than all: what is asked here is how it grows
TURNS = 1


class _Worker:
    """The process of one size, stopped just before its work; see `benchmarks.growth_worker`."""

    def __init__(self, sizes, threads, folder):
        shutil.rmtree(folder, ignore_errors=True)
        words = [*map(str, (*sizes, _STEPS, threads)), str(folder)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.growth_worker", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=machine.ROOT,
        )
        assert self.process.stdout.readline() == "ready\n", "the worker did not start"

    def work(self):
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self.answer = self.process.stdout.readline()


def _sizes(axis, size):
    fixed = {"impressions": _IMPRESSIONS, "batch": _BATCH, "classes": _CLASSES}
    return tuple({**fixed, axis: size}.values())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
def test_growth(shape, threads, provider, bench: Bench, tmp_path):
    axis, size = shape
    worker = _Worker(_sizes(axis, size), threads, tmp_path / "store")
    measurement = bench(
        worker.work,
        op=f"growth with {axis}",
        setting=f"LeNet-5, {_STEPS} steps",
        provider=provider,
        shape=str(size),
        items=_sizes(axis, size)[0],
        once=True,
    )
    worker.process.communicate()
    answer = json.loads(worker.answer)
    assert answer["made"] == _sizes(axis, size)[0]
    measurement.peak_bytes.append(answer["peak_bytes"])
    shutil.rmtree(tmp_path / "store")
