"""The identity of a store: another run, other software or another device does not add to it."""

import dataclasses

import pytest
import torch
from small_models import (
    VECTOR,
    impression_identity,
    open_store,
    synthesis_recipe,
    vector_classifier,
)
from small_stores import STORED, files_of, fill, open_small_store

from zskd_fast.errors import InputError
from zskd_fast.store.store import Store
from zskd_fast.synthesis.shards import synthesize
from zskd_fast.synthesis.synthesizer import Synthesizer


def _synthesizer(**recipe):
    return Synthesizer(vector_classifier(), VECTOR, synthesis_recipe(**recipe), seed=1)


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
    fill(open_small_store(tmp_path / "a"), shards)
    before = files_of(tmp_path / "a")
    identity = impression_identity(input_spec=STORED.input, **changes)
    with pytest.raises(InputError) as error:
        open_small_store(tmp_path / "a", identity, **layout)
    first, *rest = str(error.value).splitlines()
    assert first == f"the store {tmp_path / 'a'} belongs to another run; choose another folder:"
    assert rest == [f"  {line}" for line in lines]
    assert files_of(tmp_path / "a") == before


def test_more_impressions_and_parallel_batches_open_the_same_store(tmp_path):
    """Neither changes an impression, so neither is part of the identity."""
    smaller = _synthesizer(impressions=16, parallel_batches=False)
    larger = _synthesizer(impressions=20, parallel_batches=True)
    assert smaller.identity == larger.identity
    synthesize(smaller, open_store(tmp_path / "a", smaller), progress=False)
    summary = synthesize(larger, open_store(tmp_path / "a", larger), progress=False)
    assert (summary.reused, summary.made) == (16, 4)
    synthesize(larger, open_store(tmp_path / "at once", larger), progress=False)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "at once")


def test_a_synthesizer_refuses_to_fill_the_store_of_another(tmp_path):
    one, other = _synthesizer(), _synthesizer(temperature=10.0)
    store = open_store(tmp_path / "a", one)
    with pytest.raises(
        InputError, match=r"another run.*\n  recipe\.temperature: 10\.0 in this run, 20\.0 in the store$"
    ):
        synthesize(other, store, progress=False)
    assert store.missing_shards() == [0, 1, 2]


def test_a_store_is_neither_reduced_nor_extended_by_another_run(tmp_path):
    fill(open_small_store(tmp_path / "a"))
    before = files_of(tmp_path / "a")
    with pytest.raises(InputError, match=r"impressions: 9 in this run, 10 in the store"):
        open_small_store(tmp_path / "a", impressions=9)
    with pytest.raises(InputError, match="seed: 4 in this run, 3 in the store"):
        open_small_store(tmp_path / "a", dataclasses.replace(STORED, seed=4), impressions=15)
    assert files_of(tmp_path / "a") == before


def test_other_software_may_read_a_finished_store_but_not_finish_one(tmp_path, monkeypatch):
    fill(open_small_store(tmp_path / "half"), [0])
    fill(open_small_store(tmp_path / "whole"))
    monkeypatch.setattr(torch, "__version__", "99.0")
    assert open_small_store(tmp_path / "whole").is_complete
    with pytest.raises(InputError, match=r"versions\.torch: '99\.0' in this run"):
        open_small_store(tmp_path / "half")


GPU = torch.device("cuda")


def _on_gpu(monkeypatch, name="GPU 1"):
    """Let torch say that its CUDA devices are of this model."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)


def test_another_model_of_gpu_or_a_cpu_does_not_finish_a_store_but_may_read_it(tmp_path, monkeypatch):
    _on_gpu(monkeypatch)
    fill(open_small_store(tmp_path / "half", device=GPU), [0])
    fill(open_small_store(tmp_path / "whole", device=GPU))
    fill(open_small_store(tmp_path / "half", device=GPU), [1])
    assert Store.open(tmp_path / "half").manifest.versions["device"] == "GPU 1"
    _on_gpu(monkeypatch, "GPU 2")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91100)
    with pytest.raises(InputError) as refused:
        open_small_store(tmp_path / "half", device=GPU)
    assert str(refused.value).splitlines()[1:] == [
        "  versions.cudnn: '91100' in this run, '91002' in the store",
        "  versions.device: 'GPU 2' in this run, 'GPU 1' in the store",
    ]
    with pytest.raises(InputError, match=r"versions\.device: nothing in this run, 'GPU 1' in the store"):
        open_small_store(tmp_path / "half")
    assert (
        open_small_store(tmp_path / "whole", device=GPU).is_complete
        and open_small_store(tmp_path / "whole").is_complete
    )
    with pytest.raises(InputError, match=r"versions\.device"):
        open_small_store(tmp_path / "whole", device=GPU, impressions=11)


def test_a_cpu_leaves_no_trace_in_the_manifest(tmp_path):
    open_small_store(tmp_path / "a", device=torch.device("cpu"))
    open_small_store(tmp_path / "b")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert set(Store.open(tmp_path / "a").manifest.versions) == {"torch", "zskd_fast"}
