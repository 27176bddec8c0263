import pytest
import torch
from small_models import VECTOR, start_recipe

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.errors import InputError
from zskd_fast.synthesis.start_noise import start_noise

_SPEC = InputSpec((3, 12, 20))
_IDS = torch.arange(400)


def _leaves(**changes):
    return start_recipe(**{"noise": "dead_leaves", "leaves": 10, "leaf_size": (0.05, 0.6)} | changes)


def test_white_noise_is_scaled_and_shifted():
    x = start_noise(_IDS, start_recipe(noise="normal", scale=2.0, shift=-1.0), _SPEC, seed=0)
    assert x.shape == (400, 3, 12, 20)
    assert abs(x.mean() + 1) < 4 * 2 / x.numel() ** 0.5
    assert abs(x.std() - 2) < 0.05
    x = start_noise(_IDS, start_recipe(scale=0.2, shift=0.5), _SPEC, seed=0)
    assert x.min() >= 0.5
    assert x.max() <= 0.7


@pytest.mark.parametrize("recipe", [start_recipe(), start_recipe(noise="normal"), _leaves()])
def test_a_start_depends_on_its_seed_and_id_alone(recipe):
    x = start_noise(_IDS, recipe, _SPEC, seed=3)
    assert torch.equal(x[17:18], start_noise(_IDS[17:18], recipe, _SPEC, seed=3))
    assert torch.equal(x.flip(0), start_noise(_IDS.flip(0), recipe, _SPEC, seed=3))
    other = start_noise(_IDS, recipe, _SPEC, seed=4)
    assert not torch.isclose(x, other).flatten(1).all(dim=1).any()


def test_dead_leaves_are_flat_shapes_on_an_empty_ground():
    x = start_noise(_IDS, _leaves(scale=2.0, shift=-1.0), _SPEC, seed=0)
    assert x.shape == (400, 3, 12, 20)
    assert x.min() >= -1 and x.max() <= 1
    # At most one colour per leaf and that of the ground, where white noise has one per pixel.
    colours = torch.tensor([len(torch.unique(image.flatten(1), dim=1).T) for image in x])
    assert colours.max() <= 11
    assert colours.float().mean() > 4
    assert (x == -1).all(dim=1).float().mean() > 0.01


def test_the_last_leaf_lies_on_top():
    large = _leaves(leaves=1, leaf_size=(4.0, 4.0))
    assert len(start_noise(_IDS[:1], large, _SPEC, seed=0).unique()) == 3
    assert len(start_noise(_IDS[:1], _leaves(leaves=6, leaf_size=(4.0, 4.0)), _SPEC, seed=0).unique()) == 3


def test_leaves_come_in_the_wanted_sizes():
    square = InputSpec((1, 64, 64))
    small = start_noise(_IDS, _leaves(leaves=1, leaf_size=(0.1, 0.1)), square, seed=0)
    largest = (small > 0).flatten(1).sum(dim=1).max()
    # A box of half-axes 0.1 covers 6.4 x 6.4 of 64 x 64 pixels, an ellipse less.
    assert 36 <= largest <= 50


def test_dead_leaves_need_an_image():
    with pytest.raises(InputError, match=r"shape \[6\] are no images .* cannot be dead_leaves"):
        start_noise(_IDS, _leaves(), VECTOR, seed=0)
