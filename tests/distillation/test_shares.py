"""Every shipped recipe under one, two and four processes, started by torchrun."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from recipes_worker import STEPS, cases
from small_models import IMAGE, image_classifier, open_store, synthesis_recipe

from zskd_fast.synthesis.shards import synthesize
from zskd_fast.synthesis.synthesizer import Synthesizer

TESTS = Path(__file__).parents[1]
SIZES = (1, 2, 4)
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{TESTS.parent}:{TESTS}/support", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each rank of each number of processes wrote: by size, then rank, then case."""
    folder = tmp_path_factory.mktemp("recipes")
    synthesizer = Synthesizer(image_classifier(), IMAGE, synthesis_recipe(impressions=90, shard_size=40), seed=1)
    synthesize(synthesizer, open_store(folder / "store", synthesizer), progress=False)
    for size in SIZES:
        words = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
        words += [str(TESTS / "support/recipes_worker.py"), str(folder / "store"), str(folder)]
        run = subprocess.run(words, capture_output=True, text=True, env=ENVIRONMENT)
        assert run.returncode == 0, run.stderr
    return {size: [json.loads((folder / f"{size}-{rank}.json").read_text()) for rank in range(size)] for size in SIZES}


@pytest.mark.parametrize("case", cases())
def test_all_processes_end_with_one_student_that_is_close_to_that_of_one_process(results, case):
    recipe, alone = cases()[case], results[1][0][case]
    assert len(alone["loss"]) == STEPS
    for size in SIZES[1:]:
        ranks = [rank[case] for rank in results[size]]
        assert len({rank["sha256"] for rank in ranks}) == 1, f"{size} processes have different students"
        assert all(rank["loss"] == ranks[0]["loss"] for rank in ranks)
        loss, wanted = torch.tensor(ranks[0]["loss"]), torch.tensor(alone["loss"])
        if (
            recipe.pruned_start
        ):  # the first loss is that of the same weights; Adam enlarges the rounding of small gradients
            assert float(loss[0]) == pytest.approx(float(wanted[0]), rel=1e-4)
            assert float(loss.mean()) == pytest.approx(float(wanted.mean()), rel=0.1)
        elif recipe.augmentation.mix_probability:  # a row is mixed with another partner
            assert float(loss.mean()) == pytest.approx(float(wanted.mean()), rel=0.1)
        elif recipe.dormant_units.every:  # the quantile of a unit's values is the mean of those of the shares
            torch.testing.assert_close(loss, wanted, rtol=0.02, atol=1e-5)
        else:  # the same inputs, summed in another order
            torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=1e-6)
            weights = (torch.tensor(each["weights"]) for each in (ranks[0], alone))
            torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="only /proc shows the threads of a process")
def test_no_thread_of_the_process_group_outlives_it(results):
    """A worker thread of gloo that released its last tensor after the end of the interpreter aborted the process."""
    for size in SIZES[1:]:
        assert all(rank["threads"] == [] for rank in results[size])
