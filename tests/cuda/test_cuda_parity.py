"""The CUDA kernels in the emulator, in many thread orders: compared with float64 and with the CPU backend."""

import math

import emulated
import pytest
import torch
from emulated import LaunchError, accumulate_dtype, orders, same_bits
from row_losses import CLASSES, DTYPES, TEMPERATURES, assert_close, logits_of, targets_of

from zskd_fast import ops, reference

ROW_LOSSES = ["soft_cross_entropy", "distillation_loss"]
# Whole vectors, and both sides of every threshold between kernels, numbers of lanes and numbers of warps.
MORE_CLASSES = [8, 9, 16, 17, 20, 63, 64, 65, 127, 128, 129, 255, 256, 257, 512, 513, 1024, 1025, 2000]
LONG_ROWS = [4096, 4097, 5000, 16384, 16385]
ALL_CLASSES = [*CLASSES, *MORE_CLASSES, *LONG_ROWS]
UPDATE = dict(lr=0.05, betas=(0.9, 0.99), eps=1e-8, l1=0.1, l2=0.2)


def rows_of(classes: int) -> int:
    return 67 if classes <= 40 else 7 if classes <= 1000 else 3 if classes <= 5000 else 2


def other_of(op: str, rows: int, classes: int, dtype=torch.float32) -> torch.Tensor:
    return targets_of(rows, classes, dtype) if op == "soft_cross_entropy" else logits_of(rows, classes, dtype, seed=1)


def precision(dtype: torch.dtype) -> float:
    """Allowed error of a loss relative to the largest loss, from rounding in float32 or float64 sums."""
    return 3e-14 if dtype == torch.float64 else 3e-6


def exact(op: str, a: torch.Tensor, b: torch.Tensor, temperature: float):
    leaf = a.double().requires_grad_()
    loss = getattr(reference, op)(leaf, b.double(), temperature, reduction="none")
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


def assert_row_loss(op, a, b, temperature, got, what=""):
    loss, grad = got
    want_loss, want_grad = exact(op, a, b, temperature)
    precise = precision(a.dtype)
    assert loss.dtype == accumulate_dtype(a.dtype) and grad.dtype == a.dtype
    if a.shape[1] == 1:  # both are zero, except for the rounding of a 16-bit target
        assert loss.abs().max() <= 1e-6 and grad.abs().max() <= 1e-6, what
        return
    assert_close(loss, want_loss, precise, f"loss {what}")
    assert_close(grad, want_grad, max(precise, torch.finfo(a.dtype).eps), f"gradient {what}")


@pytest.mark.parametrize("classes", ALL_CLASSES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", ROW_LOSSES)
def test_row_losses_match_float64_and_the_cpu(op, dtype, classes):
    rows = rows_of(classes)
    a, b = logits_of(rows, classes, dtype), other_of(op, rows, classes, dtype)
    for temperature in TEMPERATURES:
        got = emulated.row_loss(op, a, b, temperature)
        assert_row_loss(op, a, b, temperature, got, f"tau={temperature}")
        cpu = getattr(ops, op)(a, b, temperature, reduction="none")
        assert (got[0] - cpu).abs().max() <= 2 * precision(dtype) * cpu.abs().max().clamp_min(0.1)


@pytest.mark.parametrize("classes", [7, 8, 10, 20, 100, 513, 1000, 1032, 2000, 4100, 16385])
@pytest.mark.parametrize("op", ROW_LOSSES)
def test_row_losses_have_the_same_bits_in_every_order(op, classes):
    rows = 170 if classes <= 16 else rows_of(classes)  # several tiles of 32 rows for each warp
    a, b = logits_of(rows, classes), other_of(op, rows, classes)
    want = emulated.row_loss(op, a, b, 4.0)
    for order, most_blocks in orders(8):
        got = emulated.row_loss(op, a, b, 4.0, order=order, most_blocks=most_blocks)
        assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1]), f"order {order}, {most_blocks} blocks"


@pytest.mark.parametrize("rows", [1, 5, 31, 32, 33, 64, 65, 129])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", ROW_LOSSES)
def test_rows_that_do_not_fill_a_tile_or_a_warp(op, dtype, rows):
    for classes in (1, 3, 10, 20, 32, 100):
        a, b = logits_of(rows, classes, dtype), other_of(op, rows, classes, dtype)
        assert_row_loss(op, a, b, 4.0, emulated.row_loss(op, a, b, 4.0), f"{classes} classes")


