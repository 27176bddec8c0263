"""The manifest: it comes back as it was; a damaged one is named, and that of another version is called so."""

import json
import re

import pytest
import torch
from rewritten import newer, older, with_hash
from small_stores import STORED, fill, open_small_store

from zskd_fast.errors import InputError
from zskd_fast.store.manifest import FORMAT, Manifest, ShardEntry, shard_name, software_versions
from zskd_fast.store.store import Store

MANIFEST = Manifest(STORED, 10, 4, software_versions(), {"shard-000000": ShardEntry(7, "ab")})


def test_the_manifest_is_typed_and_comes_back_as_it_was(tmp_path):
    fill(open_small_store(tmp_path / "a"), [0])
    manifest = Manifest.read(tmp_path / "a")
    data = (tmp_path / "a" / shard_name(0)).read_bytes()
    assert isinstance(manifest.entry(0), ShardEntry)
    assert manifest.entry(0).bytes == len(data) and manifest.entry(1) is None
    assert (manifest.identity, manifest.impressions, manifest.shard_size) == (STORED, 10, 4)
    assert (manifest.format, manifest.versions, manifest.num_shards) == (FORMAT, software_versions(), 3)
    before = (tmp_path / "a" / "manifest.json").read_bytes()
    manifest.write(tmp_path / "a")
    assert (tmp_path / "a" / "manifest.json").read_bytes() == before
    store = Store.open(tmp_path / "a")
    assert (store.identity, store.num_impressions, store.shard_size) == (STORED, 10, 4)
    assert store.x_dtype == torch.float32


def test_a_manifest_changed_by_hand_is_refused(tmp_path):
    fill(open_small_store(tmp_path / "a"))
    path = tmp_path / "a" / "manifest.json"
    path.write_text(path.read_text().replace('"impressions": 10', '"impressions": 8'))
    with pytest.raises(InputError, match="changed after it was written"):
        Store.open(tmp_path / "a")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 99}', "\xff", "[" * 100_000])
def test_a_damaged_manifest_is_named(tmp_path, text):
    (tmp_path / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"manifest\.json"):
        Store.open(tmp_path)


def _written(tmp_path):
    MANIFEST.write(tmp_path)
    path = tmp_path / "manifest.json"
    return path, json.loads(path.read_text())


@pytest.mark.parametrize(
    ("change", "key", "reason"),
    [
        (older, "identity.recipe.total_variation", "the key identity.recipe.total_variation is missing"),
        (older, "identity.recipe.start_noise.leaves", "the key identity.recipe.start_noise.leaves is missing"),
        (older, "identity.layer", "the key identity.layer is missing"),
        (older, "shard_size", "the key shard_size is missing"),
        (older, "shards", "the key shards is missing"),
        (older, "shards.shard-000000.bytes", "shards: the key bytes is missing"),
        (newer, "identity.recipe.octaves", "unknown key identity.recipe.octaves;"),
        (newer, "compression", "unknown key compression"),
        (newer, "shards.shard-000000.rows", "shards: unknown key rows;"),
    ],
)
def test_a_manifest_of_another_version_is_called_so_and_left_alone(tmp_path, change, key, reason):
    """Its own hash is right, so it was not changed since; a version adds fields, whose value nobody may guess."""
    path, values = _written(tmp_path)
    path.write_bytes(with_hash(change(values, key)))
    before = path.read_bytes()
    sentence = f"{path} was written by another version of zskd_fast; use that version, or choose another folder: "
    for opened in (
        lambda: Store.open(tmp_path),
        lambda: Store.open_or_create(tmp_path, STORED, impressions=10, shard_size=4),
    ):
        with pytest.raises(InputError, match=f"^{re.escape(sentence + reason)}"):
            opened()
    assert path.read_bytes() == before


@pytest.mark.parametrize("number", [FORMAT - 1, FORMAT + 1])
def test_a_manifest_of_another_format_is_called_one_of_another_version(tmp_path, number):
    """Another format may have another hash, or none."""
    path, values = _written(tmp_path)
    path.write_text(json.dumps({**values, "format": number}))
    reason = f"use that version, or choose another folder: got format {number}, wanted {FORMAT}$"
    with pytest.raises(InputError, match=rf"manifest\.json was written by another version of zskd_fast; {reason}"):
        Store.open(tmp_path)


@pytest.mark.parametrize("text", ["[]", "{}", '{"format": null}'])
def test_a_file_without_a_format_is_no_manifest(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=r"manifest\.json is not the manifest of a store of impressions$"):
        Store.open(tmp_path)
