"""The store as WebDataset tar files with the same values, and as PNG files with the same images."""

import io
import json
import tarfile

import numpy as np
import pytest
from small_models import (
    IMAGE,
    VECTOR,
    all_impressions,
    image_classifier,
    open_store,
    synthesis_recipe,
    vector_classifier,
)

from zskd_fast.cli import main as cli
from zskd_fast.errors import InputError
from zskd_fast.store.export import export_png, export_webdataset
from zskd_fast.synthesis.shards import synthesize
from zskd_fast.synthesis.synthesizer import Synthesizer


def _store(folder, model, spec):
    synthesizer = Synthesizer(model, spec, synthesis_recipe(), seed=1)
    store = open_store(folder, synthesizer)
    synthesize(synthesizer, store, progress=False)
    return store


@pytest.fixture
def store(tmp_path):
    return _store(tmp_path / "store", image_classifier(), IMAGE)


def test_a_tar_holds_every_value_unchanged(store, tmp_path):
    paths = export_webdataset(store, tmp_path / "tar")
    assert [path.name for path in paths] == ["shard-000000.tar", "shard-000001.tar", "shard-000002.tar"]
    wanted, entries = all_impressions(store), {}
    for path in paths:
        with tarfile.open(path) as tar:
            entries |= {entry.name: tar.extractfile(entry).read() for entry in tar}
    assert len(entries) == 20 * 4
    for row in range(20):
        for name in ("x", "target", "teacher_logits"):
            array = np.load(io.BytesIO(entries[f"{row:09d}.{name}.npy"]), allow_pickle=False)
            assert array.dtype == np.float32
            np.testing.assert_array_equal(array, getattr(wanted, name)[row].numpy())
        facts = json.loads(entries[f"{row:09d}.json"])
        assert facts == {
            "id": row,
            "class": int(wanted.class_index[row]),
            "beta": float(wanted.beta[row]),
            "loss": float(wanted.loss[row]),
            "steps": 5,
        }


def test_the_entries_of_an_impression_follow_one_another(store, tmp_path):
    """WebDataset groups neighboring entries by the part of the name before the first dot."""
    with tarfile.open(export_webdataset(store, tmp_path / "tar")[1]) as tar:
        keys = [name.split(".", 1)[0] for name in tar.getnames()]
    assert keys == [f"{row:09d}" for row in range(8, 16) for _ in range(4)]


def test_the_same_store_gives_the_same_tar(store, tmp_path):
    one, two = export_webdataset(store, tmp_path / "one"), export_webdataset(store, tmp_path / "two")
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_png_files_show_the_valid_range_in_a_folder_per_class(store, tmp_path):
    image = pytest.importorskip("PIL.Image", reason="needs Pillow")
    assert export_png(store, tmp_path / "png") == 20
    wanted = all_impressions(store)
    for row in range(20):
        path = tmp_path / "png" / str(int(wanted.class_index[row])) / f"{row:09d}.png"
        levels = np.asarray(image.open(path))
        np.testing.assert_array_equal(levels, (wanted.x[row, 0].numpy() * 255).round().astype(np.uint8))


def test_vectors_are_refused_as_png_and_exported_as_tar(tmp_path):
    store = _store(tmp_path / "store", vector_classifier(), VECTOR)
    with pytest.raises(InputError, match=r"shape \[6\] are no images"):
        export_png(store, tmp_path / "png")
    assert not (tmp_path / "png").exists()
    assert len(export_webdataset(store, tmp_path / "tar")) == 3


def test_the_command_line_exports_and_refuses_a_folder_that_is_not_empty(store, tmp_path, capsys):
    words = ["export", str(store.folder), "--out", str(tmp_path / "tar")]
    assert cli.main(words) == 0
    assert "tar files     3 in" in capsys.readouterr().out
    assert cli.main(words) == 2
    assert "is not empty (found shard-000000.tar)" in capsys.readouterr().err
