import dataclasses

import pytest
import torch
from small_models import IMAGE, augmentation_recipe, distillation_recipe, start_recipe

from zskd_fast.config.recipe import FreshRecipe
from zskd_fast.distillation.batches import Batches
from zskd_fast.runtime import seeds as streams
from zskd_fast.runtime.processes import World
from zskd_fast.synthesis.start_noise import start_noise

_CPU = torch.device("cpu")
_START = start_recipe(noise="normal", scale=0.5)
_ALONE = World()


def _numbered(count):
    """Impression i is i/100 all over."""
    return (torch.arange(count) / 100).reshape(-1, 1, 1, 1).expand(count, *IMAGE.shape).contiguous()


def _batches(count=12, fraction=0.0, augmentation=None, world=_ALONE):
    recipe = distillation_recipe(augmentation, fresh=FreshRecipe(fraction, _START))
    return Batches(_numbered(count), recipe, IMAGE, seed=3, device=_CPU, world=world)


def _is_stored(x):
    return (x == x[:, :1, :1, :1]).flatten(1).all(dim=1)


def test_every_impression_is_used_equally_often():
    batches = _batches(count=12)
    used = torch.cat([batches.of(step).rows for step in range(9)])
    assert torch.equal(used.bincount(), torch.full((12,), 6))
    first, second = used[:12], used[12:24]
    assert not torch.equal(first, second), "both epochs have one order"


def test_a_step_has_the_same_batch_whatever_came_before():
    batches = _batches(fraction=0.5)
    for step in range(6):
        batches.of(step)
    again, fresh = batches.of(2), _batches(fraction=0.5).of(2)
    assert torch.equal(again.x, fresh.x)
    assert torch.equal(again.rows, fresh.rows)


@pytest.mark.parametrize(("fraction", "count"), [(0.0, 0), (0.25, 2), (0.5, 4), (0.6, 5), (1.0, 8)])
def test_a_share_of_each_batch_is_fresh_noise(fraction, count):
    batches = _batches(fraction=fraction)
    seen = []
    for step in range(5):
        batch = batches.of(step)
        stored = _is_stored(batch.x)
        assert int((~stored).sum()) == count
        assert torch.equal(batch.x[stored], _numbered(12)[batch.rows])
        positions = torch.arange(8 * step, 8 * step + 8)[~stored]
        noise = start_noise(positions, _START, IMAGE, seed=3, stream=streams.FRESH_NOISE, clamp=True)
        assert torch.equal(batch.x[~stored], noise)
        seen += noise.flatten(1).tolist()
    assert len({tuple(row) for row in seen}) == 5 * count, "noise was used twice"


def test_fresh_noise_is_spread_among_the_impressions():
    """Where each stood in a block, mixing with the next row would mix a kind with itself."""
    stored = _is_stored(_batches(fraction=0.5).of(0).x)
    assert stored.tolist() in ([True, False] * 4, [False, True] * 4)


@pytest.mark.parametrize("fraction", [0.0, 0.5])
def test_processes_share_the_batch_of_one(fraction):
    augmentation = augmentation_recipe(rotation_sigma=0.3, noise_max=0.1)
    whole = _batches(fraction=fraction, augmentation=augmentation).of(4)
    parts = [_batches(12, fraction, augmentation, World(rank, 3)).of(4) for rank in range(3)]
    for rank, part in enumerate(parts):
        assert torch.equal(part.x, whole.x[rank::3])
    assert sorted(torch.cat([part.rows for part in parts]).tolist()) == sorted(whole.rows.tolist())


def test_fresh_noise_is_augmented_like_impressions():
    still = _batches(fraction=1.0).of(0).x
    moved = _batches(fraction=1.0, augmentation=augmentation_recipe(shift_sigma=0.3)).of(0).x
    assert not torch.isclose(still, moved).flatten(1).all(dim=1).any()


def test_the_count_of_fresh_rows_is_rounded():
    recipe = dataclasses.replace(FreshRecipe(0.5, _START), fraction=0.3)
    assert recipe.count(128) == 38
