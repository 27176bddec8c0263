"""Augmentation: what each number does, and what it depends on."""

import dataclasses

import pytest
import torch
from small_models import IMAGE, VECTOR, augmentation_recipe

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.recipe_files import load_recipe
from zskd_fast.distillation.augmentation import augment
from zskd_fast.errors import InputError

EVERYTHING = dataclasses.replace(load_recipe("demo").distillation.augmentation, flip_probability=0.5)


def _images(count, *shape, seed=0):
    return torch.rand(count, *(shape or IMAGE.shape), generator=torch.Generator().manual_seed(seed))


def _augment(x, recipe, positions=None, seed=1, input_spec=IMAGE):
    positions = torch.arange(len(x)) if positions is None else positions
    return augment(x, positions, recipe, seed=seed, input_spec=input_spec)


def test_a_recipe_of_zeros_changes_nothing():
    x = _images(4) * 3 - 1
    assert torch.equal(_augment(x, augmentation_recipe()), x)


def test_the_images_of_the_caller_are_not_changed():
    x = _images(8)
    before = x.clone()
    _augment(x, EVERYTHING)
    assert torch.equal(x, before)


def test_the_same_seed_and_positions_give_the_same_bits_and_others_do_not():
    x = _images(8)
    first = _augment(x, EVERYTHING)
    assert torch.equal(_augment(x, EVERYTHING), first)
    assert not torch.equal(_augment(x, EVERYTHING, seed=2), first)
    assert not torch.equal(_augment(x, EVERYTHING, positions=torch.arange(8, 16)), first)


def test_without_mixing_a_row_does_not_depend_on_its_batch():
    x = _images(6)
    recipe = dataclasses.replace(EVERYTHING, mix_probability=0.0)
    together = _augment(x, recipe)
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    assert torch.equal(_augment(x[order], recipe, positions=order), together[order])
    alone = torch.cat([_augment(x[i : i + 1], recipe, positions=torch.tensor([i])) for i in range(6)])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-6)


def test_the_random_state_of_torch_is_not_changed():
    before = torch.get_rng_state()
    _augment(_images(4), EVERYTHING)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("valid_range", [(0.0, 1.0), (-3.0, 5.0)])
def test_the_result_is_clamped_to_the_valid_range(valid_range):
    low, high = valid_range
    spec = InputSpec(shape=IMAGE.shape, valid_range=valid_range)
    x = _images(64) * (high - low) + low
    result = _augment(x, EVERYTHING, input_spec=spec)
    assert result.min() == low
    assert result.max() == high


def test_pixels_from_outside_the_image_have_the_lowest_value():
    spec = InputSpec(shape=IMAGE.shape, valid_range=(-2.0, 2.0))
    far = augmentation_recipe(shift_sigma=1000.0)
    result = _augment(torch.ones(4, 1, 8, 8), far, input_spec=spec)
    assert torch.equal(result, torch.full_like(result, -2.0))


def test_a_flip_swaps_left_and_right():
    x = _images(5)
    result = _augment(x, augmentation_recipe(flip_probability=1.0))
    torch.testing.assert_close(result, x.flip(-1), rtol=0, atol=1e-5)


def test_flips_have_the_probability_of_the_recipe():
    x = _images(1).expand(2000, -1, -1, -1)
    result = _augment(x, augmentation_recipe(flip_probability=0.3))
    flipped = (result - x.flip(-1)).flatten(1).abs().amax(dim=1) < 1e-4
    kept = (result - x).flatten(1).abs().amax(dim=1) < 1e-4
    assert (flipped ^ kept).all()
    assert abs(flipped.float().mean() - 0.3) < 4 * (0.3 * 0.7 / 2000) ** 0.5


def _centers(images):
    """Center of mass of each image, (x, y) in units of half the width and height."""
    height, width = images.shape[-2:]
    mass = images.sum(dim=(1, 2, 3))
    x = (torch.arange(width) + 0.5) * 2 / width - 1
    y = (torch.arange(height) + 0.5) * 2 / height - 1
    return torch.stack([(images.sum(dim=(1, 2)) @ x) / mass, (images.sum(dim=(1, 3)) @ y) / mass], dim=1)


