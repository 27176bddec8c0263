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
    numbers = torch.randn(images, leaves, 6 + channels, generator=torch.Generator().manual_seed(leaves))
    numbers[..., 2:6] *= size
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
    assert same_bits(emulated.dead_leaves(numbers, 8, 8), ops.dead_leaves(numbers, 8, 8))


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
