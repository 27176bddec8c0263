"""total_variation_grad_: the gradient of the squared differences of neighboring pixels, added in place."""

import pytest
import torch

from zskd_fast import ops, reference

SHAPE = (5, 3, 8, 9)
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
LAST = torch.channels_last


def inputs(dtype=torch.float32, shape=SHAPE, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g).to(dtype), torch.randn(shape, generator=g).to(dtype)


def added(grad, x, weight=0.3):
    """The sum in new memory of the same layout."""
    result = grad.clone()
    ops.total_variation_grad_(result, x, weight)
    return result


def test_is_the_gradient_of_the_squared_differences():
    grad, x = inputs(torch.float64)
    leaf = x.clone().requires_grad_()
    loss = 0.3 * (leaf.diff(dim=-1).square().sum() + leaf.diff(dim=-2).square().sum())
    want = grad + torch.autograd.grad(loss, leaf)[0]
    torch.testing.assert_close(added(grad, x), want, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1, 1),
        (2, 3, 1, 1),
        (2, 3, 1, 6),
        (2, 3, 6, 1),
        (2, 1, 2, 2),
        (3, 3, 28, 28),
        (2, 3, 5, 67),
        (1, 70, 3, 4),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_the_reference_in_every_layout(dtype, shape):
    grad, x = inputs(dtype, shape)
    want = grad.double().clone()
    reference.total_variation_grad_(want, x.double(), 0.3)
    got = added(grad, x)
    assert not ((got.double() - want).abs() > torch.finfo(dtype).eps * (want.abs() + 4)).any()
    assert torch.equal(added(grad.to(memory_format=LAST), x.to(memory_format=LAST)), got)


def test_every_mixture_of_layouts_gives_the_same_bits():
    grad, x = inputs()
    want = added(grad, x)
    last = grad.to(memory_format=LAST)
    assert torch.equal(added(last, x), want) and torch.equal(added(grad, x.to(memory_format=LAST)), want)
    ops.total_variation_grad_(last, x, 0.3)
    assert torch.equal(last, want) and last.is_contiguous(memory_format=LAST)
    holder = torch.full((5, 3, 8, 18), torch.nan)
    holder[..., ::2] = grad
    ops.total_variation_grad_(holder[..., ::2], x, 0.3)
    assert torch.equal(holder[..., ::2], want) and holder[..., 1::2].isnan().all()
    assert torch.equal(added(grad, x[:1].expand(SHAPE)), added(grad, x[:1].repeat(5, 1, 1, 1)))


def test_mirrored_and_turned_images_have_mirrored_and_turned_gradients():
    grad, x = inputs()
    want = added(grad, x)
    for turn in (lambda t: t.flip(-1), lambda t: t.flip(-2), lambda t: t.mT):
        assert torch.equal(added(turn(grad).contiguous(), turn(x).contiguous()), turn(want))


def test_an_impression_and_its_channels_do_not_depend_on_others():
    grad, x = inputs()
    want = added(grad, x)
    assert torch.equal(added(grad[2:3], x[2:3]), want[2:3])
    x[1, 1] = torch.nan
    changed = added(grad, x)
    assert changed[1, 1].isnan().all() and changed.isnan().sum() == 72
    assert torch.equal(changed[1, [0, 2]], want[1, [0, 2]])


def test_nan_reaches_its_neighbors_only():
    grad, x = inputs(shape=(1, 1, 5, 5))
    x[0, 0, 2, 2] = torch.nan
    cross = torch.zeros(5, 5, dtype=torch.bool)
    cross[2, 1:4] = cross[1:4, 2] = True
    assert torch.equal(added(grad, x)[0, 0].isnan(), cross)


def test_x_is_not_changed_and_may_be_grad_itself():
    grad, x = inputs()
    kept = x.clone()
    added(grad, x)
    assert torch.equal(x, kept)
    want = added(x, kept)
    ops.total_variation_grad_(x, x, 0.3)
    assert torch.equal(x, want)


def test_a_flat_image_has_no_gradient_and_an_empty_batch_is_fine():
    grad, _ = inputs()
    assert torch.equal(added(grad, torch.full(SHAPE, 0.7)), grad)
    for shape in ((0, 3, 8, 8), (2, 0, 8, 8), (2, 3, 0, 8), (2, 3, 8, 0)):
        assert added(torch.empty(shape), torch.empty(shape)).shape == shape


@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST], ids=str)
def test_same_bits_for_every_thread_count(layout):
    (grad, x), before = inputs(shape=(64, 3, 33, 32)), torch.get_num_threads()
    grad, x = grad.contiguous(memory_format=layout), x.contiguous(memory_format=layout)
    try:
        results = []
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            results.append(added(grad, x))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


def test_opcheck_and_compile():
    grad, x = inputs()
    torch.library.opcheck(torch.ops.zskd_fast.total_variation_grad_.default, (grad.clone(), x, 0.3))

    def step(grad, x):
        ops.total_variation_grad_(grad, x, 0.3)
        return grad + 1

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    first, second = grad.clone(), grad.clone()
    assert torch.equal(compiled(first, x), step(second, x)) and torch.equal(first, second)


def test_autograd_detects_the_change_of_a_saved_tensor():
    grad, x = inputs()
    weight = torch.ones(SHAPE, requires_grad=True)
    loss = (grad * weight).sum()
    ops.total_variation_grad_(grad, x, 0.3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_transform_of_torch_func_is_refused_with_what_to_use():
    grad, x = inputs()
    with pytest.raises(RuntimeError, match=r"call zskd_fast\.reference\.total_variation_grad_"):
        torch.func.vmap(lambda g: ops.total_variation_grad_(g[None], x[:1], 0.3))(grad)
