"""The store: it is refused to another run, it survives kills, and it can be extended."""

import dataclasses
import json
import os

import pytest
import torch
from safetensors import safe_open
from small_models import (
    VECTOR,
    all_impressions,
    impression_identity,
    open_store,
    synthesis_recipe,
    vector_classifier,
)

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.serialization import to_plain
from zskd_fast.errors import InputError
from zskd_fast.runtime.files import write_atomically
from zskd_fast.store import manifest as manifest_module
from zskd_fast.store import store as store_module
from zskd_fast.store.impressions import Impressions
from zskd_fast.store.manifest import FORMAT, Manifest, ShardEntry, shard_name, software_versions
from zskd_fast.store.store import Store
from zskd_fast.synthesis.shards import synthesize
from zskd_fast.synthesis.synthesizer import Synthesizer

IDENTITY = impression_identity(input_spec=InputSpec((1, 2, 2)))
COLUMNS = {"x", "target", "teacher_logits", "id", "class", "beta", "loss", "steps"}


def _open(folder, identity=IDENTITY, *, impressions=10, shard_size=4, **options):
    """The store of this identity: 10 impressions in shards of 4, 4 and 2, unless given."""
    return Store.open_or_create(folder, identity, impressions=impressions, shard_size=shard_size, **options)


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


def _synthesizer(**recipe):
    return Synthesizer(vector_classifier(), VECTOR, synthesis_recipe(**recipe), seed=1)