@pytest.mark.parametrize("classes", [10, 20, 100, 600, 3000])
@pytest.mark.parametrize("op", ROW_LOSSES)
def test_result_of_a_row_does_not_depend_on_its_place(op, classes):
    a, b = logits_of(40, classes), other_of(op, 40, classes)
    loss, grad = emulated.row_loss(op, a, b, 4.0)
    for row in (0, 1, 31, 39):
        alone = emulated.row_loss(op, a[row : row + 1].clone(), b[row : row + 1].clone(), 4.0)
        assert torch.equal(alone[0][0], loss[row]) and torch.equal(alone[1][0], grad[row])


def padded(matrix: torch.Tensor, before: int, more: int) -> torch.Tensor:
    """The same values as every second row of a matrix with `more` extra columns, `before` of them on the left."""
    rows, classes = matrix.shape
    wide = torch.full((2 * rows, classes + more), torch.nan, dtype=matrix.dtype)
    wide[::2, before : before + classes] = matrix
    return wide[::2, before : before + classes]


@pytest.mark.parametrize("classes", [1, 3, 8, 10, 32, 128, 1032, 4100])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", ROW_LOSSES)
def test_row_losses_read_rows_at_any_distance(op, dtype, classes):
    rows = rows_of(classes)
    a, b = logits_of(rows, classes, dtype), other_of(op, rows, classes, dtype)
    for z in (a, padded(a, 0, 8), padded(a, 3, 5)):
        for y in (b, padded(b, 0, 8), padded(b, 1, 8), padded(b, 0, 5), b[:1].expand(rows, classes)):
            assert_row_loss(op, z, y, 4.0, emulated.row_loss(op, z, y, 4.0))
    assert_row_loss(op, a, b, 4.0, emulated.row_loss(op, a, b, 4.0, offset=1), "at an odd address")


@pytest.mark.parametrize("classes", [10, 16, 24, 100, 1032, 2000, 16400])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", ROW_LOSSES)
def test_16_bit_logits_and_float32_target(op, dtype, classes):
    rows = rows_of(classes)
    a, b = logits_of(rows, classes, dtype), other_of(op, rows, classes)
    assert_row_loss(op, a, b, 4.0, emulated.row_loss(op, a, b, 4.0))


@pytest.mark.parametrize("classes", [10, 16, 20, 24, 500, 1032, 5000, 16400])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", ROW_LOSSES)
def test_float32_gradient_of_16_bit_logits_is_not_rounded(op, dtype, classes):
    a, b = logits_of(rows_of(classes), classes, dtype), other_of(op, rows_of(classes), classes)
    for offset in (0, 1):
        _, wide = emulated.row_loss(op, a, b, 4.0, grad_weight=1e-7, grad_dtype=torch.float32, offset=offset)
        assert_close(wide, exact(op, a, b, 4.0)[1] * 1e-7, 3e-6, f"gradient at an offset of {offset}")
    loss, wide = emulated.row_loss(op, a, b, 4.0, grad_dtype=torch.float32)
    want_loss, want = emulated.row_loss(op, a, b, 4.0)
    assert torch.equal(loss, want_loss) and torch.equal(wide.to(dtype), want)


@pytest.mark.parametrize("classes", [10, 20, 100, 1000, 2000, 16385])
@pytest.mark.parametrize("op", ROW_LOSSES)
def test_row_losses_without_gradient_and_with_a_weight(op, classes):
    rows = 200 if classes <= 32 else 3
    a, b = logits_of(rows, classes), other_of(op, rows, classes)
    loss, grad = emulated.row_loss(op, a, b, 4.0, grad_weight=0.25)
    alone, nothing = emulated.row_loss(op, a, b, 4.0, grad=False, most_blocks=2)
    assert nothing is None and torch.equal(alone, loss)
    assert_close(grad, exact(op, a, b, 4.0)[1] / 4, 3e-6, "weighted gradient")


