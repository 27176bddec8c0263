"""Kills runs of `synthesize` with SIGKILL at random moments and resumes them; run as a script.

    python killed_runs.py FOLDER KILLS SEED

Prints one line of JSON. One process imports torch once and forks every run, since imports take far longer than
the runs; it keeps to one thread, as a process with several cannot be forked safely.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from small_models import VECTOR, synthesis_recipe, vector_classifier

from zskd_fast import ops
from zskd_fast.store.store import Store
from zskd_fast.synthesis.synthesizer import Synthesizer, synthesize

RECIPE = synthesis_recipe(impressions=22, shard_size=4, steps=30, batch_size=4)
SHARDS = 6
# What a run does to the disk, any of which may be its last act.
ACTS = ("fsync", "replace", "open")


def fill(folder: Path, log: Path) -> None:
    """Resumes the store, noting in the log each shard that is begun."""
    synthesizer = Synthesizer(vector_classifier(), VECTOR, RECIPE, seed=1)
    store = Store.open_or_create(folder, synthesizer.fingerprint())
    run = synthesizer.run

    def noted(ids, **options):
        with open(log, "a") as file:
            file.write(f"{int(ids[0]) // RECIPE.shard_size}\n")
        return run(ids, **options)

    synthesizer.run = noted
    synthesize(synthesizer, store, progress=False)


def start(folder: Path, log: Path, *, die_at: int | None = None) -> int:
    """Forks a run; ``die_at`` is the number of the act on the disk, before or after which it kills itself."""
    child = os.fork()
    if child == 0:
        try:
            if die_at is not None:
                _die_at_act(die_at)
            fill(folder, log)
        except BaseException:  # a fork must never go on in the code of its parent
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    return child


def _die_at_act(number):
    acts = iter(range(10**6))

    def dying(act):
        def wrapped(*args, **options):
            if next(acts) == number // 2:
                if number % 2:
                    act(*args, **options)
                os.kill(os.getpid(), signal.SIGKILL)
            return act(*args, **options)

        return wrapped

    for name in ACTS:
        setattr(os, name, dying(getattr(os, name)))


def wait(child: int) -> int | None:
    """The signal that ended a run, or None if it came to its end."""
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status)
    if os.WEXITSTATUS(status):
        raise SystemExit("a run failed by itself")
    return None


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a store."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def main(folder: Path, kills: int, seed: int) -> dict[str, int]:
    """Kills and resumes until so many kills have hit; a store that is whole in between is compared and dropped."""
    torch.set_num_threads(1)
    ops.philox(torch.arange(1), 1, seed=0, stream=0)  # the first call of an op imports much of torch
    chance = random.Random(seed)
    began = time.perf_counter()
    wait(start(folder / "whole", folder / "log"))
    seconds, wanted = time.perf_counter() - began, contents(folder / "whole")
    result = {"kills": 0, "kills_at_the_disk": 0, "stores": 0, "identical": 0, "most_redone": 0}
    while result["kills"] < kills:
        store, log = folder / f"store-{result['stores']}", folder / f"log-{result['stores']}"
        killed = _kill_until_whole(store, log, chance, seconds, result)
        begun = [line for line in log.read_text().splitlines() if line]
        result["stores"] += 1
        result["identical"] += contents(store) == wanted
        # Shards begun beyond one each, per kill.
        result["most_redone"] = max(result["most_redone"], -(-(len(begun) - SHARDS) // max(killed, 1)))
    return result


def _kill_until_whole(store, log, chance, seconds, result):
    """One store, from nothing to whole; returns how many kills it took."""
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
