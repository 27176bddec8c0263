"""A fresh process that makes one store of impressions when told to, and says how long and how much memory it took.

    python -m benchmarks.growth_worker IMPRESSIONS BATCH CLASSES STEPS THREADS FOLDER

Prints "ready" once everything is imported and built, waits for a line, works, prints a line of JSON.
"""

import dataclasses
import json
import sys
from pathlib import Path

import torch

from zskd_fast.config.recipe import load_recipe
from zskd_fast.models import LeNet5
from zskd_fast.store.store import Store
from zskd_fast.synthesis.synthesizer import Synthesizer, synthesize

_SHARD = 500


def main(impressions: int, batch: int, classes: int, steps: int, threads: int, folder: str) -> None:
    torch.set_num_threads(threads)
    recipe = load_recipe("demo-mnist")
    sizes = {
        "impressions": impressions,
        "batch_size": batch,
        "steps": steps,
        "shard_size": max(_SHARD, batch),
    }
    torch.manual_seed(0)
    synthesizer = Synthesizer(
        LeNet5(classes), recipe.input, dataclasses.replace(recipe.synthesis, **sizes), seed=0
    )
    synthesizer.run(range(batch))  # the first batch also pays for what torch sets up once
    print("ready", flush=True)
    sys.stdin.readline()
    store = Store.open_or_create(folder, synthesizer.fingerprint())
    made = synthesize(synthesizer, store, progress=False).made
    print(json.dumps({"made": made, "peak_bytes": peak_bytes()}), flush=True)


def peak_bytes() -> int:
    """Most resident memory of this process so far; getrusage would count the parent's too."""
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no line VmHWM")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:6]), sys.argv[6])
