"""max_pool: result and gradient have the bits of torch's max_pool2d(x, 2)."""

import pytest
import torch

from zskd_fast import ops, reference
from zskd_fast._extension import _C


def image(shape, seed=0):
    """An image of few different values, so that most windows have equal ones."""
    return torch.randint(-3, 3, shape, generator=torch.Generator().manual_seed(seed)).float()


def value_and_grad(pool, x):
    x = x.clone().requires_grad_()
    y = pool(x)
    weights = torch.arange(1.0, 1 + y.numel(), dtype=x.dtype).reshape(y.shape)
    return y.detach(), torch.autograd.grad((y * weights).sum(), x)[0]


def assert_same(x):
    for got, want in zip(value_and_grad(ops.max_pool, x), value_and_grad(reference.max_pool, x), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("height", [2, 3, 10, 28])
@pytest.mark.parametrize("width", [2, 3, 4, 7, 8, 9, 10, 15, 16, 28, 33])
def test_has_the_bits_of_torch(height, width):
    assert_same(image((3, 2, height, width)))


@pytest.mark.parametrize("width", [6, 8, 18])
def test_nan_and_infinity(width):
    x = image((2, 3, 8, width))
    for seed, value in enumerate((torch.nan, torch.inf, -torch.inf)):
        chosen = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < 0.3
        x[chosen] = value
    x[0, 0, :2, :4] = torch.nan
    x[0, 1, :2, :4] = -torch.inf
    assert_same(x)


@pytest.mark.parametrize(
    "x",
    [
        image((2, 3, 8, 8)).to(memory_format=torch.channels_last),
        image((2, 3, 8, 8)).double(),
        image((3, 8, 8)),
        image((0, 3, 8, 8)),
        image((2, 3, 8, 16))[..., ::2],
    ],
    ids=["channels_last", "float64", "one image", "empty", "sliced"],
)
def test_other_inputs_are_passed_to_torch(x):
    assert_same(x)


def test_same_bits_for_every_thread_count():
    x, before = torch.rand(64, 16, 28, 28), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(ops.max_pool(x))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


def test_compiled_call_has_the_same_result():
    x = image((2, 3, 8, 8))
    compiled = torch.compile(lambda x: ops.max_pool(x) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), reference.max_pool(x) + 1)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(1, 1, 4, 4).double(), TypeError, "x is Double on cpu, wanted float32 on cpu"),
        (torch.zeros(1, 4, 4), ValueError, r"x has shape \[1, 4, 4\] .*, wanted contiguous"),
        (torch.zeros(1, 2, 4, 4).permute(0, 2, 1, 3), ValueError, "wanted contiguous"),
        (torch.zeros(1, 1, 1, 4), ValueError, "wanted images of at least 2x2"),
    ],
)
def test_kernel_rejects_other_inputs(x, error, message):
    with pytest.raises(error, match=message):
        _C.max_pool(x)
