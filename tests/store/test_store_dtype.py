"""A store that keeps x in 16 bits: logits and loss are those of the stored x."""

import dataclasses
import math

import pytest
import torch
from safetensors import safe_open
from small_models import (
    IMAGE,
    all_impressions,
    image_classifier,
    noise_recipe,
    open_store,
    synthesis_recipe,
)

from zskd_fast import ImpressionDataset, ops
from zskd_fast.config.input_spec import InputSpec
from zskd_fast.errors import InputError
from zskd_fast.models.classifier import Classifier
from zskd_fast.store.manifest import shard_name
from zskd_fast.store.verify import shard_faults, teacher_faults
from zskd_fast.synthesis.rounding import limits_in, round_
from zskd_fast.synthesis.shards import synthesize
from zskd_fast.synthesis.synthesizer import Synthesizer

DTYPES = ["float32", "float16", "bfloat16"]
SHORT = ["float16", "bfloat16"]


def _synthesizer(store_dtype, input_spec=IMAGE, **recipe):
    recipe = synthesis_recipe(store_dtype=store_dtype, **recipe)
    return Synthesizer(image_classifier(), input_spec, recipe, seed=1)


def _fill(folder, store_dtype, **recipe):
    synthesizer = _synthesizer(store_dtype, **recipe)
    store = open_store(folder, synthesizer)
    synthesize(synthesizer, store, progress=False)
    return store


@pytest.mark.parametrize("store_dtype", DTYPES)
def test_a_store_returns_the_bits_that_were_made(tmp_path, store_dtype):
    read = all_impressions(_fill(tmp_path / "a", store_dtype))
    made = _synthesizer(store_dtype).run(range(20))
    for name, tensor in made.tensors().items():
        assert torch.equal(getattr(read, name), tensor), name
        assert getattr(read, name).dtype == tensor.dtype, name
    dataset = ImpressionDataset(tmp_path / "a", columns=["x"])
    rows = torch.stack([dataset[index]["x"] for index in range(20)])
    assert rows.dtype == torch.float32
    assert torch.equal(rows, made.x)
    with safe_open(tmp_path / "a" / shard_name(0), framework="pt") as file:
        assert file.get_tensor("x").dtype == getattr(torch, store_dtype)
        assert file.get_tensor("target").dtype == torch.float32


@pytest.mark.parametrize("store_dtype", SHORT)
def test_logits_and_loss_are_those_of_the_stored_x(tmp_path, store_dtype):
    store = _fill(tmp_path / "a", store_dtype)
    read, exact = all_impressions(store), _synthesizer("float32").run(range(20))
    with torch.no_grad():
        # In the batches of 4 in which they were made: the same bits.
        logits = torch.cat([image_classifier()(x) for x in read.x.split(4)])
        loss = ops.soft_cross_entropy(logits, read.target, 20.0, reduction="none")
    assert torch.equal(read.teacher_logits, logits)
    assert torch.equal(read.loss, loss)
    # Before the rounding the labels would be others.
    assert not torch.equal(exact.teacher_logits, read.teacher_logits)
    assert list(shard_faults(store)) == []
    assert list(teacher_faults(store, Classifier(image_classifier(), IMAGE))) == []


@pytest.mark.parametrize(("store_dtype", "bits"), [("float16", 11), ("bfloat16", 8)])
def test_x_is_rounded_to_the_nearest_value_and_the_target_is_unchanged(store_dtype, bits):
    exact, rounded = _synthesizer("float32").run(range(20)), _synthesizer(store_dtype).run(range(20))
    assert torch.equal(exact.target, rounded.target)
    assert not torch.equal(exact.x, rounded.x)
    error = (exact.x - rounded.x).abs()
    # Half a step; the smallest step of float16 is 2^-24.
    assert bool((error <= exact.x * 2.0**-bits + 2.0**-25).all())


