"""Fill a store in shards of 1,000 and print memory and open files after each; run as a script.

python long_run.py FOLDER IMPRESSIONS
"""

import json
import os
import sys
from pathlib import Path

from small_models import VECTOR, open_store, synthesis_recipe, vector_classifier

from zskd_fast.synthesis.shards import synthesize
from zskd_fast.synthesis.synthesizer import Synthesizer


def resident_bytes() -> int:
    """Return the memory of this process in use now, not its peak."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main(folder: str, impressions: int) -> None:
    """Print one line of JSON per shard."""
    recipe = synthesis_recipe(impressions=impressions, shard_size=1000, batch_size=1000, steps=2)
    synthesizer = Synthesizer(vector_classifier(), VECTOR, recipe, seed=1)
    store = open_store(folder, synthesizer)
    write = store.write_shard

    def measured(shard, made):
        write(shard, made)
        facts = {"open_files": len(os.listdir("/proc/self/fd")), "resident_bytes": resident_bytes()}
        print(json.dumps({"impressions": 1000 * (shard + 1), **facts}))

    store.write_shard = measured
    synthesize(synthesizer, store, progress=False)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
