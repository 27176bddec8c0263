"""augment: the variations of the reference, in one pass."""

import math

import pytest
import torch

from zskd_fast import ops, reference
from zskd_fast._extension import _C

MAP = dict(rotation_sigma=0.3, scale_sigma=0.2, shift_sigma=0.2, flip_probability=0.3)
EVERYTHING = {**MAP, "mix_probability": 0.5, "noise_max": 0.2, "clamp": True}
DRAW = dict(seed=7, stream=3)
SHAPES = [(1, 1, 1, 1), (3, 2, 1, 1), (4, 1, 1, 5), (4, 1, 5, 1), (9, 1, 8, 8), (5, 3, 7, 13), (3, 1, 3, 130)]
LARGE_SEED, LARGE_POSITION, LARGEST_STREAM = 2**62 + 2**33 + 5, 2**40 + 3, 2**28 - 5


def _batch(*shape, seed=0):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return x, torch.arange(shape[0]) * 3 + LARGE_POSITION


def _assert_reference(x, positions, **numbers):
    got = ops.augment(x, positions, **numbers)
    want = reference.augment(x.double(), positions, **numbers)
    assert got.is_contiguous() and (got.shape, got.dtype) == (x.shape, torch.float32)
    # A place is rounded in units of pixels: its error grows with the size of an image.
    assert not ((got - want).abs() > 2e-6 * max(4, x.shape[-1])).any()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("left_out", [None, *EVERYTHING])
def test_matches_the_reference_with_every_variation_and_without_each(left_out, shape):
    numbers = {name: value for name, value in EVERYTHING.items() if name != left_out}
    _assert_reference(*_batch(*shape), **DRAW, **numbers, low=-1.0, high=2.0)


@pytest.mark.parametrize("only", EVERYTHING)
def test_matches_the_reference_with_one_variation_alone(only):
    x, positions = _batch(9, 3, 6, 10)
    _assert_reference(x * 3 - 1, positions, **DRAW, **{only: EVERYTHING[only]}, low=-0.5, high=1.5)


@pytest.mark.parametrize("shape", [(1, 1), (7, 6), (2, 3, 5), (3, 2, 1, 2, 3), (3, 1027), (5,)], ids=str)
def test_rows_of_any_shape_are_mixed_get_noise_and_are_clamped(shape):
    _assert_reference(*_batch(*shape), **DRAW, mix_probability=0.5, noise_max=0.2, clamp=True, low=0.1, high=0.9)


def test_matches_the_reference_for_large_seeds_and_the_last_streams():
    x, positions = _batch(6, 1, 5, 5)
    for numbers in (dict(seed=LARGE_SEED, stream=0), dict(seed=0, stream=LARGEST_STREAM)):
        _assert_reference(x, positions, **numbers, **EVERYTHING)
        _assert_reference(x, -positions, **numbers, **EVERYTHING)


def test_extreme_maps_leave_the_background():
    """The place of a pixel is then far beyond what 32 bits hold, infinite or NaN."""
    x, positions = _batch(64, 1, 8, 8)
    far = ops.augment(x, positions, **DRAW, shift_sigma=1e30, low=-3.0)
    assert torch.equal(far, torch.full_like(far, -3.0))
    for numbers in ({"scale_sigma": 1e3}, {"rotation_sigma": 1e38}, {"scale_sigma": 1e3, "shift_sigma": 1e38}):
        result = ops.augment(x, positions, **DRAW, **numbers, low=-3.0)
        assert result.isfinite().all() and result.min() >= -3.0 and result.max() < 1.0


def test_the_draws_are_those_of_philox():
    x, positions = torch.zeros(5, 11), torch.arange(5)
    noise = ops.philox(positions, 11, seed=7, stream=3 + 4, distribution="normal")
    deviation = 0.25 * ops.philox(positions, 1, seed=7, stream=3 + 3)
    torch.testing.assert_close(ops.augment(x, positions, **DRAW, noise_max=0.25), deviation * noise)