@pytest.mark.parametrize("store_dtype", SHORT)
@pytest.mark.parametrize("valid_range", [(0.0, 0.999), (0.1, 0.7), (-1.0003, -0.1), (-2.1179, 2.64)])
def test_rounded_impressions_stay_in_the_valid_range(store_dtype, valid_range):
    spec = InputSpec(shape=(1, 8, 8), valid_range=valid_range)
    ends = {"start_noise": noise_recipe(scale=9.0, shift=-4.5), "steps": 0}
    x = _synthesizer(store_dtype, spec, **ends).run(range(8)).x
    low, high = torch.tensor(valid_range)
    assert x.min() >= low and x.max() <= high
    assert torch.equal(x.to(getattr(torch, store_dtype)).float(), x)
    # Before the rounding many values are at the ends of the range.
    exact = _synthesizer("float32", spec, **ends).run(range(8)).x
    assert exact.min() == low and exact.max() == high


def test_the_limits_are_the_outermost_values_inside():
    assert limits_in(torch.bfloat16, 0.0, 0.999) == (0.0, 0.99609375)
    assert limits_in(torch.bfloat16, 0.0, 1.0) == (0.0, 1.0)
    assert limits_in(torch.float16, -math.inf, math.inf) == (-math.inf, math.inf)
    low, high = limits_in(torch.float16, 0.1, 0.7)
    assert low >= 0.1 > low - 2.0**-13 and high <= 0.7 < high + 2.0**-11
    x = torch.tensor([0.999, 0.5, math.nan])
    round_(x, torch.bfloat16, (0.0, 0.99609375))
    assert x[:2].tolist() == [0.99609375, 0.5] and x[2].isnan()


def test_a_range_that_16_bits_cannot_hold_is_refused():
    with pytest.raises(InputError, match=r"float16 ends at 65504, short of \[0\.0, 100000\.0\]"):
        _synthesizer("float16", InputSpec(shape=(1, 8, 8), valid_range=(0.0, 1e5)))
    with pytest.raises(InputError, match=r"bfloat16 has no value from 0\.9991 to 0\.9992"):
        _synthesizer("bfloat16", InputSpec(shape=(1, 8, 8), valid_range=(0.9991, 0.9992)))
    with pytest.raises(InputError, match=r"hold NaN or infinity.* use a store_dtype with more range"):
        _synthesizer("float16", clamp=False, steps=0, start_noise=noise_recipe(scale=1e6)).run(range(2))


def test_another_type_is_another_run(tmp_path):
    store = _fill(tmp_path / "a", "float16")
    before = {path.name: path.read_bytes() for path in store.folder.iterdir()}
    with pytest.raises(InputError) as error:
        _fill(tmp_path / "a", "bfloat16")
    assert str(error.value).splitlines()[1:] == ["  recipe.store_dtype: 'bfloat16' in this run, 'float16' in the store"]
    assert {path.name: path.read_bytes() for path in store.folder.iterdir()} == before


def test_16_bits_take_half_the_space(tmp_path):
    """An image of 64 values takes 256 bytes in float32; the other columns take 96."""
    sizes = {store_dtype: _fill(tmp_path / store_dtype, store_dtype).manifest.entry(0).bytes for store_dtype in DTYPES}
    saved = 8 * 64 * 2
    assert abs(sizes["float32"] - sizes["float16"] - saved) <= 16  # the header names the types
    assert abs(sizes["float32"] - sizes["bfloat16"] - saved) <= 16


def test_values_that_the_store_cannot_hold_are_not_written(tmp_path):
    store = open_store(tmp_path / "a", _synthesizer("bfloat16"))
    exact = _synthesizer("float32").run(store.shard_ids(0))
    with pytest.raises(InputError, match=r"keeps x as torch\.bfloat16, which cannot hold the values"):
        store.write_shard(0, exact)
    assert store.missing_shards() == [0, 1, 2]
    store.write_shard(0, dataclasses.replace(exact, x=exact.x.bfloat16().float()))
    assert store.missing_shards() == [1, 2]
