"""soft_cross_entropy: loss and gradient compared with float64, for every layout, and under autograd."""

import math

import pytest
import torch
import torch.nn.functional as F
from row_losses import (
    CLASSES,
    DTYPES,
    TEMPERATURES,
    assert_close,
    layouts,
    logits_of,
    targets_of,
    value_and_grad,
)

from zskd_fast import nn, ops, reference
from zskd_fast._extension import _C

ROWS = 37  # two full packs of sixteen rows and a remainder


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_value_and_gradient_match_float64(dtype, classes, temperature):
    logits, target = logits_of(ROWS, classes, dtype), targets_of(ROWS, classes, dtype)
    loss, grad = value_and_grad(ops.soft_cross_entropy, logits, target, temperature, "none")
    want_loss, want_grad = value_and_grad(
        reference.soft_cross_entropy, logits.double(), target.double(), temperature, "none"
    )
    precise = {torch.float64: 1e-14}.get(dtype, 1e-6)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert grad.dtype == dtype
    if classes > 1:  # with one class both are zero, except for the rounding of a 16-bit target
        assert_close(loss, want_loss, 3 * precise, "loss")
        assert_close(grad, want_grad, max(3 * precise, torch.finfo(dtype).eps), "gradient")
    else:
        assert loss.abs().max() <= 1e-6 and grad.abs().max() <= 1e-6


@pytest.mark.parametrize("classes", [10, 1000])
def test_float32_error_is_no_larger_than_torchs_own(classes):
    logits, target = logits_of(500, classes), targets_of(500, classes)
    exact_loss, exact_grad = value_and_grad(reference.soft_cross_entropy, logits.double(), target.double(), 4.0, "none")

    def torch_loss(z, y, temperature, reduction):
        return F.cross_entropy(z / temperature, y, reduction=reduction)

    ours = value_and_grad(ops.soft_cross_entropy, logits, target, 4.0, "none")
    torchs = value_and_grad(torch_loss, logits, target, 4.0, "none")
    for got, other, exact in zip(ours, torchs, (exact_loss, exact_grad), strict=True):
        ours_error = (got.double() - exact).abs().mean()
        torch_error = (other.double() - exact).abs().mean()
        assert ours_error <= 1.5 * torch_error


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("classes", [3, 40])
def test_gradcheck_for_every_reduction(reduction, classes):
    logits = logits_of(5, classes, torch.float64).requires_grad_()
    target = targets_of(5, classes, torch.float64)
    assert torch.autograd.gradcheck(lambda z: ops.soft_cross_entropy(z, target, 4.0, reduction=reduction), (logits,))


def test_targets_need_not_sum_to_one():
    logits = logits_of(6, 10, torch.float64)
    target = targets_of(6, 10, torch.float64) * torch.tensor([0.0, 0.1, 1.0, 2.0, 5.0, 0.5]).unsqueeze(1)
    got = value_and_grad(ops.soft_cross_entropy, logits, target, 4.0, "sum")
    want = value_and_grad(reference.soft_cross_entropy, logits, target, 4.0, "sum")
    assert_close(got[0], want[0], 1e-14, "loss")
    assert_close(got[1], want[1], 1e-14, "gradient")
    assert torch.equal(got[1][0], torch.zeros(10, dtype=torch.float64))  # the target of row 0 is all zeros


@pytest.mark.parametrize("classes", [10, 200])
def test_every_layout_gives_the_same_bits(classes):
    logits, target = logits_of(ROWS, classes), targets_of(ROWS, classes)
    want = value_and_grad(ops.soft_cross_entropy, logits, target, 4.0, "none")
    for name, z in layouts(logits).items():
        for other_name, y in layouts(target).items():
            loss = ops.soft_cross_entropy(z, y, 4.0, reduction="none")
            grad = ops.soft_cross_entropy_value_and_grad(z, y, 4.0)[1]
            assert torch.equal(loss, want[0]), f"loss of {name} logits, {other_name} target"
            assert torch.equal(grad, want[1]), f"gradient of {name} logits, {other_name} target"