def test_a_row_that_is_not_varied_keeps_its_bits():
    x, positions = _batch(200, 1, 6, 7)
    assert torch.equal(ops.augment(x, positions, **DRAW), x)
    flipped = ops.augment(x, positions, **DRAW, flip_probability=0.5)
    is_flipped = (flipped == x.flip(-1)).flatten(1).all(1)
    assert 50 < is_flipped.sum() < 150 and torch.equal(flipped[~is_flipped], x[~is_flipped])
    mixed = ops.augment(x, positions, **DRAW, mix_probability=0.5)
    assert 50 < (mixed == x).flatten(1).all(1).sum() < 150


def test_a_row_is_mixed_with_the_next_one_as_that_is_moved():
    x, positions = _batch(6, 1, 8, 8)
    moved = ops.augment(x, positions, **DRAW, **MAP)
    weight = ops.philox(positions, 2, seed=7, stream=3 + 2)[:, 1].reshape(-1, 1, 1, 1)
    mixed = ops.augment(x, positions, **DRAW, **MAP, mix_probability=1.0)
    torch.testing.assert_close(mixed, weight * moved + (1 - weight) * moved.roll(-1, 0))


def test_a_row_depends_on_itself_and_the_next_one_only():
    x, positions = _batch(6, 1, 8, 8)
    numbers = {**DRAW, **EVERYTHING, "mix_probability": 1.0}
    whole = ops.augment(x, positions, **numbers)
    assert torch.equal(ops.augment(x[2:4].contiguous(), positions[2:4], **numbers)[0], whole[2])
    x[3] = 0.5
    changed = (ops.augment(x, positions, **numbers) != whole).flatten(1).any(1)
    assert changed.tolist() == [False, False, True, True, False, False]


def test_a_row_alone_is_mixed_with_itself():
    x, positions = _batch(1, 1, 8, 8)
    moved = ops.augment(x, positions, **DRAW, **MAP)
    torch.testing.assert_close(ops.augment(x, positions, **DRAW, **MAP, mix_probability=1.0), moved)


@pytest.mark.parametrize("shape", [(203, 1, 12, 12), (61, 3, 32, 32), (300, 70)], ids=str)
def test_same_bits_for_every_thread_count(shape):
    """A partner that belongs to another thread is moved twice."""
    (x, positions), before = _batch(*shape), torch.get_num_threads()
    numbers = EVERYTHING if len(shape) == 4 else dict(mix_probability=0.5, noise_max=0.2)
    try:
        results = []
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            results.append(ops.augment(x, positions, **DRAW, **numbers))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


def test_other_layouts_have_the_same_bits_and_nothing_of_the_caller_changes():
    x, positions = _batch(5, 3, 8, 9)
    want = ops.augment(x, positions, **DRAW, **EVERYTHING)
    spaced = torch.full((5, 3, 8, 18), torch.nan)
    spaced[..., ::2] = x
    for other in (x.to(memory_format=torch.channels_last), x.mT.contiguous().mT, spaced[..., ::2]):
        kept = other.clone()
        got = ops.augment(other, positions.repeat_interleave(2)[::2], **DRAW, **EVERYTHING)
        assert torch.equal(got, want) and got.is_contiguous() and torch.equal(other, kept)
    repeated = ops.augment(x[:1].expand(5, -1, -1, -1), positions, **DRAW, **EVERYTHING)
    assert torch.equal(repeated, ops.augment(x[:1].repeat(5, 1, 1, 1), positions, **DRAW, **EVERYTHING))


def test_nan_stays_nan_where_its_pixels_are_sampled():
    x, positions = _batch(3, 1, 8, 8)
    x[1] = torch.nan
    moved = ops.augment(x, positions, **DRAW, **MAP, clamp=True)
    assert moved[1].isnan().any() and moved[[0, 2]].isfinite().all()
    far = ops.augment(x, positions, **DRAW, shift_sigma=1e6)
    assert torch.equal(far, torch.zeros_like(far))


def test_empty_batches():
    for shape in ((0, 3, 8, 8), (2, 0, 8, 8), (2, 3, 0, 8), (2, 3, 8, 0)):
        assert ops.augment(torch.empty(shape), torch.arange(shape[0]), **DRAW, **EVERYTHING).shape == shape
    assert ops.augment(torch.empty(0, 6), torch.arange(0), **DRAW, noise_max=0.1).shape == (0, 6)


