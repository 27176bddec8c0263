"""Training from the mapped files of a store: the same student, without the store in memory."""

import ctypes
import gc
import os
from pathlib import Path

import pytest
import torch
from small_models import (
    IMAGE,
    all_impressions,
    augmentation_recipe,
    distillation_recipe,
    image_classifier,
    impression_identity,
    open_store,
    same_tensors,
    synthesis_recipe,
)

from zskd_fast import Distiller, MappedRows, Synthesizer, load_recipe
from zskd_fast.config.input_spec import InputSpec
from zskd_fast.errors import InputError
from zskd_fast.store import mapped_rows
from zskd_fast.store.impressions import Impressions
from zskd_fast.store.manifest import shard_name
from zskd_fast.store.store import Store
from zskd_fast.store.verify import require_whole
from zskd_fast.synthesis.shards import synthesize

CPU = torch.device("cpu")
AUGMENTED = load_recipe("demo").distillation.augmentation
NOISE = augmentation_recipe(noise_max=0.1)


def _store(folder, **recipe):
    """20 impressions in shards of 8, 8 and 4."""
    synthesizer = Synthesizer(image_classifier(), IMAGE, synthesis_recipe(**recipe), seed=1)
    store = open_store(folder, synthesizer)
    synthesize(synthesizer, store, progress=False)
    return store


@pytest.fixture
def store(tmp_path):
    return _store(tmp_path / "a")


def _distill(impressions, *, fit=None, **recipe):
    student = image_classifier(seed=5)
    distiller = Distiller(image_classifier(), student, IMAGE, distillation_recipe(**recipe), seed=1)
    return student, distiller.fit(impressions, progress=False, **fit or {})


@pytest.mark.parametrize("store_dtype", ["float32", "float16", "bfloat16"])
def test_rows_are_float32_in_the_order_of_the_ids_given(tmp_path, store_dtype):
    store = _store(tmp_path / "a", store_dtype=store_dtype)
    ids, whole = torch.tensor([19, 0, 7, 8, 8, 15, 16, 0]), all_impressions(store)
    for name in ("x", "teacher_logits", "loss"):
        rows, wanted = MappedRows(store, name), getattr(whole, name)
        assert len(rows) == 20 and rows.shape == wanted.shape
        assert torch.equal(rows[ids], wanted[ids])
        assert rows[ids].dtype == torch.float32


@pytest.mark.parametrize("store_dtype", ["float32", "bfloat16"])
def test_no_rows_are_possible_too(tmp_path, store_dtype):
    none = torch.empty(0, dtype=torch.int64)
    store = _store(tmp_path / "a", store_dtype=store_dtype)
    for name, width in (("x", [0, 1, 8, 8]), ("teacher_logits", [0, 4]), ("loss", [0])):
        rows = MappedRows(store, name)[none]
        assert list(rows.shape) == width and rows.dtype == torch.float32


@pytest.mark.parametrize("recipe", [{"augmentation": AUGMENTED}, {"augmentation": NOISE, "relabel": False}])
def test_a_student_of_mapped_files_has_the_bits_of_one_of_impressions_in_memory(store, recipe):
    from_memory, wanted = _distill(all_impressions(store), **recipe)
    from_files, got = _distill(store, **recipe)
    assert same_tensors(from_memory, from_files)
    assert got.loss == wanted.loss


def test_a_checkpoint_belongs_to_the_impressions_of_its_store(store, tmp_path):
    fit = {"checkpoint": tmp_path / "checkpoint"}
    first, _ = _distill(store, fit=fit)
    again, _ = _distill(Store.open(store.folder), fit=fit)
    assert same_tensors(first, again)
    other = _store(tmp_path / "other", steps=6)
    with pytest.raises(InputError, match=r"impressions\.x: '.*' in this run"):
        _distill(other, fit=fit)
    assert MappedRows(store, "x").sha256 != MappedRows(store, "teacher_logits").sha256


def _private_bytes():
    """Return the memory of this process without the pages of mapped files.

    What earlier tests freed goes back to the system first: it would hide memory that is taken from it.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def test_rows_take_no_memory_of_their_own_and_no_open_files(tmp_path):
    count, pixels = 32, 2**18
    identity = impression_identity(input_spec=InputSpec((pixels,)))
    store = Store.open_or_create(tmp_path / "a", identity, impressions=count, shard_size=4)
    for shard in range(store.num_shards):
        ids = store.shard_ids(shard)
        one, columns = torch.ones(4), {"id": ids, "class_index": ids.clone(), "steps": ids.clone()}
        parts = {
            "target": torch.ones(4, 1),
            "teacher_logits": torch.ones(4, 1),
            "beta": one,
            "loss": one.clone(),
        }
        store.write_shard(shard, Impressions(x=ids.float()[:, None].expand(4, pixels), **parts, **columns))
    before, files = _private_bytes(), len(os.listdir("/proc/self/fd"))
    rows = MappedRows(store, "x")
    for row in range(count):
        assert rows[torch.tensor([row])].eq(row).all()
    assert _private_bytes() - before < 4 * count * pixels / 4, "a quarter of 32 MiB or more was read into memory"
    assert len(os.listdir("/proc/self/fd")) == files
    kept = all_impressions(store)
    assert _private_bytes() - before >= 4 * count * pixels, "the measure misses what is read into memory"
    assert len(kept) == count


def test_a_device_with_enough_free_memory_gets_all_rows(store, monkeypatch):
    rows, size = MappedRows(store, "x"), 20 * 64 * 4
    assert rows.to(CPU) is rows
    monkeypatch.setattr(mapped_rows, "_free_bytes", lambda device: 2 * size - 1)
    assert rows.to(CPU) is rows
    monkeypatch.setattr(mapped_rows, "_free_bytes", lambda device: 2 * size)
    assert torch.equal(rows.to(CPU), all_impressions(store).x)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gets_single_rows_or_all(store):
    rows, wanted = MappedRows(store, "x"), all_impressions(store).x.cuda()
    ids = torch.tensor([19, 0, 8], device="cuda")
    assert torch.equal(rows[ids], wanted[ids])
    assert torch.equal(rows.to(torch.device("cuda")), wanted)


def test_what_cannot_be_mapped_is_refused(store):
    rows = MappedRows(store, "x")
    with pytest.raises(InputError, match=r"shard-000000\.safetensors cannot be mapped .*label"):
        MappedRows(store, "label")
    last = store.read_shard(2).x[3:]
    (store.folder / shard_name(2)).unlink()
    assert torch.equal(rows[torch.tensor([19])], last)  # still mapped
    with pytest.raises(InputError, match=r"shard-000002\.safetensors is missing"):
        MappedRows(store, "x")
    with pytest.raises(InputError, match=r"shard-000002\.safetensors is missing"):
        _distill(store)


def test_require_whole_hashes_every_shard(store):
    require_whole(store, CPU)
    path = store.folder / shard_name(1)
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(InputError, match=r"shard-000001\.safetensors is not the file that was written .*run the synth"):
        require_whole(store, CPU)
