"""The store as a dataset: each row is its impression, from any worker, and only the shards of these rows are read."""

import math
import os
import pickle

import pytest
import torch
from small_models import IMAGE, all_impressions, image_classifier, open_store, synthesis_recipe
from torch import nn
from torch.utils.data import DataLoader

from zskd_fast import ImpressionDataset, InputSpec, MappedRows, ShardShuffle
from zskd_fast.errors import InputError
from zskd_fast.store.manifest import shard_name
from zskd_fast.store.store import Store
from zskd_fast.synthesis.shards import synthesize
from zskd_fast.synthesis.synthesizer import Synthesizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """20 impressions in shards of 2, so that there are more shards than a dataset holds open."""
    synthesizer = Synthesizer(image_classifier(), IMAGE, synthesis_recipe(shard_size=2), seed=1)
    folder = tmp_path_factory.mktemp("store") / "a"
    synthesize(synthesizer, open_store(folder, synthesizer), progress=False)
    return folder


def test_item_i_is_the_impression_with_id_i(folder):
    dataset, wanted = ImpressionDataset(folder), all_impressions(Store.open(folder)).tensors()
    wanted["class"] = wanted.pop("class_index")
    assert len(dataset) == 20 and dataset.input_spec == IMAGE
    for index in (0, 19, 7, 0):
        item = dataset[index]
        assert item.keys() == wanted.keys()
        assert all(torch.equal(item[name], wanted[name][index]) for name in wanted)
        assert all(item[name].dtype == wanted[name].dtype for name in wanted)


@pytest.mark.parametrize("shape", [(7,), (5, 8, 8), (3, 11), (2, 3, 4, 5)])
def test_inputs_may_have_any_channels_and_any_rank(tmp_path, shape):
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 4))
    synthesizer = Synthesizer(teacher, InputSpec(shape=shape), synthesis_recipe(), seed=1)
    store = open_store(tmp_path / "a", synthesizer)
    synthesize(synthesizer, store, progress=False)
    made = synthesizer.run(range(20)).x
    assert made.shape == (20, *shape)
    assert torch.equal(all_impressions(store).x, made)
    assert torch.equal(ImpressionDataset(tmp_path / "a")[11]["x"], made[11])
    assert torch.equal(MappedRows(store, "x")[torch.arange(20)], made)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_yields_every_impression_once_in_the_order_of_the_sampler(folder, workers):
    dataset = ImpressionDataset(folder, columns=["id", "x"])
    sampler = ShardShuffle(dataset, seed=3, together=2)
    loader = DataLoader(
        dataset,
        batch_size=6,
        sampler=sampler,
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
    )
    batches = list(loader)
    ids = torch.cat([batch["id"] for batch in batches])
    assert ids.tolist() == list(sampler)
    assert ids.sort().values.tolist() == list(range(20))
    assert torch.equal(torch.cat([batch["x"] for batch in batches]), all_impressions(Store.open(folder)).x[ids])


def test_the_order_depends_on_seed_and_epoch_and_keeps_few_shards_together(folder):
    dataset = ImpressionDataset(folder)
    orders = []
    for seed, epoch in ((3, 0), (3, 1), (4, 0)):
        sampler = ShardShuffle(dataset, seed=seed, together=3)
        sampler.set_epoch(epoch)
        assert list(sampler) == list(sampler)
        orders.append(list(sampler))
        for first in range(0, 18, 6):
            assert len({index // 2 for index in orders[-1][first : first + 6]}) == 3
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])


def test_at_most_eight_shards_are_open_and_none_is_pickled(folder):
    dataset = ImpressionDataset(folder)
    before = len(os.listdir("/proc/self/fd"))
    for index in [*range(20), *range(20)]:
        dataset[index]
    assert len(dataset._open) == 8
    assert len(os.listdir("/proc/self/fd")) <= before + 8
    copy = pickle.loads(pickle.dumps(dataset))
    assert not copy._open
    assert torch.equal(copy[5]["x"], dataset[5]["x"])


def test_only_the_shards_of_the_rows_read_are_hashed(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    damaged = tmp_path / shard_name(4)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\xff")
    dataset = ImpressionDataset(tmp_path)
    assert dataset[7]["id"] == 7
    with pytest.raises(InputError, match=r"shard-000004\.safetensors is not the file that was written"):
        dataset[8]
    assert ImpressionDataset(tmp_path, verify=False)[8]["id"] == 8


def test_an_unfinished_store_an_unknown_column_and_a_bad_index_are_refused(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / shard_name(9)).unlink()
    with pytest.raises(InputError, match=r"shard-000009\.safetensors is missing"):
        ImpressionDataset(tmp_path)
    with pytest.raises(InputError, match="no column 'label'"):
        ImpressionDataset(folder, columns=["label"])
    for index in (-1, 20):
        with pytest.raises(IndexError):
            ImpressionDataset(folder)[index]
    with pytest.raises(InputError, match="together must be at least 1"):
        ShardShuffle(ImpressionDataset(folder), seed=0, together=0)
