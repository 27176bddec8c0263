"""Kill runs of `synthesize` with SIGKILL at random moments and resume them; run as a script.

    python killed_runs.py FOLDER KILLS SEED

Prints one line of JSON. One process imports torch once and forks every run, since imports take far longer than the
runs. It has one thread, as a process with several cannot be forked safely.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from small_models import VECTOR, open_store, synthesis_recipe, vector_classifier

from zskd_fast import ops
from zskd_fast.synthesis.shards import synthesize
from zskd_fast.synthesis.synthesizer import Synthesizer

RECIPE = synthesis_recipe(impressions=22, shard_size=4, steps=30, batch_size=4)
SHARDS = 6
# Operations on the disk, at any of which a run may be killed.
DISK_OPERATIONS = ("fsync", "replace", "open")


def fill(folder: Path, log: Path) -> None:
    """Resume the store, and write to the log the number of each shard that is started."""

    class Noted(Synthesizer):
        def run(self, ids, **options):
            if self.recipe.steps:  # without steps it computes start noise, for the health line
                with open(log, "a") as file:
                    file.write(f"{int(ids[0]) // RECIPE.shard_size}\n")
            return super().run(ids, **options)

    synthesizer = Noted(vector_classifier(), VECTOR, RECIPE, seed=1)
    store = open_store(folder, synthesizer)
    synthesize(synthesizer, store, progress=False)


def start(folder: Path, log: Path, *, die_at: int | None = None) -> int:
    """Fork a run. ``die_at`` is the number of the operation on the disk before or after which it kills itself."""
    child = os.fork()
    if child == 0:
        try:
            if die_at is not None:
                _die_at_operation(die_at)
            fill(folder, log)
        except BaseException:  # a fork must never continue in the code of its parent
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    return child


def _die_at_operation(number):
    numbers = iter(range(10**6))

    def dying(operation):
        def wrapped(*args, **options):
            if next(numbers) == number // 2:
                if number % 2:
                    operation(*args, **options)
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*args, **options)

        return wrapped

    for name in DISK_OPERATIONS:
        setattr(os, name, dying(getattr(os, name)))


def wait(child: int) -> int | None:
    """Return the signal that ended a run, or None if it finished."""
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status)
    if os.WEXITSTATUS(status):
        raise SystemExit("a run failed by itself")
    return None


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file of a store."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def main(folder: Path, kills: int, seed: int) -> dict[str, int]:
    """Kill and resume until this many runs were killed; compare each store that is finished, then start another."""
    torch.set_num_threads(1)
    ops.philox(torch.arange(1), 1, seed=0, stream=0)  # the first call of an op imports much of torch
    chance = random.Random(seed)
    began = time.perf_counter()
    wait(start(folder / "whole", folder / "log"))
    seconds, wanted = time.perf_counter() - began, contents(folder / "whole")
    result = {"kills": 0, "kills_at_the_disk": 0, "stores": 0, "identical": 0, "most_redone": 0}
    while result["kills"] < kills:
        store, log = folder / f"store-{result['stores']}", folder / f"log-{result['stores']}"
        killed = _kill_until_finished(store, log, chance, seconds, result)
        begun = [line for line in log.read_text().splitlines() if line]
        result["stores"] += 1
        result["identical"] += contents(store) == wanted
        # Shards that were started more than once, per kill.
        result["most_redone"] = max(result["most_redone"], -(-(len(begun) - SHARDS) // max(killed, 1)))
    return result


def _kill_until_finished(store, log, chance, seconds, result):
    """Make one store, killing runs at random, and return how many were killed."""
    killed = 0
    while True:
        at_the_disk = chance.random() < 0.5
        child = start(store, log, die_at=chance.randrange(60) if at_the_disk else None)
        if not at_the_disk:
            time.sleep(chance.uniform(0, seconds))
            os.kill(child, signal.SIGKILL)
        if wait(child) is None:
            return killed
        killed += 1
        result["kills"] += 1
        result["kills_at_the_disk"] += at_the_disk


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