def test_target_may_be_one_expanded_row():
    logits, row = logits_of(ROWS, 10), targets_of(1, 10)
    got = ops.soft_cross_entropy(logits, row.expand(ROWS, 10), 4.0)
    assert torch.equal(got, ops.soft_cross_entropy(logits, row.repeat(ROWS, 1), 4.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_logits_and_float32_target(dtype):
    logits, target = logits_of(ROWS, 10, dtype), targets_of(ROWS, 10)
    got = value_and_grad(ops.soft_cross_entropy, logits, target, 4.0, "none")
    want = value_and_grad(reference.soft_cross_entropy, logits.double(), target.double(), 4.0, "none")
    assert_close(got[0], want[0], 3e-6, "loss")
    assert_close(got[1], want[1], torch.finfo(dtype).eps, "gradient")


def test_empty_batch_gives_what_torch_gives():
    logits, target = torch.empty(0, 10, requires_grad=True), torch.empty(0, 10)
    assert ops.soft_cross_entropy(logits, target, 4.0).isnan()
    assert ops.soft_cross_entropy(logits, target, 4.0, reduction="none").shape == (0,)
    loss = ops.soft_cross_entropy(logits, target, 4.0, reduction="sum")
    loss.backward()
    assert loss == 0 and logits.grad.shape == (0, 10)


@pytest.mark.parametrize("classes", [4, 64])
def test_infinite_negative_logit_with_target_zero_contributes_nothing(classes):
    logits, target = logits_of(2, classes), targets_of(2, classes)
    logits[:, 1], target[:, 1] = -torch.inf, 0
    loss, grad = value_and_grad(ops.soft_cross_entropy, logits, target, 4.0, "none")
    keep = [c for c in range(classes) if c != 1]
    want = value_and_grad(reference.soft_cross_entropy, logits[:, keep], target[:, keep], 4.0, "none")
    assert_close(loss, want[0], 1e-6, "loss")
    assert_close(grad[:, keep], want[1], 1e-5, "gradient")
    assert torch.equal(grad[:, 1], torch.zeros(2))


def test_infinite_negative_logit_with_a_target_has_infinite_loss():
    logits, target = torch.tensor([[0.0, -torch.inf]]), torch.tensor([[0.5, 0.5]])
    assert ops.soft_cross_entropy(logits, target, 1.0) == torch.inf


@pytest.mark.parametrize("classes", [4, 64])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nan_stays_nan_and_stays_in_its_row(classes, bad):
    logits, target = logits_of(3, classes), targets_of(3, classes)
    logits[1, 2] = bad
    loss, grad = value_and_grad(ops.soft_cross_entropy, logits, target, 4.0, "none")
    assert loss.isnan().tolist() == [False, True, False]
    assert grad[1].isnan().any() and not grad[[0, 2]].isnan().any()


@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
def test_huge_logits_neither_overflow_nor_lose_precision(shift):
    logits = torch.tensor([[0.0, 90.0, -90.0]], dtype=torch.float64) + shift
    target = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64)
    got = ops.soft_cross_entropy(logits, target, 1.0)
    assert_close(got, torch.tensor(0.2 * 90 + 0.5 * 180, dtype=torch.float64), 1e-10, "loss")


@pytest.mark.parametrize("classes", [10, 1000])
def test_same_bits_for_every_thread_count_and_repeat(classes):
    logits, target = logits_of(5000, classes), targets_of(5000, classes)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            results.append(ops.soft_cross_entropy_value_and_grad(logits, target, 20.0, reduction="mean"))
    finally:
        torch.set_num_threads(before)
    for loss, grad in results[1:]:
        assert torch.equal(loss, results[0][0]) and torch.equal(grad, results[0][1])


@pytest.mark.parametrize(("rows", "classes"), [(37, 10), (3, 1000), (300, 33000)])
def test_all_of_out_is_written_and_nothing_else(rows, classes):
    logits, target = logits_of(rows, classes), targets_of(rows, classes)
    kept = logits.clone(), target.clone()
    guarded = torch.full((rows + 2, classes), torch.nan)
    loss, grad = ops.soft_cross_entropy_value_and_grad(logits, target, 4.0, out=guarded[1:-1])
    want_loss, want_grad = ops.soft_cross_entropy_value_and_grad(logits, target, 4.0)
    assert grad.data_ptr() == guarded[1:-1].data_ptr()
    assert torch.equal(loss, want_loss) and torch.equal(grad, want_grad)
    assert guarded[[0, -1]].isnan().all()
    assert torch.equal(logits, kept[0]) and torch.equal(target, kept[1])


def test_upstream_gradient_may_have_stride_0():
    logits, target = logits_of(ROWS, 10).requires_grad_(), targets_of(ROWS, 10)
    ops.soft_cross_entropy(logits, target, 4.0, reduction="none").mean().backward()
    want = value_and_grad(ops.soft_cross_entropy, logits, target, 4.0, "mean")[1]
    assert_close(logits.grad, want, 1e-6, "gradient")


@pytest.mark.parametrize("weight", [1.0, -2.5])
def test_upstream_gradient_scales_the_gradient(weight):
    logits, target = logits_of(ROWS, 10).requires_grad_(), targets_of(ROWS, 10)
    (weight * ops.soft_cross_entropy(logits, target, 4.0, reduction="sum")).backward()
    want = value_and_grad(ops.soft_cross_entropy, logits, target, 4.0, "sum")[1]
    assert_close(logits.grad, weight * want, 1e-6, "gradient")


@pytest.mark.parametrize("weight", [1.0, -2.5])
def test_repeated_backward_through_a_retained_graph_accumulates(weight):
    logits, target = logits_of(ROWS, 10).requires_grad_(), targets_of(ROWS, 10)
    loss = weight * ops.soft_cross_entropy(logits, target, 4.0)
    for keep in (True, True, False):
        loss.backward(retain_graph=keep)
    want = value_and_grad(ops.soft_cross_entropy, logits, target, 4.0, "mean")[1]
    assert_close(logits.grad, 3 * weight * want, 1e-6, "gradient")


def test_a_batch_of_upstream_gradients_gives_a_batch_of_gradients():
    logits, target = logits_of(ROWS, 10).requires_grad_(), targets_of(ROWS, 10)
    loss = ops.soft_cross_entropy(logits, target, 4.0)
    (grads,) = torch.autograd.grad(loss, logits, torch.tensor([1.0, -2.5]), is_grads_batched=True)
    want = value_and_grad(ops.soft_cross_entropy, logits, target, 4.0, "mean")[1]
    assert_close(grads, torch.stack([want, -2.5 * want]), 1e-6, "gradient")


def test_a_gradient_without_a_reduction_is_that_of_the_sum():
    logits, target = logits_of(ROWS, 10), targets_of(ROWS, 10)
    losses, grad = ops.soft_cross_entropy_value_and_grad(logits, target, 4.0, reduction="none")
    total, want = ops.soft_cross_entropy_value_and_grad(logits, target, 4.0, reduction="sum")
    assert torch.equal(grad, want) and losses.shape == (ROWS,) and torch.isclose(losses.sum(), total)


def test_forward_without_grad_has_the_same_loss():
    logits, target = logits_of(ROWS, 10), targets_of(ROWS, 10)
    want = ops.soft_cross_entropy(logits.clone().requires_grad_(), target, 4.0).detach()
    with torch.no_grad():
        assert torch.equal(ops.soft_cross_entropy(logits.clone().requires_grad_(), target, 4.0), want)
    with torch.inference_mode():
        assert torch.equal(ops.soft_cross_entropy(logits, target, 4.0), want)


def test_autocast_backpropagates_through_a_16_bit_layer():
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 10)
    x, target = torch.randn(16, 8), targets_of(16, 10)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = layer(x)
        loss = ops.soft_cross_entropy(logits, target, 4.0)
    loss.backward()
    assert logits.dtype == torch.bfloat16 and loss.dtype == torch.float32
    assert layer.weight.grad.abs().sum() > 0