def edge_rows(op: str, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows whose softmax is at the limits of float32 or undefined."""
    a, b = logits_of(7, classes), other_of(op, 7, classes)
    a[0] *= 1e6
    a[1, ::2] = -torch.inf
    b[1, ::2] = 0.0 if op == "soft_cross_entropy" else -torch.inf
    a[2] = -3e38
    a[3, classes // 2] = torch.nan
    a[4] = -torch.inf
    a[5, -1] = torch.inf
    a[6, 0] = 3e38
    b[6, 1:] = 0.0 if op == "soft_cross_entropy" else -torch.inf
    return a, b


@pytest.mark.parametrize("classes", [2, 10, 16, 20, 32, 33, 257, 1000, 1025, 5000, 16385])
@pytest.mark.parametrize("op", ROW_LOSSES)
def test_huge_infinite_and_nan_logits(op, classes):
    a, b = edge_rows(op, classes)
    loss, grad = emulated.row_loss(op, a, b, 4.0)
    want_loss, want_grad = exact(op, a, b, 4.0)
    assert torch.equal(loss.isnan(), want_loss.isnan()), f"{loss} for {want_loss}"
    finite = want_loss.isfinite()
    assert finite[[0, 1, 2, 6]].all() and not finite[[3, 4, 5]].any()
    torch.testing.assert_close(loss[finite].double(), want_loss[finite], rtol=3e-6, atol=3e-6)
    torch.testing.assert_close(grad[finite].double(), want_grad[finite], rtol=3e-6, atol=3e-6)
    assert grad[3].isnan().all() and grad[4].isnan().all()


@pytest.mark.parametrize("op", ROW_LOSSES)
def test_empty_batch_launches_nothing(op):
    loss, grad = emulated.row_loss(op, torch.empty(0, 10), torch.empty(0, 10), 4.0)
    assert loss.shape == (0,) and grad.shape == (0, 10)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 257, 9000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradient_is_scaled_by_a_number_on_the_device(dtype, count):
    grad = torch.randn(count, dtype=dtype, generator=torch.Generator().manual_seed(0))
    for number in (1.0, 0.0, 65536.0, 1 + torch.finfo(dtype).eps, math.nan):
        weight = torch.tensor(number, dtype=dtype)
        for order, most_blocks in orders(4):
            for offset in (0, 1):
                got = grad.clone()
                emulated.scale_grad_(got, weight, offset=offset, order=order, most_blocks=most_blocks)
                torch.testing.assert_close(got, grad * weight, rtol=0, atol=0, equal_nan=True)


# --- dirichlet and philox: same bits as on the CPU ---


def concentration_of(rows: int, classes: int, dtype=torch.float32) -> torch.Tensor:
    spread = torch.rand(rows, classes, generator=torch.Generator().manual_seed(classes), dtype=torch.float64)
    low = -2.0 if dtype in (torch.float16, torch.bfloat16) else -6.0
    return (10 ** (spread * (2 - low) + low)).to(dtype)


@pytest.mark.parametrize("classes", [*CLASSES, 16, 128, 256, 257, 1024, 1025, 2500])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dirichlet_has_the_bits_of_the_cpu(dtype, classes):
    rows = 67 if classes <= 40 else 3
    alpha, ids = concentration_of(rows, classes, dtype), torch.arange(rows) * 3 + 2**33
    for log in (False, True):
        got = emulated.dirichlet(alpha, ids, seed=2**62 + 9, log=log)
        assert same_bits(got, ops.dirichlet(alpha, ids, seed=2**62 + 9, log=log)), f"log={log}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dirichlet_holds_a_row_up_to_the_shared_memory_of_a_block(dtype):
    """Up to this many classes a variate is drawn once; beyond, three times."""
    most = 5056 if dtype == torch.float64 else 11200
    for classes in (most, most + 1):
        alpha, ids = concentration_of(2, classes, dtype), torch.arange(2) + 2**40
        for log in (False, True):
            got = emulated.dirichlet(alpha, ids, seed=5, log=log, order=classes, most_blocks=1)
            assert same_bits(got, ops.dirichlet(alpha, ids, seed=5, log=log)), f"{classes} classes, log={log}"


@pytest.mark.parametrize("classes", [3, 10, 300, 1025])
def test_dirichlet_has_the_same_bits_in_every_order(classes):
    alpha, ids = concentration_of(20, classes)[:6], torch.arange(6)
    want = ops.dirichlet(alpha, ids, seed=1)
    for order, most_blocks in orders(8):
        got = emulated.dirichlet(alpha, ids, seed=1, order=order, most_blocks=most_blocks)
        assert same_bits(got, want), f"order {order}, {most_blocks} blocks"


@pytest.mark.parametrize("classes", [10, 1025])
def test_dirichlet_reads_expanded_and_padded_rows_and_strided_ids(classes):
    alpha, ids = concentration_of(6, classes), torch.arange(12)[::2]
    padded = torch.full((6, classes + 3), torch.nan)
    padded[:, :classes] = alpha
    assert same_bits(emulated.dirichlet(padded[:, :classes], ids, seed=1), ops.dirichlet(alpha, ids, seed=1))
    assert same_bits(emulated.dirichlet(alpha[0].expand(6, -1), ids, seed=1), ops.dirichlet(alpha[0], ids, seed=1))


@pytest.mark.parametrize("classes", [3, 300, 1025])
@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_only_the_row_with_an_invalid_concentration_is_nan(bad, classes):
    alpha, ids = concentration_of(5, classes), torch.arange(5)
    want = ops.dirichlet(alpha, ids, seed=1)
    alpha[2, classes - 2] = bad
    got = emulated.dirichlet(alpha, ids, seed=1)
    assert got[2].isnan().all()
    assert same_bits(got[[0, 1, 3, 4]], want[[0, 1, 3, 4]])


@pytest.mark.parametrize("count", [1, 4, 5, 31, 32, 1023, 4096])
@pytest.mark.parametrize("distribution", ["uniform", "normal"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_philox_has_the_bits_of_the_cpu(dtype, distribution, count):
    ids = torch.arange(10)[::2] * 7 + 2**40
    how = dict(seed=2**61 + 3, stream=12345, distribution=distribution, dtype=dtype)
    want = ops.philox(ids, count, **how)
    for order, most_blocks in orders(4):
        for offset in (0, 1):
            got = emulated.philox(ids, count, **how, offset=offset, order=order, most_blocks=most_blocks)
            assert same_bits(got, want)


# --- impression_update_ ---


def update_state(shape, dtype):
    g = torch.Generator().manual_seed(3)
    state_dtype = accumulate_dtype(dtype)
    x, grad = (torch.randn(shape, generator=g).to(dtype) for _ in range(2))
    return (
        x,
        grad,
        torch.randn(shape, generator=g).to(state_dtype),
        torch.rand(shape, generator=g).to(state_dtype),
    )


def assert_updated(got, want):
    for ours, exact_value in zip(got, want, strict=True):
        assert_close(ours, exact_value, 8 * torch.finfo(ours.dtype).eps, "update")


def updated(update, state, step, lo, hi, **how):
    x, grad, m, v = (t.clone() for t in state)
    update(x, grad, m, v, step, lo=lo, hi=hi, **{**UPDATE, **how})
    return x, m, v


def bounds_of(channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    if channels == 1:
        return torch.tensor([-0.5], dtype=torch.float64), torch.tensor([0.75], dtype=torch.float64)
    lo = torch.linspace(-1, 0, channels, dtype=torch.float64)
    return lo, lo + 0.5


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (3, 3, 5, 5), (1, 1, 1, 1), (1, 1, 2, 2), (7, 1, 28, 28)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_impression_update_matches_the_reference_and_the_cpu(dtype, shape):
    state = update_state(shape, dtype)
    for channels in {1, shape[1]}:
        lo, hi = bounds_of(channels)
        flat = (lo[0], hi[0]) if channels == 1 else (lo, hi)
        wide = [t.double() if dtype == torch.float32 else t for t in state]
        want = updated(reference.impression_update_, wide, 3, *flat)
        cpu = updated(ops.impression_update_, state, 3, *flat)
        for order, most_blocks in orders(4):
            got = updated(emulated.impression_update_, state, 3, lo, hi, order=order, most_blocks=most_blocks)
            assert_updated(got, want)
            assert all(same_bits(ours, theirs) for ours, theirs in zip(got, cpu, strict=True))


@pytest.mark.parametrize("step", [1, 2, 1000, 10**6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_step_and_learning_rate_may_be_on_the_device(dtype, step):
    state, (lo, hi) = update_state((2, 3, 8, 8), dtype), bounds_of(1)
    numbers = [torch.tensor([value], dtype=torch.float64) for value in (step, UPDATE["lr"])]
    want = updated(emulated.impression_update_, state, step, lo, hi)
    got = updated(emulated.impression_update_, state, numbers[0], lo, hi, lr=numbers[1])
    assert_updated(got, want)


def test_launch_error_names_the_op():
    a = torch.zeros(2, 10)
    b = torch.zeros(40)[1:21].view(2, 10)
    address = a.data_ptr()
    unaligned = torch.frombuffer(bytearray(a.numel() * 4 + 8), dtype=torch.uint8)
    shift = 1 + (address - unaligned.data_ptr()) % 4
    params = emulated.RowLossParams(
        a=unaligned.data_ptr() + shift,
        b=b.data_ptr(),
        a_stride=10,
        b_stride=10,
        loss=a.data_ptr(),
        rows=1,
        classes=10,
    )
    with pytest.raises(LaunchError, match=r"soft_cross_entropy: .* moves 4 bytes at an address 1 past a multiple"):
        emulated.call("soft_cross_entropy", params)
