"""Time and peak memory of a synthesis into a store, as the impressions, the batch and the classes grow.

Each size is a fresh process of its own, so that no size inherits the memory of another.
"""

import shutil
import sys

import pytest

from benchmarks.measure import Bench
from benchmarks.worker import Worker, work_together

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


def _sizes(axis, size):
    fixed = {"impressions": _IMPRESSIONS, "batch": _BATCH, "classes": _CLASSES}
    return tuple({**fixed, axis: size}.values())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
def test_growth(shape, threads, provider, bench: Bench, tmp_path):
    axis, size = shape
    words = [*_sizes(axis, size), _STEPS, threads, tmp_path / "store"]
    answers = []
    with Worker("benchmarks.growth_worker", *words) as worker:
        worker.wait_until_ready()
        measurement = bench(
            lambda: answers.extend(work_together([worker])),
            op=f"growth with {axis}",
            setting=f"LeNet-5, {_STEPS} steps",
            provider=provider,
            shape=str(size),
            items=_sizes(axis, size)[0],
            once=True,
        )
    assert answers[0]["made"] == _sizes(axis, size)[0]
    measurement.peak_bytes.append(answers[0]["peak_bytes"])
    shutil.rmtree(tmp_path / "store")