def _blob(height, width, x, y):
    columns = (torch.arange(width) + 0.5) - x
    rows = (torch.arange(height) + 0.5) - y
    return torch.exp(-(columns**2 + rows.unsqueeze(1) ** 2) / 8).reshape(1, 1, height, width)


def test_shifts_have_the_deviation_of_the_recipe():
    x = _blob(48, 48, 24, 24).expand(1000, -1, -1, -1)
    spec = InputSpec(shape=(1, 48, 48))
    centers = _centers(_augment(x, augmentation_recipe(shift_sigma=0.15), input_spec=spec))
    assert abs(centers.mean()) < 4 * 0.15 / 2000**0.5
    assert torch.all((centers.std(dim=0) - 0.15).abs() < 4 * 0.15 / 2000**0.5)


@pytest.mark.parametrize(("height", "width"), [(48, 48), (40, 64)])
def test_rotation_keeps_distances_in_pixels(height, width):
    """A rotation in the unit square would shear an image that is wider than high."""
    x = _blob(height, width, width / 2 + 10, height / 2).expand(500, -1, -1, -1)
    spec = InputSpec(shape=(1, height, width))
    centers = _centers(_augment(x, augmentation_recipe(rotation_sigma=0.5), input_spec=spec))
    pixels = centers * torch.tensor([width / 2, height / 2])
    inside = pixels[:, 1].abs() < 9.5  # no part of the blob is cut off there
    assert inside.sum() > 400
    torch.testing.assert_close(pixels[inside].norm(dim=1), torch.full((int(inside.sum()),), 10.0), atol=0.1, rtol=0)
    angle = torch.atan2(pixels[:, 1], pixels[:, 0])
    assert abs(angle.std() - 0.5) < 0.1


def test_zooming_in_and_out_are_equally_likely():
    x = _blob(48, 48, 32, 24).expand(1000, -1, -1, -1)
    spec = InputSpec(shape=(1, 48, 48))
    centers = _centers(_augment(x, augmentation_recipe(scale_sigma=0.15), input_spec=spec))
    log_scale = torch.log(centers[:, 0] * 24 / 8)
    assert abs(log_scale.mean()) < 0.02
    assert abs(log_scale.std() - 0.15) < 0.02


def test_mixing_is_a_convex_combination_with_the_next_row():
    x = torch.eye(6)
    result = _augment(x, augmentation_recipe(mix_probability=1.0), input_spec=VECTOR)
    weight = result.diagonal()
    assert ((weight > 0) & (weight < 1)).all()
    torch.testing.assert_close(result, weight.unsqueeze(1) * x + (1 - weight).unsqueeze(1) * x.roll(-1, 0))


def test_mixing_has_the_probability_of_the_recipe():
    x = torch.zeros(2000, 6)
    x[::2] = 1.0
    result = _augment(x, augmentation_recipe(mix_probability=0.5), input_spec=VECTOR)
    mixed = (result != x).any(dim=1).float().mean()
    assert abs(mixed - 0.5) < 4 * 0.5 / 2000**0.5


def test_each_row_has_its_own_noise_deviation_in_units_of_the_range():
    spec = InputSpec(shape=(400,), valid_range=(0.0, 10.0))
    result = _augment(torch.zeros(500, 400), augmentation_recipe(noise_max=0.2), input_spec=spec)
    sigma = result.std(dim=1)
    assert 1.8 < sigma.max() < 2.3
    assert sigma.min() < 0.1
    assert abs(sigma.mean() - 1.0) < 4 * (2 / 12**0.5) / 500**0.5
    assert abs((result / sigma.unsqueeze(1)).pow(4).mean() - 3) < 0.1  # the kurtosis of a normal distribution


@pytest.mark.parametrize("moving", ["rotation_sigma", "scale_sigma", "shift_sigma", "flip_probability"])
def test_only_images_can_be_moved(moving):
    with pytest.raises(InputError, match=r"shape \[6\] are no images"):
        _augment(torch.zeros(2, 6), augmentation_recipe(**{moving: 0.1}), input_spec=VECTOR)
