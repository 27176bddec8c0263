"""The losses in the place of torch's: leading axes and class indices."""

import pytest
import torch
import torch.nn.functional as F
from drop_in import (
    Distillation,
    SoftCrossEntropy,
    TorchCrossEntropy,
    TorchDistillation,
    assert_same,
    pair,
    value_and_grad,
)
from row_losses import assert_close

import zskd_fast
from zskd_fast import ops

# --- leading axes ---

SHAPES = [(5,), (2, 5), (2, 3, 5), (2, 3, 4, 5), (0, 5), (0, 3, 5), (2, 0, 5)]


def classes_second(tensor):
    return tensor.movedim(-1, min(1, tensor.dim() - 1))


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_soft_cross_entropy_over_leading_axes_is_torchs(shape, reduction):
    logits, other = pair(shape)
    target = other.softmax(dim=-1)
    torchs = TorchCrossEntropy(reduction=reduction)
    want = value_and_grad(lambda z, y: torchs(classes_second(z / 3), classes_second(y)), logits, target)
    assert_same(value_and_grad(SoftCrossEntropy(3.0, reduction), logits, target), want)
    if len(shape) > 1:
        second = SoftCrossEntropy(3.0, reduction, dim=1)
        moved = value_and_grad(second, classes_second(logits), classes_second(target))
        assert_same((moved[0], moved[1].movedim(1, -1)), want)
    plain = value_and_grad(
        lambda z, y: zskd_fast.reference.soft_cross_entropy(z, y, 3.0, reduction=reduction), logits, target
    )
    assert_same(plain, want)


@pytest.mark.parametrize("reduction", ["none", "sum", "batchmean"])
@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def test_distillation_loss_over_leading_axes_is_torchs(shape, reduction):
    student, teacher = pair(shape)

    def torchs(s, t):
        loss = TorchDistillation(3.0, reduction, dim=-1)(s, t)
        return loss.sum(dim=-1) if reduction == "none" else loss

    want = value_and_grad(torchs, student, teacher)
    assert_same(value_and_grad(Distillation(3.0, reduction), student, teacher), want)
    moved = value_and_grad(Distillation(3.0, reduction, dim=1), classes_second(student), classes_second(teacher))
    assert_same((moved[0], moved[1].movedim(1, -1)), want)
    plain = value_and_grad(
        lambda s, t: zskd_fast.reference.distillation_loss(s, t, 3.0, reduction=reduction), student, teacher
    )
    assert_same(plain, want)


def test_distillation_of_one_row_without_an_axis_for_it():
    student, teacher = pair((5,))
    want = ops.distillation_loss(student[None], teacher[None], 4.0)
    assert ops.distillation_loss(student, teacher, 4.0, reduction="sum") == want
    with pytest.raises(
        ValueError, match=r"student_logits has shape \[5\], wanted \[N, ..., K\] for batchmean; use sum"
    ):
        ops.distillation_loss(student, teacher, 4.0)


@pytest.mark.parametrize("given", [False, True], ids=["new", "out"])
def test_value_and_grad_over_leading_axes(given):
    logits, other = pair((2, 3, 5))
    target, out = other.softmax(dim=-1), torch.full_like(logits, torch.nan) if given else None
    loss, grad = ops.soft_cross_entropy_value_and_grad(logits, target, 3.0, reduction="mean", out=out)
    want = value_and_grad(SoftCrossEntropy(3.0), logits, target)
    assert_same((loss, grad), want)
    assert (grad is out) == given
    losses = ops.soft_cross_entropy_value_and_grad(logits, target, 3.0, reduction="none")[0]
    assert losses.shape == (2, 3)
    for unusable in (torch.empty(6, 5), torch.empty(2, 5, 3).movedim(1, 2)):
        with pytest.raises(ValueError, match=r"out has shape .*, wanted a contiguous tensor of shape \[2, 3, 5\]"):
            ops.soft_cross_entropy_value_and_grad(logits, target, 3.0, out=unusable.double())


def test_a_teacher_that_requires_grad_is_refused_with_what_to_do():
    student, teacher = pair((2, 3, 5))
    with pytest.raises(
        ValueError, match=r"teacher_logits requires grad, wanted a constant; pass teacher_logits.detach"
    ):
        Distillation()(student, teacher.requires_grad_())


# --- class indices ---


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("ignored", [None, -100, 2], ids=str)
def test_class_indices_are_torchs(shape, reduction, ignored):
    logits, _ = pair(shape)
    index = torch.randint(5, shape[:-1], generator=torch.Generator().manual_seed(0))
    index = torch.where(index == 1, ignored, index) if ignored is not None else index
    ours, torchs = (
        loss_class(reduction=reduction, **({} if ignored is None else {"ignore_index": ignored}))
        for loss_class in (SoftCrossEntropy, TorchCrossEntropy)
    )
    want = value_and_grad(lambda z, c: torchs(classes_second(z), c), logits, index)
    assert_same(value_and_grad(ours, logits, index), want)


def test_class_indices_with_temperature_dim_and_small_dtypes():
    logits, _ = pair((2, 3, 4, 5))
    index = torch.randint(5, (2, 3, 4), generator=torch.Generator().manual_seed(0))
    want = value_and_grad(lambda z, c: F.cross_entropy(z.movedim(-1, 1) / 4, c), logits, index)
    for dtype in (torch.uint8, torch.int32):
        assert_same(value_and_grad(SoftCrossEntropy(4.0), logits, index.to(dtype)), want)
    got = value_and_grad(SoftCrossEntropy(4.0, dim=1), logits.movedim(-1, 1), index)
    assert_same((got[0], got[1].movedim(1, -1)), want)
    many, last = torch.randn(1, 200), torch.tensor([156], dtype=torch.uint8)  # -100 as a uint8 would be 156
    assert_close(SoftCrossEntropy()(many, last), F.cross_entropy(many, last.long()), 1e-6, "loss")


def test_all_rows_ignored_and_the_half_precision_of_a_language_model():
    logits = torch.randn(2, 3, 5)
    assert SoftCrossEntropy()(logits, torch.full((2, 3), -100)).isnan()
    loss = SoftCrossEntropy()(logits.bfloat16(), torch.zeros(2, 3, dtype=torch.int64))
    assert loss.dtype == torch.float32
    assert_close(
        loss, F.cross_entropy(logits.bfloat16().float().view(6, 5), torch.zeros(6, dtype=torch.int64)), 1e-6, "loss"
    )


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (torch.full((2, 3), 5), IndexError, "target holds class index 5, wanted 0 to 4 or ignore_index"),
        (torch.full((2, 3), -1), IndexError, "target holds class index -1, wanted 0 to 4 or ignore_index"),
        (
            torch.zeros(2, 3, 5, dtype=torch.int64),
            ValueError,
            r"has shape \[2, 3, 5\], wanted \[2, 3\]; probabilities need",
        ),
        (torch.zeros(2, 3, 5, dtype=torch.bool), TypeError, "target is Bool, wanted float32"),
    ],
)
def test_unusable_targets_are_named(target, error, message):
    with pytest.raises(error, match=message):
        SoftCrossEntropy()(torch.zeros(2, 3, 5), target)