def test_error_of_double_backward_names_the_op():
    logits, target = logits_of(4, 3).requires_grad_(), targets_of(4, 3)
    with pytest.raises(RuntimeError, match="soft_cross_entropy: double backward"):
        torch.autograd.grad(ops.soft_cross_entropy(logits, target, 4.0), logits, create_graph=True)


@pytest.mark.parametrize("with_grad", [True, False])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_opcheck(reduction, with_grad):
    logits = logits_of(5, 10).requires_grad_(with_grad)
    torch.library.opcheck(
        torch.ops.zskd_fast.soft_cross_entropy.default, (logits, targets_of(5, 10), 4.0, reduction, with_grad)
    )
    torch.library.opcheck(
        torch.ops.zskd_fast.soft_cross_entropy_out.default,
        (logits.detach(), targets_of(5, 10), 4.0, reduction, torch.empty(5, 10)),
    )


def test_compiles_as_one_graph_with_a_dynamic_batch():
    def step(z, y):
        return ops.soft_cross_entropy(z * 2, y, 4.0)

    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    for rows in (5, 9):
        leaf, other = (logits_of(rows, 10).requires_grad_() for _ in range(2))
        target = targets_of(rows, 10)
        got, want = compiled(leaf, target), step(other, target)
        got.backward()
        want.backward()
        assert_close(got.detach(), want.detach(), 1e-6, "loss")
        assert_close(leaf.grad, other.grad, 1e-6, "gradient")