def _bytes(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_shards_hold_the_ids_in_order(tmp_path):
    store = _open(tmp_path / "a")
    assert store.num_shards == 3
    assert [store.shard_ids(shard).tolist() for shard in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_reads_back_the_same_bits(tmp_path):
    _fill(_open(tmp_path / "a"))
    store = Store.open(tmp_path / "a")
    assert store.is_complete
    expected = _impressions(torch.arange(10))
    for name, tensor in all_impressions(store).tensors().items():
        assert torch.equal(tensor, getattr(expected, name)), name
        assert tensor.dtype == getattr(expected, name).dtype


def test_values_between_the_steps_of_8_bits_survive(tmp_path):
    """Images in 8-bit files would lose all but 256 levels, and their targets."""
    _fill(_open(tmp_path / "a"))
    read = Store.open(tmp_path / "a").read_shard(0)
    assert read.x.dtype == torch.float32
    assert not torch.equal((read.x * 255).round() / 255, read.x)
    assert read.target.shape == read.teacher_logits.shape == (4, 3)


def test_a_shard_can_be_read_without_this_package(tmp_path):
    _fill(_open(tmp_path / "a"))
    with safe_open(tmp_path / "a" / "shard-000002.safetensors", framework="np") as file:
        assert set(file.keys()) == COLUMNS
        described = json.loads(file.metadata()["zskd_fast"])
        assert file.get_tensor("id").tolist() == [8, 9]
    # The metadata do not name the size of the store: they are the same in a store that was extended later.
    assert described == {
        "format": FORMAT,
        "identity": to_plain(IDENTITY),
        "shard": 2,
        "shard_size": 4,
        "versions": software_versions(),
    }
    assert set(described["versions"]) == {"torch", "zskd_fast"}


def test_a_run_continues_with_the_missing_shards(tmp_path):
    _fill(_open(tmp_path / "a"), [1])
    assert _open(tmp_path / "a").missing_shards() == [0, 2]


def test_the_files_depend_neither_on_the_order_nor_on_interruptions(tmp_path):
    _fill(_open(tmp_path / "one run"))
    for shard in (2, 0, 1):
        _fill(_open(tmp_path / "three runs"), [shard])
    assert _bytes(tmp_path / "one run") == _bytes(tmp_path / "three runs")


class Killed(BaseException):
    """A simulated kill: nothing in the package catches it."""


@pytest.mark.parametrize("survived", range(8))
@pytest.mark.parametrize("moment", ["before the rename", "after the rename"])
def test_killed_at_any_write_the_resumed_store_is_the_same(tmp_path, monkeypatch, survived, moment):
    """A shard whose manifest was never written is one of the cases."""
    _fill(_open(tmp_path / "whole"))
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
        _fill(_open(tmp_path / "killed"))
    except Killed:
        assert survived < 7
    else:
        assert survived == 7  # the manifest of the empty store and two files for each of three shards
    monkeypatch.undo()
    _fill(_open(tmp_path / "killed"))
    assert _bytes(tmp_path / "killed") == _bytes(tmp_path / "whole")


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
    _fill(_open(tmp_path / "a"), [0])
    assert written == ["manifest.json", "shard-000000.safetensors", "manifest.json"]


@pytest.mark.parametrize(
    ("changes", "layout", "lines"),
    [
        ({}, {"shard_size": 5}, ["shard_size: 5 in this run, 4 in the store"]),
        ({"seed": 4}, {}, ["seed: 4 in this run, 3 in the store"]),
        ({"batch_size": 5}, {}, ["recipe.batch_size: 5 in this run, 4 in the store"]),
        ({"temperature": 10.0}, {}, ["recipe.temperature: 10.0 in this run, 20.0 in the store"]),
        (
            {"steps": 8, "seed": 4, "layer": "fc2"},
            {"shard_size": 5, "impressions": 9},
            [
                "impressions: 9 in this run, 10 in the store",
                "layer: 'fc2' in this run, 'fc' in the store",
                "recipe.steps: 8 in this run, 5 in the store",
                "seed: 4 in this run, 3 in the store",
                "shard_size: 5 in this run, 4 in the store",
            ],
        ),
    ],
)
@pytest.mark.parametrize("shards", [[0], [0, 1, 2]], ids=["unfinished", "finished"])
def test_another_run_is_refused_with_one_line_per_difference(tmp_path, changes, layout, lines, shards):
    _fill(_open(tmp_path / "a"), shards)
    before = _bytes(tmp_path / "a")
    identity = impression_identity(input_spec=IDENTITY.input, **changes)
    with pytest.raises(InputError) as error:
        _open(tmp_path / "a", identity, **layout)
    first, *rest = str(error.value).splitlines()
    assert first == f"the store {tmp_path / 'a'} belongs to another run; choose another folder:"
    assert rest == [f"  {line}" for line in lines]
    assert _bytes(tmp_path / "a") == before


def test_more_impressions_and_parallel_batches_open_the_same_store(tmp_path):
    """Neither changes an impression, so neither is part of the identity."""
    smaller = _synthesizer(impressions=16, parallel_batches=False)
    larger = _synthesizer(impressions=20, parallel_batches=True)
    assert smaller.identity == larger.identity
    synthesize(smaller, open_store(tmp_path / "a", smaller), progress=False)
    summary = synthesize(larger, open_store(tmp_path / "a", larger), progress=False)
    assert (summary.reused, summary.made) == (16, 4)
    synthesize(larger, open_store(tmp_path / "at once", larger), progress=False)
    assert _bytes(tmp_path / "a") == _bytes(tmp_path / "at once")


def test_a_synthesizer_refuses_to_fill_the_store_of_another(tmp_path):
    one, other = _synthesizer(), _synthesizer(temperature=10.0)
    store = open_store(tmp_path / "a", one)
    with pytest.raises(
        InputError, match=r"another run.*\n  recipe\.temperature: 10\.0 in this run, 20\.0 in the store$"
    ):
        synthesize(other, store, progress=False)
    assert store.missing_shards() == [0, 1, 2]


def test_the_manifest_is_typed_and_comes_back_as_it_was(tmp_path):
    _fill(_open(tmp_path / "a"), [0])
    manifest = Manifest.read(tmp_path / "a")
    data = (tmp_path / "a" / shard_name(0)).read_bytes()
    assert isinstance(manifest.entry(0), ShardEntry)
    assert manifest.entry(0).bytes == len(data) and manifest.entry(1) is None
    assert (manifest.identity, manifest.impressions, manifest.shard_size) == (IDENTITY, 10, 4)
    assert (manifest.format, manifest.versions, manifest.num_shards) == (FORMAT, software_versions(), 3)
    before = (tmp_path / "a" / "manifest.json").read_bytes()
    manifest.write(tmp_path / "a")
    assert (tmp_path / "a" / "manifest.json").read_bytes() == before
    store = Store.open(tmp_path / "a")
    assert (store.identity, store.num_impressions, store.shard_size) == (IDENTITY, 10, 4)
    assert store.x_dtype == torch.float32


def test_an_extended_store_keeps_its_full_shards_and_equals_one_made_at_once(tmp_path):
    _fill(_open(tmp_path / "at once", impressions=15))
    _fill(_open(tmp_path / "extended", impressions=10))
    store = _open(tmp_path / "extended", impressions=15)
    assert store.missing_shards() == [2, 3]  # shard 2 held two impressions of four
    assert Store.open(tmp_path / "extended").num_impressions == 15
    assert _bytes(tmp_path / "extended") != _bytes(tmp_path / "at once")
    _fill(store)
    assert _bytes(tmp_path / "extended") == _bytes(tmp_path / "at once")


def test_a_store_of_full_shards_is_extended_by_new_ones_only(tmp_path):
    _fill(_open(tmp_path / "a", impressions=8))
    assert _open(tmp_path / "a", impressions=9).missing_shards() == [2]


def test_a_store_is_neither_reduced_nor_extended_by_another_run(tmp_path):
    _fill(_open(tmp_path / "a"))
    before = _bytes(tmp_path / "a")
    with pytest.raises(InputError, match=r"impressions: 9 in this run, 10 in the store"):
        _open(tmp_path / "a", impressions=9)
    with pytest.raises(InputError, match="seed: 4 in this run, 3 in the store"):
        _open(tmp_path / "a", dataclasses.replace(IDENTITY, seed=4), impressions=15)
    assert _bytes(tmp_path / "a") == before


def test_a_last_shard_of_the_old_size_is_refused_after_the_store_was_extended(tmp_path):
    slow = _open(tmp_path / "a", impressions=10)
    impressions = _impressions(slow.shard_ids(2))
    _open(tmp_path / "a", impressions=12)
    with pytest.raises(InputError, match="not those of shard 2"):
        slow.write_shard(2, impressions)
    assert 2 in Store.open(tmp_path / "a").missing_shards()


def test_resume_decides_whether_a_store_may_or_must_exist(tmp_path):
    with pytest.raises(InputError, match='holds no store to resume, and resume is "must"'):
        _open(tmp_path / "a", resume="must")
    assert not (tmp_path / "a").exists()
    _open(tmp_path / "a", resume="never")
    _open(tmp_path / "a", resume="must")
    with pytest.raises(InputError, match='a store already, and resume is "never"'):
        _open(tmp_path / "a", resume="never")
    with pytest.raises(InputError, match="resume must be one of auto, never, must, got 'perhaps'"):
        _open(tmp_path / "a", resume="perhaps")


def test_two_writers_lose_no_shard(tmp_path):
    """Each has read the manifest before the other's shard was listed; writing that manifest would drop the shard."""
    one, other = (_open(tmp_path / "a") for _ in range(2))
    _fill(one, [0, 2])
    _fill(other, [1])
    assert Store.open(tmp_path / "a").is_complete


def test_a_claimed_shard_is_refused_to_others_until_it_is_released(tmp_path):
    one, other = (_open(tmp_path / "a") for _ in range(2))
    with one.claim(1) as claimed, other.claim(1) as twice, other.claim(2) as another:
        assert (claimed, twice, another) == (True, False, True)
    with other.claim(1) as claimed:
        assert claimed


def test_other_software_may_read_a_finished_store_but_not_finish_one(tmp_path, monkeypatch):
    _fill(_open(tmp_path / "half"), [0])
    _fill(_open(tmp_path / "whole"))
    monkeypatch.setattr(torch, "__version__", "99.0")
    assert _open(tmp_path / "whole").is_complete
    with pytest.raises(InputError, match=r"versions\.torch: '99\.0' in this run"):
        _open(tmp_path / "half")


GPU = torch.device("cuda")


def _on_gpu(monkeypatch, name="GPU 1"):
    """Let torch say that its CUDA devices are of this model."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)


def test_another_model_of_gpu_or_a_cpu_does_not_finish_a_store_but_may_read_it(tmp_path, monkeypatch):
    _on_gpu(monkeypatch)
    _fill(_open(tmp_path / "half", device=GPU), [0])
    _fill(_open(tmp_path / "whole", device=GPU))
    _fill(_open(tmp_path / "half", device=GPU), [1])
    assert Store.open(tmp_path / "half").manifest.versions["device"] == "GPU 1"
    _on_gpu(monkeypatch, "GPU 2")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91100)
    with pytest.raises(InputError) as refused:
        _open(tmp_path / "half", device=GPU)
    assert str(refused.value).splitlines()[1:] == [
        "  versions.cudnn: '91100' in this run, '91002' in the store",
        "  versions.device: 'GPU 2' in this run, 'GPU 1' in the store",
    ]
    with pytest.raises(InputError, match=r"versions\.device: nothing in this run, 'GPU 1' in the store"):
        _open(tmp_path / "half")
    assert _open(tmp_path / "whole", device=GPU).is_complete and _open(tmp_path / "whole").is_complete
    with pytest.raises(InputError, match=r"versions\.device"):
        _open(tmp_path / "whole", device=GPU, impressions=11)


def test_a_cpu_leaves_no_trace_in_the_manifest(tmp_path):
    _open(tmp_path / "a", device=torch.device("cpu"))
    _open(tmp_path / "b")
    assert _bytes(tmp_path / "a") == _bytes(tmp_path / "b")
    assert set(Store.open(tmp_path / "a").manifest.versions) == {"torch", "zskd_fast"}


def test_a_shard_cut_short_or_deleted_is_made_again(tmp_path):
    store = _fill(_open(tmp_path / "a"))
    before = _bytes(tmp_path / "a")
    path = tmp_path / "a" / shard_name(1)
    path.write_bytes(path.read_bytes()[:-1])
    (tmp_path / "a" / shard_name(2)).unlink()
    assert store.missing_shards() == [1, 2]
    with pytest.raises(InputError, match=r"shard-000001\.safetensors is missing or cut short"):
        all_impressions(store)
    _fill(_open(tmp_path / "a"))
    assert _bytes(tmp_path / "a") == before


def test_a_shard_with_a_changed_bit_is_named(tmp_path):
    store = _fill(_open(tmp_path / "a"))
    path = tmp_path / "a" / shard_name(1)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"shard-000001\.safetensors is not the file that was written"):
        all_impressions(store)
    assert [shard for shard in range(3) if store.fault(shard)] == [1]


def test_impressions_of_another_shard_are_not_written(tmp_path):
    store = _open(tmp_path / "a")
    with pytest.raises(InputError, match="not those of shard 1"):
        store.write_shard(1, _impressions(store.shard_ids(0)))
    assert store.missing_shards() == [0, 1, 2]


def test_strided_tensors_are_written_as_their_values(tmp_path):
    store = _open(tmp_path / "a")
    impressions = _impressions(torch.arange(8))[::2]
    store.write_shard(0, dataclasses.replace(impressions, id=store.shard_ids(0)))
    assert torch.equal(store.read_shard(0).x, impressions.x)


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match=r"not empty .*thesis\.txt"):
        _open(tmp_path)
    assert _bytes(tmp_path) == {"thesis.txt": b"precious"}


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write the store .*file"):
        _open(tmp_path / "file" / "store")


def test_a_manifest_changed_by_hand_is_refused(tmp_path):
    _fill(_open(tmp_path / "a"))
    path = tmp_path / "a" / "manifest.json"
    path.write_text(path.read_text().replace('"impressions": 10', '"impressions": 8'))
    with pytest.raises(InputError, match="changed after it was written"):
        Store.open(tmp_path / "a")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 99}', "\xff", "[" * 100_000])
def test_a_damaged_manifest_is_named(tmp_path, text):
    (tmp_path / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"manifest\.json"):
        Store.open(tmp_path)


def test_a_folder_without_a_store_is_named(tmp_path):
    with pytest.raises(InputError, match="holds no store"):
        Store.open(tmp_path / "nowhere")


def test_a_failed_write_leaves_the_old_file_and_no_temporary_one(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert _bytes(tmp_path) == {"file": b"old"}
