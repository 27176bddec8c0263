"""A fresh process that makes its share of the impressions when told to, into a store or into nothing.

    python -m benchmarks.scaling_worker IMPRESSIONS SHARD STEPS [FOLDER]

RANK and WORLD_SIZE say which share, as for `zskd-fast synthesize`. It computes on one thread. Prints "ready" once
everything is imported and built, waits for a line, works, prints a line of JSON.
"""

import dataclasses
import json
import sys

import torch

from zskd_fast.config.recipe import load_recipe
from zskd_fast.models.loading import ASSETS, load_model
from zskd_fast.runtime.processes import launched
from zskd_fast.store.store import Store
from zskd_fast.synthesis.synthesizer import Synthesizer, synthesize


def main(impressions: int, shard: int, steps: int, folder: str | None) -> None:
    torch.set_num_threads(1)
    world, recipe = launched(), load_recipe("demo-mnist")
    teacher = load_model("zskd_fast.models:LeNet5", ASSETS / "lenet5-mnist.safetensors")
    sizes = {"impressions": impressions, "shard_size": shard, "steps": steps}
    synthesizer = Synthesizer(teacher, recipe.input, dataclasses.replace(recipe.synthesis, **sizes), seed=0)
    synthesizer.run(range(min(shard, recipe.synthesis.batch_size)))  # also pays for what torch sets up once
    print("ready", flush=True)
    sys.stdin.readline()
    if folder:
        store = Store.open_or_create(folder, synthesizer.fingerprint())
        share = {"rank": world.rank, "world_size": world.size}
        made = synthesize(synthesizer, store, **share, progress=False).made
    else:
        shards = torch.arange(impressions).split(shard)[world.rank :: world.size]
        made = sum(len(synthesizer.run(ids)) for ids in shards)
    print(json.dumps({"made": made}), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), *(sys.argv[4:] or [None]))
