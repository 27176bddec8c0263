"""Time and peak memory of a synthesis into a store for growing numbers of impressions, batch sizes and classes.

Each size runs in a new process, so that its memory does not include that of another size.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.measure import Bench
from benchmarks.store.worker import Job, Worker, work_together

_STEPS, _SHARD = 2, 500
_FIXED = {"impressions": 4000, "batch": 100, "classes": 10}
_SIZES = {"impressions": [1000, 4000, 16000, 64000], "batch": [25, 100, 400, 1600], "classes": [10, 100, 1000]}
SHAPES = [(axis, size) for axis, sizes in _SIZES.items() for size in sizes]
QUICK_SHAPES = [("impressions", 100)]
PROVIDERS = ["zskd_fast"]
THREADS = [1]  # of the process
TURNS = 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
def test_growth(shape: tuple[str, int], threads: int, provider: str, bench: Bench, tmp_path: Path) -> None:
    bench.require_cpu()
    axis, size = shape
    impressions, batch, classes = (_FIXED | {axis: size}).values()
    sizes = {"impressions": impressions, "batch_size": batch, "shard_size": max(_SHARD, batch), "steps": _STEPS}
    changes: dict[str, object] = {f"synthesis.{name}": value for name, value in sizes.items()}
    job = Job(changes=changes, classes=classes, folder=str(tmp_path / "store"))
    answers: list[dict[str, Any]] = []
    with Worker(job) as worker:
        worker.wait_until_ready()
        measurement = bench(
            lambda: answers.extend(work_together([worker])),
            op=f"growth with {axis}",
            setting=f"LeNet-5, {_STEPS} steps",
            provider=provider,
            shape=str(size),
            items=impressions,
            once=True,
        )
    assert answers[0]["made"] == impressions
    measurement.peak_bytes.append(answers[0]["peak_bytes"])
    shutil.rmtree(tmp_path / "store")
