"""The store: what is written and read, and which folders are refused."""

import dataclasses
import json
import os

import pytest
import torch
from safetensors import safe_open
from small_models import all_impressions
from small_stores import STORED, files_of, fill, numbered_impressions, open_small_store

from zskd_fast.config.serialization import to_plain
from zskd_fast.errors import InputError
from zskd_fast.runtime.files import write_atomically
from zskd_fast.store.manifest import FORMAT, shard_name, software_versions
from zskd_fast.store.store import Store

COLUMNS = {"x", "target", "teacher_logits", "id", "class", "beta", "loss", "steps"}


def test_shards_hold_the_ids_in_order(tmp_path):
    store = open_small_store(tmp_path / "a")
    assert store.num_shards == 3
    assert [store.shard_ids(shard).tolist() for shard in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_reads_back_the_same_bits(tmp_path):
    fill(open_small_store(tmp_path / "a"))
    store = Store.open(tmp_path / "a")
    assert store.is_complete
    expected = numbered_impressions(torch.arange(10))
    for name, tensor in all_impressions(store).tensors().items():
        assert torch.equal(tensor, getattr(expected, name)), name
        assert tensor.dtype == getattr(expected, name).dtype


def test_values_between_the_steps_of_8_bits_survive(tmp_path):
    """Images in 8-bit files would lose all but 256 levels, and their targets."""
    fill(open_small_store(tmp_path / "a"))
    read = Store.open(tmp_path / "a").read_shard(0)
    assert read.x.dtype == torch.float32
    assert not torch.equal((read.x * 255).round() / 255, read.x)
    assert read.target.shape == read.teacher_logits.shape == (4, 3)


def test_a_shard_can_be_read_without_this_package(tmp_path):
    fill(open_small_store(tmp_path / "a"))
    with safe_open(tmp_path / "a" / "shard-000002.safetensors", framework="np") as file:
        assert set(file.keys()) == COLUMNS
        described = json.loads(file.metadata()["zskd_fast"])
        assert file.get_tensor("id").tolist() == [8, 9]
    # The metadata do not name the size of the store: they are the same in a store that was extended later.
    assert described == {
        "format": FORMAT,
        "identity": to_plain(STORED),
        "shard": 2,
        "shard_size": 4,
        "versions": software_versions(),
    }
    assert set(described["versions"]) == {"torch", "zskd_fast"}


def test_resume_decides_whether_a_store_may_or_must_exist(tmp_path):
    with pytest.raises(InputError, match='holds no store to resume, and resume is "must"'):
        open_small_store(tmp_path / "a", resume="must")
    assert not (tmp_path / "a").exists()
    open_small_store(tmp_path / "a", resume="never")
    open_small_store(tmp_path / "a", resume="must")
    with pytest.raises(InputError, match='a store already, and resume is "never"'):
        open_small_store(tmp_path / "a", resume="never")
    with pytest.raises(InputError, match="resume must be one of auto, never, must, got 'perhaps'"):
        open_small_store(tmp_path / "a", resume="perhaps")


def test_a_shard_with_a_changed_bit_is_named(tmp_path):
    store = fill(open_small_store(tmp_path / "a"))
    path = tmp_path / "a" / shard_name(1)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"shard-000001\.safetensors is not the file that was written"):
        all_impressions(store)
    assert [shard for shard in range(3) if store.fault(shard)] == [1]


def test_impressions_of_another_shard_are_not_written(tmp_path):
    store = open_small_store(tmp_path / "a")
    with pytest.raises(InputError, match="not those of shard 1"):
        store.write_shard(1, numbered_impressions(store.shard_ids(0)))
    assert store.missing_shards() == [0, 1, 2]


def test_strided_tensors_are_written_as_their_values(tmp_path):
    store = open_small_store(tmp_path / "a")
    impressions = numbered_impressions(torch.arange(8))[::2]
    store.write_shard(0, dataclasses.replace(impressions, id=store.shard_ids(0)))
    assert torch.equal(store.read_shard(0).x, impressions.x)


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match=r"not empty .*thesis\.txt"):
        open_small_store(tmp_path)
    assert files_of(tmp_path) == {"thesis.txt": b"precious"}


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write the store .*file"):
        open_small_store(tmp_path / "file" / "store")


def test_a_folder_without_a_store_is_named(tmp_path):
    with pytest.raises(InputError, match="holds no store"):
        Store.open(tmp_path / "nowhere")


def test_a_failed_write_leaves_the_old_file_and_no_temporary_one(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert files_of(tmp_path) == {"file": b"old"}
