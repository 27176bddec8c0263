"""Damaged files of a store: reading gives the right data or a clear error, never wrong data and never a crash."""

import json
import pickle

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rewritten import with_hash
from small_models import VECTOR, all_impressions, open_store, synthesis_recipe, vector_classifier

from zskd_fast.errors import InputError
from zskd_fast.runtime.files import sha256
from zskd_fast.store.manifest import shard_name
from zskd_fast.store.store import Store
from zskd_fast.synthesis.shards import synthesize
from zskd_fast.synthesis.synthesizer import Synthesizer

SHARD, MANIFEST = shard_name(1), "manifest.json"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """The files of a small store by name, and its impressions."""
    synthesizer = Synthesizer(vector_classifier(), VECTOR, synthesis_recipe(shard_size=10), seed=1)
    store = open_store(tmp_path_factory.mktemp("store") / "a", synthesizer)
    synthesize(synthesizer, store, progress=False)
    return {path.name: path.read_bytes() for path in store.folder.iterdir()}, all_impressions(store)


def _lay_out(folder, files):
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


@st.composite
def _damages(draw):
    """Draw a function that damages bytes: it changes a bit, or cuts, repeats, drops, overwrites or appends a part."""
    where, size = draw(st.floats(0, 1)), draw(st.integers(1, 64))
    kind = draw(st.sampled_from(["bit", "cut", "repeat", "drop", "overwrite", "append"]))
    junk = draw(st.binary(min_size=size, max_size=size))

    def damage(data):
        at = min(int(where * len(data)), len(data) - 1)
        head, tail = data[:at], data[at:]
        return {
            "bit": head + bytes([data[at] ^ (1 << size % 8)]) + data[at + 1 :],
            "cut": head,
            "repeat": head + tail[:size] + tail,
            "drop": head + tail[size:],
            "overwrite": head + junk + tail[size:],
            "append": data + junk,
        }[kind]

    return damage


def _error_or_right_data(folder, wanted):
    try:
        read = all_impressions(Store.open(folder))
    except InputError as error:
        return str(error)
    assert all(torch.equal(tensor, getattr(wanted, name)) for name, tensor in read.tensors().items())
    return None


@pytest.mark.parametrize(
    "tries",
    [
        pytest.param(150, id="150"),
        pytest.param(5000, id="5000", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", [MANIFEST, SHARD])
def test_a_damaged_file_gives_a_clear_error_or_the_right_data(tmp_path, pristine, name, tries):
    files, wanted = pristine
    folder = tmp_path / "a"
    _lay_out(folder, files)
    refused = []

    @settings(
        max_examples=tries,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )
    @given(_damages())
    def check(damage):
        data = damage(files[name])
        (folder / name).write_bytes(data)
        error = _error_or_right_data(folder, wanted)
        assert error is None or name in error
        # White space in a manifest may change; nothing in a shard may.
        assert error is not None or data == files[name] or json.loads(data) == json.loads(files[name])
        refused.append(error is not None)

    check()
    print(f"{name}: {len(refused)} damaged files, {sum(refused)} refused")
    assert sum(refused) > len(refused) // 2


class _Pickle:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_no_pickle_is_loaded_even_if_the_manifest_lists_its_hash(tmp_path, pristine):
    files, _ = pristine
    trap = tmp_path / "loaded"
    data = pickle.dumps(_Pickle(str(trap)))
    manifest = json.loads(files[MANIFEST])
    del manifest["sha256"]
    manifest["shards"][SHARD] = {"bytes": len(data), "sha256": sha256(data)}
    _lay_out(tmp_path / "a", {**files, SHARD: data, MANIFEST: with_hash(manifest)})
    with pytest.raises(InputError, match=f"{SHARD} is no shard of impressions"):
        all_impressions(Store.open(tmp_path / "a"))
    assert not trap.exists()
    pickle.loads(data)
    assert trap.exists()  # loading it would have been seen


def test_the_manifest_of_another_run_does_not_fit_these_shards(tmp_path, pristine):
    files, _ = pristine
    other = Synthesizer(vector_classifier(seed=5), VECTOR, synthesis_recipe(shard_size=10), seed=1)
    store = open_store(tmp_path / "other", other)
    synthesize(other, store, progress=False)
    _lay_out(tmp_path / "a", {**files, MANIFEST: (tmp_path / "other" / MANIFEST).read_bytes()})
    foreign = Store.open(tmp_path / "a")
    assert all(foreign.fault(shard) for shard in range(foreign.num_shards))
    ours = Synthesizer(vector_classifier(), VECTOR, synthesis_recipe(shard_size=10), seed=1)
    with pytest.raises(InputError, match=r"teacher\.sha256"):
        open_store(tmp_path / "a", ours)
