"""impression_update_: an Adam step in place, with the gradient of the pixel priors and a clamp."""

import math

import pytest
import torch

from zskd_fast import ops, reference

SHAPE = (5, 3, 8, 8)


def state(dtype=torch.float32, shape=SHAPE, seed=0):
    g = torch.Generator().manual_seed(seed)
    moments = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    x = torch.rand(shape, generator=g).to(dtype)
    grads = [torch.randn(shape, generator=g).to(dtype) for _ in range(4)]
    return x, grads, torch.zeros(shape, dtype=moments), torch.zeros(shape, dtype=moments)


def run(update, x, grads, m, v, **options):
    for step, grad in enumerate(grads, start=1):
        update(x, grad, m, v, step, lr=0.1 / step, **options)
    return x, m, v


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equals_torch_adam_without_priors_and_clamp(dtype):
    x, grads, m, v = state(dtype)
    leaf = x.clone().requires_grad_()
    adam = torch.optim.Adam([leaf], lr=0.1, betas=(0.8, 0.99), eps=1e-6)
    for step, grad in enumerate(grads, start=1):
        leaf.grad = grad.clone()
        adam.step()
        ops.impression_update_(x, grad, m, v, step, lr=0.1, betas=(0.8, 0.99), eps=1e-6)
    assert (x - leaf).abs().max() <= 4 * torch.finfo(dtype).eps
    assert torch.allclose(m, adam.state[leaf]["exp_avg"]) and torch.allclose(v, adam.state[leaf]["exp_avg_sq"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "options",
    [{}, {"l1": 0.3}, {"l2": 0.2}, {"lo": 0.0, "hi": 1.0}, {"l1": 0.1, "l2": 0.1, "lo": 0.2, "hi": 0.7}],
    ids=lambda o: "+".join(o) or "plain",
)
def test_matches_the_reference(dtype, options):
    x, grads, m, v = state(dtype)
    got = run(ops.impression_update_, x.clone(), grads, m.clone(), v.clone(), **options)
    # For a 16-bit x the reference runs in the same dtypes, because x is rounded after every step.
    wide = (lambda t: t.double()) if dtype == torch.float32 else (lambda t: t)
    want = run(reference.impression_update_, wide(x), [wide(g) for g in grads], wide(m), wide(v), **options)
    for ours, exact, size in zip(got, want, (1.0, 1.0, 4.0), strict=True):
        assert (ours.double() - exact.double()).abs().max() <= 8 * size * torch.finfo(ours.dtype).eps


def test_l1_prior_has_no_gradient_at_zero():
    x, m, v = torch.zeros(1, 4), torch.zeros(1, 4), torch.zeros(1, 4)
    ops.impression_update_(x, torch.zeros(1, 4), m, v, 1, lr=0.1, l1=1.0)
    assert torch.equal(x, torch.zeros(1, 4))


def test_bounds_per_channel():
    x, grads, m, v = state()
    lo, hi = torch.tensor([0.0, 0.4, -math.inf]), torch.tensor([0.5, 0.6, math.inf])
    run(ops.impression_update_, x, grads, m, v, lo=lo, hi=hi)
    want, grads, m, v = state()
    run(reference.impression_update_, want, grads, m, v, lo=lo, hi=hi)
    assert (x - want).abs().max() <= 2e-6
    assert x[:, 1].min() >= 0.4 and x[:, 1].max() <= 0.6 and x[:, 2].max() > 0.6


def test_an_impression_does_not_depend_on_its_batch():
    x, grads, m, v = state()
    run(ops.impression_update_, x, grads, m, v, l1=0.1, lo=0.0, hi=1.0)
    alone, grads, m, v = state()
    alone, grads, m, v = alone[2:3], [g[2:3] for g in grads], m[2:3], v[2:3]
    run(ops.impression_update_, alone, grads, m, v, l1=0.1, lo=0.0, hi=1.0)
    assert torch.equal(alone, x[2:3])


@pytest.mark.parametrize("per_channel", [False, True])
def test_every_layout_gives_the_same_bits(per_channel):
    bounds = {"lo": torch.tensor([0.0, 0.1, 0.2]), "hi": 1.0} if per_channel else {"lo": 0.0, "hi": 1.0}
    want, *_ = run(ops.impression_update_, *state(), l1=0.1, **bounds)

    x, grads, m, v = state()
    channels_last = torch.channels_last
    last = run(
        ops.impression_update_,
        x.to(memory_format=channels_last),
        [g.to(memory_format=channels_last) for g in grads],
        m.to(memory_format=channels_last),
        v.to(memory_format=channels_last),
        l1=0.1,
        **bounds,
    )
    assert torch.equal(last[0], want) and last[0].is_contiguous(memory_format=channels_last)

    x, grads, m, v = state()
    holder = torch.full((5, 3, 8, 16), torch.nan)
    holder[..., ::2] = x
    sliced = run(ops.impression_update_, holder[..., ::2], grads, m, v, l1=0.1, **bounds)
    assert torch.equal(sliced[0], want) and holder[..., 1::2].isnan().all()

    x, grads, m, v = state()
    mixed = run(ops.impression_update_, x, [g.to(memory_format=channels_last) for g in grads], m, v, l1=0.1, **bounds)
    assert torch.equal(mixed[0], want)


LIKE_CONTIGUOUS = {
    "one channel, channels-last": lambda t: t[:, :1].permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    "one impression of a larger batch": lambda t: torch.cat([t, t], dim=1)[:1, :3],
    "no impression": lambda t: torch.cat([t, t], dim=1)[:0, :3],
}


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("layout", LIKE_CONTIGUOUS)
def test_contiguous_tensors_may_differ_in_the_stride_of_an_axis_of_size_1(layout, per_channel):
    x, grads, m, v = state()
    other = LIKE_CONTIGUOUS[layout](grads[0])
    x, m, v = (t[: len(other), : other.shape[1]].contiguous() for t in (x, m, v))
    assert x.is_contiguous() and other.is_contiguous() and x.stride() != other.stride()
    bounds = {"lo": torch.zeros(x.shape[1]) if per_channel else 0.0}
    want = run(ops.impression_update_, x.clone(), [torch.empty(x.shape).copy_(other)], m.clone(), v.clone(), **bounds)
    got = run(ops.impression_update_, x, [other], m, v, **bounds)
    assert all(torch.equal(ours, exact) for ours, exact in zip(got, want, strict=True))


def test_gradient_is_not_changed_and_may_be_expanded():
    x, grads, m, v = state()
    grad = grads[0][:1].expand(SHAPE)
    kept = grad.clone()
    other, _, m2, v2 = state()
    ops.impression_update_(x, grad, m, v, 1, lr=0.1)
    ops.impression_update_(other, kept, m2, v2, 1, lr=0.1)
    assert torch.equal(x, other) and torch.equal(grad, kept)


def test_clamp_keeps_nan():
    x, grads, m, v = state()
    grads[0][1, 1, 1, 1] = torch.nan
    ops.impression_update_(x, grads[0], m, v, 1, lr=0.1, lo=0.0, hi=1.0)
    assert x[1, 1, 1, 1].isnan() and x.isnan().sum() == 1


def test_step_and_learning_rate_may_be_tensors():
    x, grads, m, v = state()
    ops.impression_update_(x, grads[0], m, v, torch.tensor(3), lr=torch.tensor(0.05))
    other, _, m, v = state()
    ops.impression_update_(other, grads[0], m, v, 3, lr=torch.tensor(0.05).item())
    assert torch.equal(x, other)


def test_empty_batch_and_vectors():
    empty = torch.empty(0, 3, 8, 8)
    ops.impression_update_(empty, empty.clone(), empty.clone(), empty.clone(), 1, lr=0.1)
    x = torch.ones(4, 7)
    ops.impression_update_(x, torch.ones(4, 7), torch.zeros(4, 7), torch.zeros(4, 7), 1, lr=0.1)
    assert torch.allclose(x, torch.full((4, 7), 0.9))


def test_same_bits_for_every_thread_count():
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            big = (64, 3, 32, 33)
            results.append(run(ops.impression_update_, *state(shape=big), l1=0.1, lo=0.0, hi=1.0)[0])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


def test_opcheck_and_compile():
    x, grads, m, v = state()
    numbers = [torch.tensor(n, dtype=torch.float64) for n in (1, 0.1)]
    bounds = [torch.tensor(n, dtype=torch.float64) for n in (0.0, 1.0)]
    torch.library.opcheck(
        torch.ops.zskd_fast.impression_update_.default,
        (x, grads[0], m, v, *numbers, 0.9, 0.999, 1e-8, 0.0, 0.0, *bounds),
    )

    def step(x, grad, m, v):
        ops.impression_update_(x, grad, m, v, 1, lr=0.1, lo=0.0, hi=1.0)
        return x + 1

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    other, _, m2, v2 = state()
    x, _, m, v = state()
    assert torch.equal(compiled(x, grads[0], m, v), step(other, grads[0], m2, v2))
    assert torch.equal(x, other)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"grad": torch.zeros(2, 2)}, ValueError, r"grad has shape \[2, 2\], wanted \[2, 3\] as x"),
        (
            {"exp_avg": torch.zeros(2, 3).double()},
            TypeError,
            "exp_avg is Double, wanted Float beside x in Float",
        ),
        ({"step": 0}, ValueError, "step is 0, wanted 1 or more"),
        ({"lr": -1.0}, ValueError, "lr is -1, wanted 0 or more"),
        ({"l2": math.nan}, ValueError, "l1 and l2 are 0 and nan, wanted two numbers"),
        ({"l1": math.inf}, ValueError, "l1 and l2 are inf and 0, wanted two numbers"),
        ({"betas": (1.0, 0.9)}, ValueError, r"betas are \(1, 0.9\), wanted two numbers in \[0, 1\)"),
        ({"eps": -1e-8}, ValueError, "eps is -1e-08"),
        (
            {"lo": torch.zeros(2)},
            ValueError,
            r"lo has shape \[2\], wanted one number or one for each channel",
        ),
        ({"x": torch.zeros(2, 3).int()}, TypeError, "wanted"),
    ],
)
def test_errors_name_the_bad_argument_and_x_is_not_changed(change, error, message):
    good = {
        "x": torch.ones(2, 3),
        "grad": torch.ones(2, 3),
        "exp_avg": torch.zeros(2, 3),
        "step": 1,
        "lr": 0.1,
    }
    arguments = {**good, "exp_avg_sq": torch.zeros(2, 3), **change}
    kept = arguments["x"].clone()
    positional = [arguments.pop(name) for name in ("x", "grad", "exp_avg", "exp_avg_sq", "step")]
    with pytest.raises(error, match=message):
        ops.impression_update_(*positional, **arguments)
    assert torch.equal(positional[0], kept)
