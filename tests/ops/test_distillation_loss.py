"""distillation_loss: tau^2 KL(teacher || student) and its gradient, compared with float64 and with F.kl_div."""

import pytest
import torch
import torch.nn.functional as F
from row_losses import CLASSES, DTYPES, TEMPERATURES, assert_close, layouts, logits_of, value_and_grad

from zskd_fast import nn, ops, reference

ROWS = 37


def student_and_teacher(rows, classes, dtype=torch.float32):
    return logits_of(rows, classes, dtype), logits_of(rows, classes, dtype, seed=1)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_value_and_gradient_match_float64(dtype, classes, temperature):
    student, teacher = student_and_teacher(ROWS, classes, dtype)
    loss, grad = value_and_grad(ops.distillation_loss, student, teacher, temperature, "none")
    want_loss, want_grad = value_and_grad(
        reference.distillation_loss, student.double(), teacher.double(), temperature, "none"
    )
    precise = {torch.float64: 1e-13}.get(dtype, 1e-5)
    assert grad.dtype == dtype
    if classes > 1:
        assert_close(loss, want_loss, precise, "loss")
        assert_close(grad, want_grad, max(precise, torch.finfo(dtype).eps), "gradient")
    else:
        assert torch.equal(loss, torch.zeros_like(loss)) and torch.equal(grad, torch.zeros_like(grad))


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_equals_f_kl_div(temperature):
    student, teacher = student_and_teacher(ROWS, 10, torch.float64)

    def with_kl_div(s, t, tau, reduction):
        log_p = F.log_softmax(s / tau, dim=1)
        return tau**2 * F.kl_div(log_p, F.softmax(t / tau, dim=1), reduction=reduction)

    for reduction in ("sum", "batchmean"):
        got = value_and_grad(ops.distillation_loss, student, teacher, temperature, reduction)
        want = value_and_grad(with_kl_div, student, teacher, temperature, reduction)
        assert_close(got[0], want[0], 1e-13, "loss")
        assert_close(got[1], want[1], 1e-12, "gradient")


def test_temperature_acts_on_both_sides():
    student, teacher = student_and_teacher(ROWS, 10)
    shifted = teacher + 3.0  # does not change the softmax of the teacher
    assert_close(
        ops.distillation_loss(student, shifted, 4.0),
        ops.distillation_loss(student, teacher, 4.0),
        1e-5,
        "loss",
    )
    assert ops.distillation_loss(teacher, teacher, 4.0) == 0


def test_gradient_does_not_vanish_with_the_temperature():
    student, teacher = student_and_teacher(200, 10)
    sizes = [value_and_grad(ops.distillation_loss, student, teacher, tau, "sum")[1].norm() for tau in (20.0, 40.0)]
    assert 0.7 < sizes[1] / sizes[0] < 1.3


@pytest.mark.parametrize("reduction", ["none", "sum", "batchmean"])
@pytest.mark.parametrize("classes", [3, 40])
def test_gradcheck_for_every_reduction(reduction, classes):
    student, teacher = student_and_teacher(5, classes, torch.float64)
    assert torch.autograd.gradcheck(
        lambda s: ops.distillation_loss(s, teacher, 4.0, reduction=reduction), (student.requires_grad_(),)
    )


@pytest.mark.parametrize("classes", [10, 200])
def test_every_layout_gives_the_same_bits(classes):
    student, teacher = student_and_teacher(ROWS, classes)
    want = value_and_grad(ops.distillation_loss, student, teacher, 4.0, "none")
    for name, s in layouts(student).items():
        for other_name, t in layouts(teacher).items():
            got = value_and_grad(ops.distillation_loss, s, t, 4.0, "none")
            assert torch.equal(got[0], want[0]), f"loss of {name} student, {other_name} teacher"
            assert torch.equal(got[1], want[1]), f"gradient of {name} student, {other_name} teacher"


@pytest.mark.parametrize("classes", [4, 64])
def test_class_with_teacher_probability_zero_contributes_nothing(classes):
    student, teacher = student_and_teacher(2, classes)
    teacher[:, 1] = -torch.inf
    student[1, 1] = -torch.inf
    got = value_and_grad(ops.distillation_loss, student, teacher, 4.0, "none")
    want = value_and_grad(reference.distillation_loss, student.double(), teacher.double(), 4.0, "none")
    assert_close(got[0], want[0], 1e-5, "loss")
    assert_close(got[1], want[1], 1e-5, "gradient")


def test_loss_is_infinite_if_only_the_student_has_probability_zero():
    student, teacher = torch.tensor([[0.0, -torch.inf]]), torch.tensor([[0.0, 0.0]])
    assert ops.distillation_loss(student, teacher, 1.0) == torch.inf


