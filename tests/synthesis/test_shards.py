"""Making the shards of a store: resumed, repaired, shared between processes."""

import pytest
import torch
from small_models import IMAGE, all_impressions, image_classifier, open_store, synthesis_recipe

from zskd_fast.errors import InputError
from zskd_fast.runtime.processes import World
from zskd_fast.store import manifest
from zskd_fast.store.store import Store
from zskd_fast.synthesis.shards import synthesize
from zskd_fast.synthesis.synthesizer import Synthesizer


def _synthesizer(seed=1):
    """20 impressions in shards of 8, 8 and 4."""
    return Synthesizer(image_classifier(), IMAGE, synthesis_recipe(), seed=seed)


def _files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _counts(summary):
    return summary.made, summary.reused, summary.elsewhere


def test_a_damaged_shard_is_not_repaired_on_another_device(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "cuda_facts", lambda device: {"device": "GPU 1"})
    synthesizer = _synthesizer()
    store = open_store(tmp_path / "a", synthesizer, device=synthesizer.device)
    synthesize(synthesizer, store, progress=False)
    monkeypatch.undo()
    assert _counts(synthesize(synthesizer, store, progress=False)) == (0, 20, 0)
    path = tmp_path / "a" / manifest.shard_name(1)
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")  # of the right size, so that only its hash tells
    with pytest.raises(InputError, match=r"versions\.device: nothing in this run, 'GPU 1' in the store"):
        synthesize(synthesizer, store, progress=False)


def test_a_store_completed_after_a_stop_has_the_bytes_of_an_uninterrupted_one(tmp_path):
    whole = _synthesizer()
    summary = synthesize(whole, open_store(tmp_path / "whole", whole), progress=False)
    assert _counts(summary) == (20, 0, 0)

    stopped = _synthesizer()
    store = open_store(tmp_path / "stopped", stopped)
    store.write_shard(1, stopped.run(store.shard_ids(1)))
    again = _synthesizer()
    store = open_store(tmp_path / "stopped", again)
    summary = synthesize(again, store, progress=False)
    assert _counts(summary) == (12, 8, 0)
    assert _files(tmp_path / "stopped") == _files(tmp_path / "whole")

    summary = synthesize(again, store, progress=False)
    assert _counts(summary) == (0, 20, 0)


def test_a_damaged_shard_is_made_again_and_no_other_file_is_written(tmp_path):
    synthesizer = _synthesizer()
    store = open_store(tmp_path / "a", synthesizer)
    synthesize(synthesizer, store, progress=False)
    before = _files(tmp_path / "a")
    stamps = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "a").glob("shard-*")}
    damaged = tmp_path / "a" / "shard-000001.safetensors"
    damaged.write_bytes(before[damaged.name][:-1] + b"\xff")
    summary = synthesize(synthesizer, store, progress=False)
    assert _counts(summary) == (8, 12, 0)
    assert _files(tmp_path / "a") == before
    changed = [name for name, stamp in stamps.items() if (tmp_path / "a" / name).stat().st_mtime_ns != stamp]
    assert changed == [damaged.name]


@pytest.mark.parametrize("damaged", [False, True])
def test_an_interrupt_right_after_a_shard_was_written_counts_it(tmp_path, monkeypatch, damaged):
    """20 impressions in shards of 8, 8 and 4; the others are missing or damaged, and do not count."""
    synthesizer = _synthesizer()
    store = open_store(tmp_path / "a", synthesizer)
    if damaged:
        synthesize(synthesizer, store, progress=False)
        for shard in (1, 2):
            path = tmp_path / "a" / manifest.shard_name(shard)
            path.write_bytes(path.read_bytes()[:-1] + b"\xff")
        (tmp_path / "a" / manifest.shard_name(0)).unlink()
    write = Store.write_shard

    def write_and_stop(self, shard, impressions):
        write(self, shard, impressions)
        if shard == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(Store, "write_shard", write_and_stop)
    with pytest.raises(KeyboardInterrupt, match=r"^8 of 20 impressions$"):
        synthesize(synthesizer, store, progress=False)
    monkeypatch.undo()
    assert _counts(synthesize(synthesizer, store, progress=False)) == (12, 8, 0)


def test_a_shard_that_another_process_is_making_is_left_to_it(tmp_path):
    synthesizer = _synthesizer()
    store = open_store(tmp_path / "a", synthesizer)
    with Store.open(tmp_path / "a").claim(1):
        summary = synthesize(synthesizer, store, progress=False)
    assert _counts(summary) == (12, 0, 8)
    assert store.missing_shards() == [1]


def test_a_shard_that_another_process_has_made_is_reused(tmp_path):
    synthesizer = _synthesizer()
    store = open_store(tmp_path / "a", synthesizer)
    synthesize(synthesizer, Store.open(tmp_path / "a"), world=World(rank=0, size=3), progress=False)
    assert store.missing_shards() == [0, 1, 2], "this store has not read the manifest again yet"
    assert _counts(synthesize(synthesizer, store, progress=False)) == (12, 8, 0)


def test_each_process_makes_its_share(tmp_path):
    synthesizer = _synthesizer()
    store = open_store(tmp_path / "a", synthesizer)
    made = [synthesize(synthesizer, store, world=World(rank, 2), progress=False).made for rank in range(2)]
    assert made == [12, 8]
    assert store.is_complete


def test_a_store_holds_what_run_returns(tmp_path):
    synthesizer = _synthesizer()
    store = open_store(tmp_path / "a", synthesizer)
    synthesize(synthesizer, store, progress=False)
    read = all_impressions(store).tensors()
    # A shard of 8 is two batches of 4, and so are the first 8 ids here: the rounding is the same.
    for name, tensor in synthesizer.run(range(20)).tensors().items():
        assert torch.equal(read[name], tensor), name


def test_the_store_of_another_synthesizer_is_not_written(tmp_path):
    store = open_store(tmp_path / "a", _synthesizer())
    with pytest.raises(InputError, match=r"belongs to another run.*\n  seed: 2 in this run, 1 in the store"):
        synthesize(_synthesizer(seed=2), store, progress=False)
    assert store.missing_shards() == [0, 1, 2]


def test_the_phases_are_timed_and_progress_is_shown_only_on_request(tmp_path, capsys):
    synthesizer = _synthesizer()
    summary = synthesize(synthesizer, open_store(tmp_path / "a", synthesizer), progress=True)
    shown = capsys.readouterr().err
    assert "20/20" in shown
    assert "impression/s" in shown
    wanted = {"targets", "teacher forward", "teacher backward", "loss", "update", "io"}
    assert set(summary.phase_seconds) == wanted
    assert 0 < sum(summary.phase_seconds.values()) <= summary.seconds
    synthesize(synthesizer, open_store(tmp_path / "b", synthesizer), progress=False)
    assert capsys.readouterr().err == ""
