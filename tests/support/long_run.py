"""Fills a store in shards of 1,000 and prints memory and open files after each; run as a script.

python long_run.py FOLDER IMPRESSIONS
"""

import json
import os
import sys
from pathlib import Path

from small_models import VECTOR, synthesis_recipe, vector_classifier

from zskd_fast.store.store import Store
from zskd_fast.synthesis.synthesizer import Synthesizer, synthesize


def resident_bytes() -> int:
    """Memory of this process that is in use now, not at its peak."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main(folder: str, impressions: int) -> None:
    """One line of JSON per shard."""
    recipe = synthesis_recipe(impressions=impressions, shard_size=1000, batch_size=1000, steps=2)
    synthesizer = Synthesizer(vector_classifier(), VECTOR, recipe, seed=1)
    store = Store.open_or_create(folder, synthesizer.fingerprint())
    write = store.write_shard

    def measured(shard, made):
        write(shard, made)
        facts = {"open_files": len(os.listdir("/proc/self/fd")), "resident_bytes": resident_bytes()}
        print(json.dumps({"impressions": 1000 * (shard + 1), **facts}))

    store.write_shard = measured
    synthesize(synthesizer, store, progress=False)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