def test_module_calls_the_op():
    logits, target = logits_of(5, 10), targets_of(5, 10)
    loss = nn.SoftCrossEntropyLoss(temperature=20.0, reduction="sum")
    assert torch.equal(loss(logits, target), ops.soft_cross_entropy(logits, target, 20.0, reduction="sum"))
    assert "temperature=20.0" in repr(loss)


Z, Y = torch.zeros(4, 3), torch.full((4, 3), 1 / 3)


@pytest.mark.parametrize(
    ("arguments", "reduction", "error", "message"),
    [
        ((Z[0, 0], Y[0, 0], 1.0), "mean", ValueError, r"logits is a single number, wanted \[..., K\]"),
        ((Z.view(2, 2, 3), Y, 1.0), "mean", ValueError, r"target has shape \[4, 3\], wanted \[2, 2, 3\] as logits"),
        ((Z.view(2, 2, 3), Y.view(4, 1, 3), 1.0), "mean", ValueError, r"has shape \[4, 1, 3\], wanted \[2, 2, 3\]"),
        ((Z.to_sparse(), Y, 1.0), "mean", TypeError, "logits is sparse, wanted a dense tensor"),
        ((Z[:, :0], Y[:, :0], 1.0), "mean", ValueError, "wanted at least one class"),
        ((Z, Y[:3], 1.0), "mean", ValueError, r"target has shape \[3, 3\], wanted \[4, 3\] as logits"),
        ((Z, Y, 1e-40), "mean", ValueError, "temperature is 1e-40, wanted a number from 1e-18 to 1e18"),
        ((Z, Y, math.nan), "mean", ValueError, "temperature is nan, wanted a number from 1e-18 to 1e18"),
        ((Z, Y, 0.0), "mean", ValueError, "temperature is 0, wanted a number from 1e-18 to 1e18"),
        ((Z, Y, 1.0), "batchmean", ValueError, "reduction is 'batchmean', wanted none, sum or mean"),
        ((Z.long(), Y, 1.0), "mean", TypeError, "logits is Long, wanted float32"),
        ((Z.to("meta"), Y, 1.0), "mean", TypeError, "target is on cpu, wanted meta as logits"),
        ((Z, Y.clone().requires_grad_(), 1.0), "mean", ValueError, r"pass target.detach\(\)"),
    ],
)
def test_errors_name_the_bad_argument(arguments, reduction, error, message):
    with pytest.raises(error, match=message):
        if arguments[0].is_meta:  # the dispatcher would call the fake kernel: call the host function directly
            _C.soft_cross_entropy(*arguments, reduction, True, None)
        ops.soft_cross_entropy(*arguments, reduction=reduction)


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (torch.empty(4, 2), ValueError, r"out has shape \[4, 2\], wanted \[4, 3\] as logits"),
        (torch.empty(4, 3, dtype=torch.float64), TypeError, "out is Double, wanted Float as logits"),
        (torch.empty(3, 4).t(), ValueError, "wanted a contiguous tensor"),
        (Z, ValueError, "out shares memory with logits, wanted memory of its own"),
        (Y, ValueError, "out shares memory with target, wanted memory of its own"),
    ],
)
def test_errors_name_an_unusable_out(out, error, message):
    with pytest.raises(error, match=message):
        ops.soft_cross_entropy_value_and_grad(Z, Y, 1.0, out=out)
