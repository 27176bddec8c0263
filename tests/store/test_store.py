import dataclasses
import json
import os

import pytest
import torch
from safetensors import safe_open

from zskd_fast.errors import InputError
from zskd_fast.runtime.files import write_atomically
from zskd_fast.store import store as store_module
from zskd_fast.store.impressions import Impressions
from zskd_fast.store.store import Store, shard_name

FINGERPRINT = {
    "recipe": {
        "impressions": 10,
        "shard_size": 4,
        "store_dtype": "float32",
        "steps": 7,
        "betas": [1.0, 0.1],
    },
    "seed": 3,
    "teacher": {"class": "LeNet5", "sha256": "ab"},
}
COLUMNS = {"x", "target", "teacher_logits", "id", "class", "beta", "loss", "steps"}


def _impressions(ids):
    values = ids.float()
    return Impressions(
        x=values.reshape(-1, 1, 1, 1) / 7 + torch.zeros(1, 1, 2, 2),
        target=values.unsqueeze(1).expand(-1, 3),
        teacher_logits=-values.unsqueeze(1).expand(-1, 3),
        id=ids,
        class_index=ids % 3,
        beta=torch.ones(len(ids)),
        loss=values,
        steps=torch.full((len(ids),), 7),
    )


def _fill(store, shards=None):
    for shard in store.missing_shards() if shards is None else shards:
        store.write_shard(shard, _impressions(store.shard_ids(shard)))
    return store


