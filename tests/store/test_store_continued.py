"""A store that is continued: after a kill, by several writers, and with more impressions."""

import os

import pytest
from small_models import all_impressions
from small_stores import files_of, fill, numbered_impressions, open_small_store

from zskd_fast.errors import InputError
from zskd_fast.runtime.files import write_atomically
from zskd_fast.store import manifest as manifest_module
from zskd_fast.store import store as store_module
from zskd_fast.store.manifest import shard_name
from zskd_fast.store.store import Store


def test_a_run_continues_with_the_missing_shards(tmp_path):
    fill(open_small_store(tmp_path / "a"), [1])
    assert open_small_store(tmp_path / "a").missing_shards() == [0, 2]


def test_the_files_depend_neither_on_the_order_nor_on_interruptions(tmp_path):
    fill(open_small_store(tmp_path / "one run"))
    for shard in (2, 0, 1):
        fill(open_small_store(tmp_path / "three runs"), [shard])
    assert files_of(tmp_path / "one run") == files_of(tmp_path / "three runs")


class Killed(BaseException):
    """A simulated kill: nothing in the package catches it."""


@pytest.mark.parametrize("survived", range(8))
@pytest.mark.parametrize("moment", ["before the rename", "after the rename"])
def test_killed_at_any_write_the_resumed_store_is_the_same(tmp_path, monkeypatch, survived, moment):
    """A shard whose manifest was never written is one of the cases."""
    fill(open_small_store(tmp_path / "whole"))
    renames = []
    real = os.replace

    def replace(source, target):
        renames.append(target)
        if len(renames) > survived:
            if moment == "after the rename":
                real(source, target)
            raise Killed
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    # A real kill runs no cleanup either.
    for module in (store_module, manifest_module):
        monkeypatch.setattr(module, "write_atomically", _write_without_cleanup)
    try:
        fill(open_small_store(tmp_path / "killed"))
    except Killed:
        assert survived < 7
    else:
        assert survived == 7  # the manifest of the empty store and two files for each of three shards
    monkeypatch.undo()
    fill(open_small_store(tmp_path / "killed"))
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


def _write_without_cleanup(path, data):
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def test_the_manifest_is_written_after_the_shard_that_it_lists(tmp_path, monkeypatch):
    written = []
    real = write_atomically
    for module in (store_module, manifest_module):
        monkeypatch.setattr(
            module, "write_atomically", lambda path, data: written.append(path.name) or real(path, data)
        )
    fill(open_small_store(tmp_path / "a"), [0])
    assert written == ["manifest.json", "shard-000000.safetensors", "manifest.json"]


def test_a_shard_cut_short_or_deleted_is_made_again(tmp_path):
    store = fill(open_small_store(tmp_path / "a"))
    before = files_of(tmp_path / "a")
    path = tmp_path / "a" / shard_name(1)
    path.write_bytes(path.read_bytes()[:-1])
    (tmp_path / "a" / shard_name(2)).unlink()
    assert store.missing_shards() == [1, 2]
    with pytest.raises(InputError, match=r"shard-000001\.safetensors is missing or cut short"):
        all_impressions(store)
    fill(open_small_store(tmp_path / "a"))
    assert files_of(tmp_path / "a") == before


def test_two_writers_lose_no_shard(tmp_path):
    """Each has read the manifest before the other's shard was listed; writing that manifest would drop the shard."""
    one, other = (open_small_store(tmp_path / "a") for _ in range(2))
    fill(one, [0, 2])
    fill(other, [1])
    assert Store.open(tmp_path / "a").is_complete


def test_a_claimed_shard_is_refused_to_others_until_it_is_released(tmp_path):
    one, other = (open_small_store(tmp_path / "a") for _ in range(2))
    with one.claim(1) as claimed, other.claim(1) as twice, other.claim(2) as another:
        assert (claimed, twice, another) == (True, False, True)
    with other.claim(1) as claimed:
        assert claimed


def test_an_extended_store_keeps_its_full_shards_and_equals_one_made_at_once(tmp_path):
    fill(open_small_store(tmp_path / "at once", impressions=15))
    fill(open_small_store(tmp_path / "extended", impressions=10))
    store = open_small_store(tmp_path / "extended", impressions=15)
    assert store.missing_shards() == [2, 3]  # shard 2 held two impressions of four
    assert Store.open(tmp_path / "extended").num_impressions == 15
    assert files_of(tmp_path / "extended") != files_of(tmp_path / "at once")
    fill(store)
    assert files_of(tmp_path / "extended") == files_of(tmp_path / "at once")


def test_a_store_of_full_shards_is_extended_by_new_ones_only(tmp_path):
    fill(open_small_store(tmp_path / "a", impressions=8))
    assert open_small_store(tmp_path / "a", impressions=9).missing_shards() == [2]


def test_a_last_shard_of_the_old_size_is_refused_after_the_store_was_extended(tmp_path):
    slow = open_small_store(tmp_path / "a", impressions=10)
    impressions = numbered_impressions(slow.shard_ids(2))
    open_small_store(tmp_path / "a", impressions=12)
    with pytest.raises(InputError, match="not those of shard 2"):
        slow.write_shard(2, impressions)
    assert 2 in Store.open(tmp_path / "a").missing_shards()