@pytest.mark.parametrize("side", [0, 1], ids=["student", "teacher"])
@pytest.mark.parametrize("classes", [4, 64])
def test_nan_stays_nan_and_stays_in_its_row(side, classes):
    pair = student_and_teacher(3, classes)
    pair[side][1, 2] = torch.nan
    loss, grad = value_and_grad(ops.distillation_loss, *pair, 4.0, "none")
    assert loss.isnan().tolist() == [False, True, False]
    assert grad[1].isnan().any() and not grad[[0, 2]].isnan().any()


def test_empty_batch_gives_what_torch_gives():
    student = torch.empty(0, 10, requires_grad=True)
    assert ops.distillation_loss(student, torch.empty(0, 10), 4.0).isnan()
    ops.distillation_loss(student, torch.empty(0, 10), 4.0, reduction="sum").backward()
    assert student.grad.shape == (0, 10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_student_and_float32_teacher(dtype):
    student, teacher = student_and_teacher(ROWS, 10)
    got = value_and_grad(ops.distillation_loss, student.to(dtype), teacher, 4.0, "none")
    want = value_and_grad(reference.distillation_loss, student.to(dtype).double(), teacher.double(), 4.0, "none")
    assert_close(got[0], want[0], 1e-5, "loss")
    assert_close(got[1], want[1], torch.finfo(dtype).eps, "gradient")


@pytest.mark.parametrize("classes", [10, 1000])
def test_same_bits_for_every_thread_count(classes):
    student, teacher = student_and_teacher(3000, classes)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(value_and_grad(ops.distillation_loss, student, teacher, 4.0, "batchmean"))
    finally:
        torch.set_num_threads(before)
    for loss, grad in results[1:]:
        assert torch.equal(loss, results[0][0]) and torch.equal(grad, results[0][1])


def test_upstream_gradient_scales_each_row():
    student, teacher = student_and_teacher(ROWS, 10)
    weight = torch.linspace(-1, 2, ROWS)
    leaf = student.clone().requires_grad_()
    (weight * ops.distillation_loss(leaf, teacher, 4.0, reduction="none")).sum().backward()
    want = value_and_grad(ops.distillation_loss, student, teacher, 4.0, "sum")[1] * weight.unsqueeze(1)
    assert_close(leaf.grad, want, 1e-6, "gradient")


@pytest.mark.parametrize("reduction", ["none", "batchmean"])
def test_opcheck(reduction):
    student, teacher = student_and_teacher(5, 10)
    torch.library.opcheck(
        torch.ops.zskd_fast.distillation_loss.default,
        (student.requires_grad_(), teacher, 4.0, reduction, True),
    )


def test_compiles_as_one_graph_with_a_dynamic_batch():
    def step(s, t):
        return ops.distillation_loss(s * 2, t, 4.0)

    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    for rows in (5, 9):
        student, teacher = student_and_teacher(rows, 10)
        leaf, other = student.clone().requires_grad_(), student.clone().requires_grad_()
        compiled(leaf, teacher).backward()
        step(other, teacher).backward()
        assert_close(leaf.grad, other.grad, 1e-6, "gradient")


def test_module_calls_the_op():
    student, teacher = student_and_teacher(5, 10)
    loss = nn.DistillationLoss(temperature=2.0)
    assert torch.equal(loss(student, teacher), ops.distillation_loss(student, teacher, 2.0))
    assert "temperature=2.0" in repr(loss)


S, T = student_and_teacher(4, 3)


@pytest.mark.parametrize(
    ("arguments", "reduction", "error", "message"),
    [
        ((S, T[:, :2], 1.0), "sum", ValueError, r"teacher_logits has shape \[4, 2\], wanted \[4, 3\]"),
        ((S, T, 1e20), "sum", ValueError, r"temperature is 1e\+20, wanted a number from 1e-18 to 1e18"),
        ((S, T, -1.0), "sum", ValueError, "distillation_loss: temperature is -1, wanted a number from 1e-18 to 1e18"),
        ((S, T, 1.0), "mean", ValueError, "reduction is 'mean', wanted none, sum or batchmean"),
        ((S, T.int(), 1.0), "sum", TypeError, "teacher_logits is Int, wanted float32"),
        ((S, T.clone().requires_grad_(), 1.0), "sum", ValueError, r"pass teacher_logits.detach\(\)"),
    ],
)
def test_errors_name_the_bad_argument(arguments, reduction, error, message):
    with pytest.raises(error, match=message):
        ops.distillation_loss(*arguments, reduction=reduction)