def _bytes(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_shards_cut_the_ids_in_order(tmp_path):
    store = Store.open_or_create(tmp_path / "a", FINGERPRINT)
    assert store.num_shards == 3
    assert [store.shard_ids(shard).tolist() for shard in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_reads_back_the_very_bits(tmp_path):
    _fill(Store.open_or_create(tmp_path / "a", FINGERPRINT))
    store = Store.open(tmp_path / "a")
    assert store.is_complete
    expected = _impressions(torch.arange(10))
    for name, tensor in store.read_all().tensors().items():
        assert torch.equal(tensor, getattr(expected, name)), name
        assert tensor.dtype == getattr(expected, name).dtype


def test_values_between_the_steps_of_8_bits_survive(tmp_path):
    """The known fault: images kept as 8-bit files lose all but 256 levels, and their targets altogether."""
    _fill(Store.open_or_create(tmp_path / "a", FINGERPRINT))
    read = Store.open(tmp_path / "a").read_shard(0)
    assert read.x.dtype == torch.float32
    assert not torch.equal((read.x * 255).round() / 255, read.x)
    assert read.target.shape == read.teacher_logits.shape == (4, 3)


def test_a_shard_can_be_read_by_anyone_without_this_package(tmp_path):
    _fill(Store.open_or_create(tmp_path / "a", FINGERPRINT))
    with safe_open(tmp_path / "a" / "shard-000002.safetensors", framework="np") as file:
        assert set(file.keys()) == COLUMNS
        described = json.loads(file.metadata()["zskd_fast"])
        assert file.get_tensor("id").tolist() == [8, 9]
    # A shard does not say how large the store is: it is the same in a store that was extended later.
    recipe = {name: value for name, value in FINGERPRINT["recipe"].items() if name != "impressions"}
    assert described["fingerprint"]["recipe"] == recipe
    assert described["fingerprint"]["teacher"] == FINGERPRINT["teacher"]
    assert described["shard"] == 2
    assert set(described["versions"]) == {"torch", "zskd_fast"}


def test_a_run_goes_on_with_the_missing_shards(tmp_path):
    _fill(Store.open_or_create(tmp_path / "a", FINGERPRINT), [1])
    assert Store.open_or_create(tmp_path / "a", FINGERPRINT).missing_shards() == [0, 2]


def test_the_order_and_the_number_of_goes_leave_no_trace(tmp_path):
    _fill(Store.open_or_create(tmp_path / "one go", FINGERPRINT))
    for shard in (2, 0, 1):
        _fill(Store.open_or_create(tmp_path / "three goes", FINGERPRINT), [shard])
    assert _bytes(tmp_path / "one go") == _bytes(tmp_path / "three goes")


class Killed(BaseException):
    """Stands for a kill: nothing in the package catches it."""


@pytest.mark.parametrize("survived", range(8))
@pytest.mark.parametrize("moment", ["before the rename", "after the rename"])
def test_killed_at_any_write_the_resumed_store_is_the_same(tmp_path, monkeypatch, survived, moment):
    """A shard whose manifest was never written is one of the cases."""
    _fill(Store.open_or_create(tmp_path / "whole", FINGERPRINT))
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
    # A real kill runs no clean-up either.
    monkeypatch.setattr(store_module, "write_atomically", _write_without_clean_up)
    try:
        _fill(Store.open_or_create(tmp_path / "killed", FINGERPRINT))
    except Killed:
        assert survived < 7
    else:
        assert survived == 7  # the manifest of the empty store, and two files for each of the three shards
    monkeypatch.undo()
    _fill(Store.open_or_create(tmp_path / "killed", FINGERPRINT))
    assert _bytes(tmp_path / "killed") == _bytes(tmp_path / "whole")


def _write_without_clean_up(path, data):
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def test_the_manifest_is_written_after_the_shard_that_it_lists(tmp_path, monkeypatch):
    written = []
    real = write_atomically
    monkeypatch.setattr(
        store_module, "write_atomically", lambda path, data: written.append(path.name) or real(path, data)
    )
    _fill(Store.open_or_create(tmp_path / "a", FINGERPRINT), [0])
    assert written == ["manifest.json", "shard-000000.safetensors", "manifest.json"]


def test_another_run_is_refused_with_one_line_per_difference(tmp_path):
    _fill(Store.open_or_create(tmp_path / "a", FINGERPRINT), [0])
    before = _bytes(tmp_path / "a")
    other = {**FINGERPRINT, "recipe": {**FINGERPRINT["recipe"], "steps": 8}, "seed": 4, "layer": "fc"}
    with pytest.raises(InputError) as error:
        Store.open_or_create(tmp_path / "a", other)
    assert str(error.value).splitlines()[1:] == [
        "  layer: 'fc' in this run, nothing in the store",
        "  recipe.steps: 8 in this run, 7 in the store",
        "  seed: 4 in this run, 3 in the store",
    ]
    assert _bytes(tmp_path / "a") == before


def _of_size(count, **changes):
    return {**FINGERPRINT, "recipe": {**FINGERPRINT["recipe"], "impressions": count}, **changes}


def test_an_extended_store_keeps_its_whole_shards_and_is_as_if_made_at_once(tmp_path):
    _fill(Store.open_or_create(tmp_path / "at once", _of_size(15)))
    _fill(Store.open_or_create(tmp_path / "extended", _of_size(10)))
    store = Store.open_or_create(tmp_path / "extended", _of_size(15))
    assert store.missing_shards() == [2, 3]  # shard 2 held two impressions of four
    assert Store.open(tmp_path / "extended").num_impressions == 15
    assert _bytes(tmp_path / "extended") != _bytes(tmp_path / "at once")
    _fill(store)
    assert _bytes(tmp_path / "extended") == _bytes(tmp_path / "at once")


def test_a_store_of_whole_shards_is_extended_by_new_ones_only(tmp_path):
    _fill(Store.open_or_create(tmp_path / "a", _of_size(8)))
    assert Store.open_or_create(tmp_path / "a", _of_size(9)).missing_shards() == [2]


def test_a_store_is_neither_cut_down_nor_extended_by_another_run(tmp_path):
    _fill(Store.open_or_create(tmp_path / "a", FINGERPRINT))
    before = _bytes(tmp_path / "a")
    with pytest.raises(InputError, match=r"recipe\.impressions: 9 in this run, 10 in the store"):
        Store.open_or_create(tmp_path / "a", _of_size(9))
    with pytest.raises(InputError, match="seed: 4 in this run, 3 in the store"):
        Store.open_or_create(tmp_path / "a", _of_size(15, seed=4))
    assert _bytes(tmp_path / "a") == before


def test_a_shard_of_the_former_size_is_not_listed_in_a_store_that_was_extended_meanwhile(tmp_path):
    slow = Store.open_or_create(tmp_path / "a", _of_size(10))
    impressions = _impressions(slow.shard_ids(2))
    Store.open_or_create(tmp_path / "a", _of_size(12))
    with pytest.raises(InputError, match="not those of shard 2"):
        slow.write_shard(2, impressions)
    assert 2 in Store.open(tmp_path / "a").missing_shards()


def test_resume_says_whether_a_store_may_or_must_be_there(tmp_path):
    with pytest.raises(InputError, match='no store to go on with, and resume is "must"'):
        Store.open_or_create(tmp_path / "a", FINGERPRINT, resume="must")
    assert not (tmp_path / "a").exists()
    Store.open_or_create(tmp_path / "a", FINGERPRINT, resume="never")
    Store.open_or_create(tmp_path / "a", FINGERPRINT, resume="must")
    with pytest.raises(InputError, match='a store already, and resume is "never"'):
        Store.open_or_create(tmp_path / "a", FINGERPRINT, resume="never")
    with pytest.raises(InputError, match="resume must be one of auto, never, must, got 'perhaps'"):
        Store.open_or_create(tmp_path / "a", FINGERPRINT, resume="perhaps")


def test_writers_that_know_nothing_of_each_other_lose_no_shard(tmp_path):
    """Each holds a manifest from before the other's shard: written as it stands, it would drop that shard."""
    one, other = (Store.open_or_create(tmp_path / "a", FINGERPRINT) for _ in range(2))
    _fill(one, [0, 2])
    _fill(other, [1])
    assert Store.open(tmp_path / "a").is_complete


def test_a_claimed_shard_is_refused_to_others_until_it_is_let_go(tmp_path):
    one, other = (Store.open_or_create(tmp_path / "a", FINGERPRINT) for _ in range(2))
    with one.claim(1) as claimed, other.claim(1) as twice, other.claim(2) as another:
        assert (claimed, twice, another) == (True, False, True)
    with other.claim(1) as claimed:
        assert claimed


def test_other_software_may_read_a_finished_store_but_not_finish_one(tmp_path, monkeypatch):
    _fill(Store.open_or_create(tmp_path / "half", FINGERPRINT), [0])
    _fill(Store.open_or_create(tmp_path / "whole", FINGERPRINT))
    monkeypatch.setattr(torch, "__version__", "99.0")
    assert Store.open_or_create(tmp_path / "whole", FINGERPRINT).is_complete
    with pytest.raises(InputError, match=r"versions\.torch: '99\.0' in this run"):
        Store.open_or_create(tmp_path / "half", FINGERPRINT)


def test_a_shard_cut_short_or_deleted_is_made_again(tmp_path):
    store = _fill(Store.open_or_create(tmp_path / "a", FINGERPRINT))
    before = _bytes(tmp_path / "a")
    path = tmp_path / "a" / shard_name(1)
    path.write_bytes(path.read_bytes()[:-1])
    (tmp_path / "a" / shard_name(2)).unlink()
    assert store.missing_shards() == [1, 2]
    with pytest.raises(InputError, match=r"shard-000001\.safetensors is missing or cut short"):
        store.read_all()
    _fill(Store.open_or_create(tmp_path / "a", FINGERPRINT))
    assert _bytes(tmp_path / "a") == before


def test_a_shard_with_a_changed_bit_is_named(tmp_path):
    store = _fill(Store.open_or_create(tmp_path / "a", FINGERPRINT))
    path = tmp_path / "a" / shard_name(1)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"shard-000001\.safetensors is not what the manifest lists"):
        store.read_all()
    assert [shard for shard in range(3) if store.fault(shard)] == [1]


def test_impressions_of_another_shard_are_not_written(tmp_path):
    store = Store.open_or_create(tmp_path / "a", FINGERPRINT)
    with pytest.raises(InputError, match="not those of shard 1"):
        store.write_shard(1, _impressions(store.shard_ids(0)))
    assert store.missing_shards() == [0, 1, 2]


def test_strided_tensors_are_written_as_their_values(tmp_path):
    store = Store.open_or_create(tmp_path / "a", FINGERPRINT)
    impressions = _impressions(torch.arange(8))[::2]
    store.write_shard(0, dataclasses.replace(impressions, id=store.shard_ids(0)))
    assert torch.equal(store.read_shard(0).x, impressions.x)


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match=r"not empty .*thesis\.txt"):
        Store.open_or_create(tmp_path, FINGERPRINT)
    assert _bytes(tmp_path) == {"thesis.txt": b"precious"}


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write the store .*file"):
        Store.open_or_create(tmp_path / "file" / "store", FINGERPRINT)


def test_a_manifest_changed_by_hand_is_refused(tmp_path):
    _fill(Store.open_or_create(tmp_path / "a", FINGERPRINT))
    path = tmp_path / "a" / "manifest.json"
    path.write_text(path.read_text().replace('"impressions": 10', '"impressions": 8'))
    with pytest.raises(InputError, match="changed after it was written"):
        Store.open(tmp_path / "a")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 99}', "\xff", "[" * 100_000])
def test_a_damaged_manifest_is_named(tmp_path, text):
    (tmp_path / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"manifest\.json"):
        Store.open(tmp_path)


def test_no_store_is_said_to_be_none(tmp_path):
    with pytest.raises(InputError, match="holds no store"):
        Store.open(tmp_path / "nowhere")


def test_a_failed_write_leaves_the_old_file_and_no_temporary_one(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert _bytes(tmp_path) == {"file": b"old"}
