"""The batches: each impression equally often, fresh noise once, shares of processes."""

import dataclasses

import pytest
import torch
from small_models import IMAGE, augmentation_recipe, distillation_recipe, noise_recipe

from zskd_fast.config.recipe import FreshNoiseRecipe
from zskd_fast.distillation.batches import Batches
from zskd_fast.runtime import seeds
from zskd_fast.runtime.processes import World
from zskd_fast.synthesis.start_noise import start_noise

_CPU = torch.device("cpu")
_NOISE = noise_recipe(kind="normal", scale=0.5)
_ALONE = World()


def _fresh(fraction):
    return FreshNoiseRecipe(fraction=fraction, **dataclasses.asdict(_NOISE))


def _numbered(count):
    """Impressions of a single value: i/100 for impression i."""
    return (torch.arange(count) / 100).reshape(-1, 1, 1, 1).expand(count, *IMAGE.shape).contiguous()


def _batches(count=12, fraction=0.0, augmentation=None, world=_ALONE):
    recipe = distillation_recipe(augmentation, fresh_noise=_fresh(fraction))
    return Batches(_numbered(count), recipe, IMAGE, seed=3, device=_CPU, world=world)


def _is_stored(x):
    return (x == x[:, :1, :1, :1]).flatten(1).all(dim=1)


def test_every_impression_is_used_equally_often():
    batches = _batches(count=12)
    used = torch.cat([batches.of(step).rows for step in range(9)])
    assert torch.equal(used.bincount(), torch.full((12,), 6))
    first, second = used[:12], used[12:24]
    assert not torch.equal(first, second), "both epochs have the same order"


def test_the_batch_of_a_step_does_not_depend_on_earlier_calls():
    batches = _batches(fraction=0.5)
    for step in range(6):
        batches.of(step)
    again, fresh = batches.of(2), _batches(fraction=0.5).of(2)
    assert torch.equal(again.x, fresh.x)
    assert torch.equal(again.rows, fresh.rows)


@pytest.mark.parametrize(("fraction", "count"), [(0.0, 0), (0.25, 2), (0.5, 4), (0.6, 5), (1.0, 8)])
def test_the_wanted_share_of_each_batch_is_fresh_noise(fraction, count):
    batches = _batches(fraction=fraction)
    seen = []
    for step in range(5):
        batch = batches.of(step)
        stored = _is_stored(batch.x)
        assert int((~stored).sum()) == count
        assert torch.equal(batch.x[stored], _numbered(12)[batch.rows])
        positions = torch.arange(8 * step, 8 * step + 8)[~stored]
        noise = start_noise(positions, _NOISE, IMAGE, seed=3, stream=seeds.FRESH_NOISE, clamp=True)
        assert torch.equal(batch.x[~stored], noise)
        seen += noise.flatten(1).tolist()
    assert len({tuple(row) for row in seen}) == 5 * count, "noise was used twice"


def test_fresh_noise_is_spread_among_the_impressions():
    """In two blocks, almost every row would be mixed with one of its own kind, as the partner is the next row."""
    stored = _is_stored(_batches(fraction=0.5).of(0).x)
    assert stored.tolist() in ([True, False] * 4, [False, True] * 4)


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_processes_share_the_batch_of_a_single_process(fraction, size):
    augmentation = augmentation_recipe(rotation_sigma=0.3, noise_max=0.1)
    whole = _batches(fraction=fraction, augmentation=augmentation).of(4)
    parts = [_batches(12, fraction, augmentation, World(rank, size)).of(4) for rank in range(size)]
    assert _sorted(torch.cat([part.x for part in parts])) == _sorted(whole.x)
    assert sorted(torch.cat([part.rows for part in parts]).tolist()) == sorted(whole.rows.tolist())


def _sorted(x):
    return sorted(x.flatten(1).tolist())


@pytest.mark.parametrize("batch_size", [4, 5, 6, 7, 30, 31, 128])
@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5, 0.6, 1.0])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_every_process_has_its_share_of_impressions_and_of_fresh_noise(size, fraction, batch_size):
    fresh = _fresh(fraction).count(batch_size)
    recipe = distillation_recipe(fresh_noise=_fresh(fraction), batch_size=batch_size)
    stored = []
    for rank in range(size):
        batches = Batches(_numbered(200), recipe, IMAGE, seed=3, device=_CPU, world=World(rank, size))
        batch = batches.of(1)
        stored.append(_is_stored(batch.x))
        assert torch.equal(batch.x[stored[-1]], _numbered(200)[batch.rows])
    assert sum(len(part) for part in stored) == batch_size
    for total, counts in (
        (batch_size, [len(part) for part in stored]),
        (batch_size - fresh, [int(part.sum()) for part in stored]),
        (fresh, [int((~part).sum()) for part in stored]),
    ):
        assert sum(counts) == total and max(counts) - min(counts) <= 1
    for part in stored:
        assert _longest_run(part.tolist()) <= -(-len(part) // max(1, min(int(part.sum()), int((~part).sum()))))


def _longest_run(kinds):
    """Most rows of one kind in a row, around the end too, as the last row is mixed with the first."""
    longest = 0
    for start in range(len(kinds)):
        around = kinds[start:] + kinds[:start]
        longest = max(longest, next((i for i, kind in enumerate(around) if kind != around[0]), len(kinds)))
    return longest


@pytest.mark.parametrize("size", [1, 2, 4])
def test_half_fresh_noise_alternates_with_impressions_in_every_share(size):
    for rank in range(size):
        stored = _is_stored(_batches(fraction=0.5, world=World(rank, size)).of(0).x).tolist()
        assert stored == [True, False] * (4 // size)


def test_fresh_noise_is_augmented_like_impressions():
    still = _batches(fraction=1.0).of(0).x
    moved = _batches(fraction=1.0, augmentation=augmentation_recipe(shift_sigma=0.3)).of(0).x
    assert not torch.isclose(still, moved).flatten(1).all(dim=1).any()


def test_the_number_of_fresh_rows_is_rounded():
    assert _fresh(0.3).count(128) == 38
