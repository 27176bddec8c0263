"""Start noise: its distribution, what it depends on, and dead leaves."""

import pytest
import torch
from small_models import VECTOR, noise_recipe

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.errors import InputError
from zskd_fast.synthesis.start_noise import start_noise

_SPEC = InputSpec((3, 12, 20))
_IDS = torch.arange(400)


def _leaves(**changes):
    return noise_recipe(**{"kind": "dead_leaves", "leaves": 10, "leaf_size": (0.05, 0.6)} | changes)


def test_white_noise_is_scaled_and_shifted():
    x = start_noise(_IDS, noise_recipe(kind="normal", scale=2.0, shift=-1.0), _SPEC, seed=0)
    assert x.shape == (400, 3, 12, 20)
    assert abs(x.mean() + 1) < 4 * 2 / x.numel() ** 0.5
    assert abs(x.std() - 2) < 0.05
    x = start_noise(_IDS, noise_recipe(scale=0.2, shift=0.5), _SPEC, seed=0)
    assert x.min() >= 0.5
    assert x.max() <= 0.7


@pytest.mark.parametrize("recipe", [noise_recipe(), noise_recipe(kind="normal"), _leaves()])
def test_the_noise_depends_on_seed_id_and_stream_only(recipe):
    x = start_noise(_IDS, recipe, _SPEC, seed=3)
    assert torch.equal(x[17:18], start_noise(_IDS[17:18], recipe, _SPEC, seed=3))
    assert torch.equal(x.flip(0), start_noise(_IDS.flip(0), recipe, _SPEC, seed=3))
    for other in ({"seed": 4}, {"seed": 3, "stream": 77}):
        other = start_noise(_IDS, recipe, _SPEC, **other)
        assert not torch.isclose(x, other).flatten(1).all(dim=1).any()


def test_clamp_keeps_the_valid_range():
    spec = InputSpec((6,), valid_range=(-1.0, 0.5))
    x = start_noise(_IDS, noise_recipe(kind="normal"), spec, seed=0)
    assert torch.equal(start_noise(_IDS, noise_recipe(kind="normal"), spec, seed=0, clamp=True), x.clamp(-1.0, 0.5))
    assert x.min() < -1.0 and x.max() > 0.5


def test_dead_leaves_are_flat_shapes_on_an_empty_ground():
    x = start_noise(_IDS, _leaves(scale=2.0, shift=-1.0), _SPEC, seed=0)
    assert x.shape == (400, 3, 12, 20)
    assert x.min() >= -1 and x.max() <= 1
    # At most one color per leaf and one of the ground; white noise has one per pixel.
    colors = torch.tensor([len(torch.unique(image.flatten(1), dim=1).T) for image in x])
    assert colors.max() <= 11
    assert colors.float().mean() > 4
    assert (x == -1).all(dim=1).float().mean() > 0.01


def test_the_last_leaf_covers_the_earlier_ones():
    large = _leaves(leaves=1, leaf_size=(4.0, 4.0))
    assert len(start_noise(_IDS[:1], large, _SPEC, seed=0).unique()) == 3
    assert len(start_noise(_IDS[:1], _leaves(leaves=6, leaf_size=(4.0, 4.0)), _SPEC, seed=0).unique()) == 3


def test_leaves_have_the_size_of_the_recipe():
    square = InputSpec((1, 64, 64))
    small = start_noise(_IDS, _leaves(leaves=1, leaf_size=(0.1, 0.1)), square, seed=0)
    largest = (small > 0).flatten(1).sum(dim=1).max()
    # A box of half-axes 0.1 covers 6.4 x 6.4 of 64 x 64 pixels, an ellipse less.
    assert 36 <= largest <= 50


def test_dead_leaves_need_an_image():
    with pytest.raises(InputError, match=r"shape \[6\] are no images .* cannot be dead_leaves; use uniform or normal"):
        start_noise(_IDS, _leaves(), VECTOR, seed=0)