def test_opcheck_and_compile():
    x, positions = _batch(4, 3, 6, 6)
    numbers = (7, 3, 0.3, 0.2, 0.2, 0.5, 0.5, 0.2, True, 0.0, 1.0)
    last = x.to(memory_format=torch.channels_last)
    torch.library.opcheck(torch.ops.zskd_fast.augment.default, (last, positions, *numbers))
    compiled = torch.compile(
        lambda x: ops.augment(x, positions, **DRAW, **EVERYTHING) + 1, fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(x), ops.augment(x, positions, **DRAW, **EVERYTHING) + 1)


def test_a_gradient_is_refused_with_what_to_use():
    x, positions = _batch(2, 6)
    with pytest.raises(ValueError, match=r"augment: x requires grad, .*; pass \.detach\(\)"):
        ops.augment(x.requires_grad_(), positions, **DRAW)
    with torch.no_grad():
        assert torch.equal(ops.augment(x, positions, **DRAW), x)


IMAGES = torch.zeros(2, 1, 4, 4)


@pytest.mark.parametrize(
    ("x", "positions", "changed", "error", "message"),
    [
        (IMAGES.double(), [0, 1], {}, TypeError, "x is Double, wanted float32"),
        (IMAGES.to_sparse(), [0, 1], {}, TypeError, "x is sparse, wanted a dense tensor"),
        (torch.tensor(1.0), [0], {}, ValueError, r"x is one number, wanted \[N, \.\.\.\]"),
        (IMAGES, [0.0, 1.0], {}, TypeError, "positions is Float, wanted int64"),
        (IMAGES, [0], {}, ValueError, r"positions has shape \[1\], wanted \[2\], one for each row of x"),
        (IMAGES[0], [0], {"rotation_sigma": 0.1}, ValueError, r"x has shape \[1, 4, 4\], wanted images \[N, C, H, W\]"),
        (IMAGES, [0, 1], {"scale_sigma": -0.1}, ValueError, "scale_sigma is -0.1, wanted a finite number of 0 or more"),
        (IMAGES, [0, 1], {"noise_max": math.inf}, ValueError, "noise_max is inf, wanted a finite number"),
        (IMAGES, [0, 1], {"shift_sigma": math.nan}, ValueError, "shift_sigma is nan, wanted a finite number"),
        (IMAGES, [0, 1], {"mix_probability": 1.5}, ValueError, "mix_probability is 1.5, wanted 0 to 1"),
        (IMAGES, [0, 1], {"low": 1.0}, ValueError, "low and high are 1 and 1, wanted two finite numbers"),
        (IMAGES, [0, 1], {"seed": -1}, ValueError, "seed is -1, wanted 0 or more"),
        (IMAGES, [0, 1], {"seed": 2**64 - 1}, ValueError, r"seed is 18446744073709551615, wanted 0 to 2\^63 - 1"),
        (IMAGES, [0, 1], {"stream": 2**28 - 4}, ValueError, r"stream is 268435452, wanted 0 to 2\^28 - 5"),
    ],
)
def test_wrong_arguments_are_refused_in_one_sentence(x, positions, changed, error, message):
    with pytest.raises(error, match=f"^augment: {message}"):
        ops.augment(x, torch.tensor(positions), **{**DRAW, **changed})


@pytest.mark.parametrize(
    ("height", "width", "message"),
    [
        (2**16, 2**15, r"wanted fewer than 2\^31 pixels in a channel"),
        (1, 2**24 + 3, r"wanted fewer than 2\^24 pixels in a row or column"),
        (2**24 + 3, 1, r"wanted fewer than 2\^24 pixels in a row or column"),
    ],
)
def test_an_image_that_is_too_large_for_its_places_is_refused(height, width, message):
    x = torch.zeros(1, 1, 1, 1).expand(1, 0, height, width)
    with pytest.raises(ValueError, match=message):
        _C.augment(x, torch.arange(1), 0, 0, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0, False, 0.0, 1.0)
