"""dead_leaves: the images of the reference, to the bit."""

import math

import pytest
import torch

from zskd_fast import ops, reference
from zskd_fast._extension import _C


def _leaves(images=3, leaves=7, channels=3, seed=0):
    return torch.randn(images, leaves, 5 + channels, generator=torch.Generator().manual_seed(seed))


def _leaf(*, center=(0.0, 0.0), half_axes=(0.5, 0.5), angle=0.0, values=(1.0,)):
    return torch.tensor([*center, *half_axes, angle, *values])


def _picture(*leaves, height=4, width=4):
    """The images of some leaves, the first one an ellipse, the second a box and so on, as rows of digits."""
    image = ops.dead_leaves(torch.stack(leaves)[None], height, width)
    return ["".join(str(int(value)) for value in row) for row in image[0, 0]]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 3), (8, 8), (32, 32), (7, 63), (6, 64), (5, 65), (3, 200)])
def test_has_the_bits_of_the_reference(height, width, channels):
    leaves = _leaves(channels=channels)
    assert torch.equal(ops.dead_leaves(leaves, height, width), reference.dead_leaves(leaves, height, width))


def test_an_ellipse_and_a_box_lie_where_their_numbers_say():
    wide, tall = _leaf(half_axes=(1.0, 0.5)), _leaf(half_axes=(0.3, 1.0))
    assert _picture(wide) == ["0000", "1111", "1111", "0000"]
    nothing = _leaf(center=(9.0, 9.0))
    assert _picture(nothing, wide) == ["0000", "1111", "1111", "0000"]
    assert _picture(nothing, tall) == ["0110", "0110", "0110", "0110"]
    corner = _leaf(center=(-1.0, 1.0), half_axes=(0.9, 0.9))
    assert _picture(corner) == ["0011", "0001", "0000", "0000"]
    assert _picture(nothing, corner) == ["0011", "0011", "0000", "0000"]


def test_a_leaf_turns_about_its_center():
    flat = _leaf(half_axes=(2.0, 0.3), angle=math.pi / 2)
    assert _picture(flat) == ["0110", "0110", "0110", "0110"]


def test_a_later_leaf_covers_the_ones_before():
    below, above = _leaf(half_axes=(2.0, 2.0), values=(1.0,)), _leaf(half_axes=(0.5, 2.0), values=(2.0,))
    assert _picture(below, above) == ["1221", "1221", "1221", "1221"]
    assert _picture(_leaf(center=(9.0, 9.0)), below) == ["1111"] * 4


def test_no_leaves_and_no_images():
    assert torch.equal(ops.dead_leaves(torch.zeros(2, 0, 6), 3, 4), torch.zeros(2, 1, 3, 4))
    assert ops.dead_leaves(torch.zeros(0, 2, 7), 3, 4).shape == (0, 2, 3, 4)


def test_nan_covers_nothing():
    for number in range(5):
        leaves = _leaf(half_axes=(9.0, 9.0)).repeat(1, 2, 1)
        leaves[..., number] = torch.nan
        for paint in (ops.dead_leaves, reference.dead_leaves):
            assert torch.equal(paint(leaves, 3, 3), torch.zeros(1, 1, 3, 3))


def test_same_bits_for_every_thread_count():
    leaves, before = _leaves(200), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(ops.dead_leaves(leaves, 32, 32))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


def test_other_layouts_and_compiled_calls_have_the_same_result():
    leaves = _leaves()
    wanted = reference.dead_leaves(leaves, 8, 9)
    strided = torch.empty(3, 7, 16)[..., ::2].copy_(leaves)
    assert torch.equal(ops.dead_leaves(strided, 8, 9), wanted)
    compiled = torch.compile(lambda x: ops.dead_leaves(x, 8, 9) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(leaves), wanted + 1)


def test_the_fast_kernel_runs_for_any_strides(monkeypatch):
    leaves = _leaves()
    want = ops.dead_leaves(leaves, 8, 9)
    monkeypatch.setattr(reference, "dead_leaves", None)
    for other in (torch.empty(3, 7, 16)[..., ::2].copy_(leaves), leaves.mT.contiguous().mT):
        assert not other.is_contiguous() and torch.equal(ops.dead_leaves(other, 8, 9), want)
    assert torch.equal(ops.dead_leaves(leaves[:1].expand(3, -1, -1), 8, 9), want[:1].repeat(3, 1, 1, 1))


def test_the_gradient_of_a_value_counts_its_pixels():
    leaf = _leaf(half_axes=(1.0, 0.5)).requires_grad_()
    ops.dead_leaves(leaf[None, None], 4, 4).sum().backward()
    assert leaf.grad[-1] == 8


@pytest.mark.parametrize(
    ("leaves", "size", "error", "message"),
    [
        (torch.zeros(1, 1, 6).double(), (4, 4), TypeError, "leaves is Double, wanted float32"),
        (
            torch.zeros(1, 1, 5),
            (4, 4),
            ValueError,
            r"leaves has shape \[1, 1, 5\], wanted \[N, L, 5 \+ C\] with C >= 1",
        ),
        (torch.zeros(1, 7), (4, 4), ValueError, r"leaves has shape \[1, 7\], wanted \[N, L, 5"),
        (torch.zeros(1, 1, 6), (0, 4), ValueError, "height and width are 0 and 4, wanted 1 or more"),
    ],
)
def test_wrong_leaves_are_refused(leaves, size, error, message):
    with pytest.raises(error, match=message):
        _C.dead_leaves(leaves, *size)
