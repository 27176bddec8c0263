"""The CUDA kernels that paint pixels or look at their neighbors, in the emulator: the bits of the CPU backend."""

import math

import emulated_images as emulated
import pytest
import torch
from emulated import orders, same_bits
from row_losses import DTYPES

from zskd_fast import ops

# --- dead_leaves ---

# Leaves, channels, height and width: a single pixel, widths with and without whole vectors, more than one block an
# image, and more leaves than shared memory holds at once.
PICTURES = [
    (1, 1, 1, 1),
    (1, 3, 32, 32),
    (10, 1, 32, 32),
    (10, 3, 28, 30),
    (7, 2, 5, 3),
    (7, 4, 3, 517),
    (0, 2, 4, 4),
    (127, 1, 9, 8),
    (128, 3, 9, 8),
    (129, 3, 9, 7),
    (300, 4, 17, 24),
]


def leaves_of(images: int, leaves: int, channels: int, size: float = 3.0) -> torch.Tensor:
    """Random leaves; a large `size` makes them small, so that many pixels are covered by an early leaf or by none."""
    numbers = torch.randn(images, leaves, 5 + channels, generator=torch.Generator().manual_seed(leaves))
    numbers[..., 2:4] /= size
    return numbers


@pytest.mark.parametrize("picture", PICTURES, ids=str)
def test_dead_leaves_have_the_bits_of_the_cpu(picture):
    leaves, channels, height, width = picture
    for size in (1.0, 3.0, 30.0):
        numbers = leaves_of(3, leaves, channels, size)
        want = ops.dead_leaves(numbers, height, width)
        for order, most_blocks in orders(4):
            for offset in (0, 1):
                got = emulated.dead_leaves(numbers, height, width, offset=offset, order=order, most_blocks=most_blocks)
                assert same_bits(got, want), f"size {size}, order {order}, {most_blocks} blocks, offset {offset}"


def test_dead_leaves_of_a_large_image_and_of_none():
    numbers = leaves_of(1, 10, 3)
    assert same_bits(emulated.dead_leaves(numbers, 224, 224), ops.dead_leaves(numbers, 224, 224))
    assert emulated.dead_leaves(numbers[:0], 4, 5).shape == (0, 3, 4, 5)


def test_nan_covers_nothing():
    numbers = leaves_of(2, 5, 2)
    numbers[0, 3:] = torch.nan
    numbers[1, 2, 2] = math.inf
    numbers[1, 3, 4] = torch.nan
    numbers[1, 4, 4] = math.inf
    assert same_bits(emulated.dead_leaves(numbers, 8, 8), ops.dead_leaves(numbers, 8, 8))


# --- augment ---

MAP = dict(rotation_sigma=0.3, scale_sigma=0.2, shift_sigma=0.2, flip_probability=0.5)
BOUNDS = dict(low=-1.0, high=2.0)
VARIATIONS = {
    "none": {},
    "map": MAP,
    "flip": {"flip_probability": 0.5},
    "far": {"shift_sigma": 300.0, "scale_sigma": 40.0, **BOUNDS},
    "mixture": {"mix_probability": 0.5},
    "noise": {"noise_max": 0.3, **BOUNDS},
    "clamp": {"clamp": True, "low": 0.2, "high": 0.7},
    "everything": {**MAP, "mix_probability": 0.5, "noise_max": 0.3, "clamp": True, **BOUNDS},
}
# One pixel, whole vectors and none, several channels, and more than one block a row.
BATCHES = [(1, 1, 1, 1), (3, 1, 8, 8), (2, 3, 7, 5), (5, 2, 1, 6), (3, 3, 20, 24), (2, 1, 37, 41)]


@pytest.mark.parametrize("shape", BATCHES, ids=str)
@pytest.mark.parametrize("variation", VARIATIONS)
def test_augmented_rows_have_the_bits_of_the_cpu(variation, shape):
    numbers = dict(seed=2**40 + 3, stream=3, **VARIATIONS[variation])
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(2 * len(x))[::2] + 2**33
    want = ops.augment(x, positions, **numbers)
    for order, most_blocks in orders(4):
        for offset in (0, 1):
            got = emulated.augment(x, positions, **numbers, offset=offset, order=order, most_blocks=most_blocks)
            assert same_bits(got, want), f"order {order}, {most_blocks} blocks, offset {offset}"


def test_augmented_rows_that_are_no_images_have_the_bits_of_the_cpu():
    numbers = dict(seed=1, stream=9, mix_probability=0.5, noise_max=0.3, clamp=True)
    for shape in ((4, 1), (3, 6), (2, 5, 7), (2, 3000), (0, 6)):
        x, positions = torch.rand(shape), torch.arange(len(torch.empty(shape)))
        assert same_bits(emulated.augment(x, positions, **numbers), ops.augment(x, positions, **numbers))


def test_pixels_that_are_not_finite_spread_as_on_the_cpu():
    x = torch.rand(4, 1, 9, 9)
    x[0, 0, 4, 4], x[1, 0, 0], x[2] = torch.nan, math.inf, torch.nan
    numbers = dict(seed=1, stream=0, **MAP, mix_probability=1.0, clamp=True)
    got, want = (vary(x, torch.arange(4), **numbers) for vary in (emulated.augment, ops.augment))
    assert torch.equal(got.isnan(), want.isnan()) and torch.equal(got.nan_to_num(5.0), want.nan_to_num(5.0))


# --- total_variation_grad_ ---


@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1, 1),
        (2, 3, 1, 5),
        (2, 3, 5, 1),
        (2, 1, 2, 2),
        (3, 3, 8, 8),
        (2, 3, 7, 9),
        (5, 1, 32, 32),
        (1, 4, 3, 130),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_total_variation_grad_has_the_bits_of_the_cpu(dtype, shape):
    g = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(shape, generator=g).to(dtype) for _ in range(2))
    want = grad.clone()
    ops.total_variation_grad_(want, x, 0.3)
    for layout in (torch.contiguous_format, torch.channels_last):
        pixels = x.contiguous(memory_format=layout)
        for order, most_blocks in orders(4):
            for offset in (0, 1):
                got = grad.clone(memory_format=layout)
                emulated.total_variation_grad_(got, pixels, 0.3, offset=offset, order=order, most_blocks=most_blocks)
                assert same_bits(got, want), f"{layout}, order {order}, {most_blocks} blocks, offset {offset}"
