"""Calls that bypass torch's dispatcher, and calls that a profiler or a dispatch mode must see."""

import importlib
from contextlib import nullcontext

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from zskd_fast import ops

X = torch.rand(4, 6)
Y = X.softmax(dim=1)
IDS = torch.arange(4)
IMAGE = X.reshape(1, 1, 4, 6)
CALLS = {
    "soft_cross_entropy": lambda: ops.soft_cross_entropy(X, Y, 2.0),
    "distillation_loss": lambda: ops.distillation_loss(X, Y, 2.0),
    "dirichlet": lambda: ops.dirichlet(Y, IDS, seed=1),
    "philox": lambda: ops.philox(IDS, 3, seed=1, stream=0),
    "impression_update_": lambda: ops.impression_update_(X.clone(), Y, torch.zeros(4, 6), torch.zeros(4, 6), 1, lr=0.1),
    "total_variation_grad_": lambda: ops.total_variation_grad_(IMAGE.clone(), IMAGE, 0.1),
}


class RecordNames(TorchDispatchMode):
    """Records the names of the ops that it sees."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("op", CALLS)
def test_profiler_and_dispatch_mode_see_the_op_by_its_name(op):
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        CALLS[op]()
    assert f"zskd_fast::{op}" in {event.key for event in profiler.key_averages()}
    with RecordNames() as names:
        CALLS[op]()
    assert f"zskd_fast.{op}.default" in names.seen


REFUSED = [
    (lambda: ops.soft_cross_entropy(X, Y, 0.0), ValueError, "soft_cross_entropy: temperature is 0, wanted"),
    (lambda: ops.soft_cross_entropy(X, Y[:, :5], 2.0), ValueError, "target has shape [4, 5], wanted [4, 6] as logits"),
    (lambda: ops.soft_cross_entropy(X, Y.int(), 2.0), TypeError, "soft_cross_entropy: target is Int, wanted float32"),
    (lambda: ops.distillation_loss(X, Y, 2.0, reduction="mean"), ValueError, "reduction is 'mean', wanted none"),
    (lambda: ops.distillation_loss(X.to_sparse(), Y, 2.0), TypeError, "student_logits is sparse, wanted a dense"),
    (lambda: ops.dirichlet(-Y, IDS, seed=1), ValueError, "dirichlet: concentration[0, 0] is -"),
    (lambda: ops.dirichlet(Y, IDS.int(), seed=1), TypeError, "dirichlet: ids is Int, wanted int64"),
    (lambda: ops.philox(IDS, -1, seed=1, stream=0), ValueError, "philox: count is -1, wanted 0 to"),
    (lambda: ops.philox(IDS, 1, seed=1, stream=0, dtype=torch.int64), TypeError, "philox: dtype is Long, wanted"),
    (
        lambda: ops.impression_update_(X.clone(), Y, X, X, 0, lr=0.1),
        ValueError,
        "impression_update_: step is 0, wanted",
    ),
    (lambda: ops.impression_update_(X.clone(), Y.double(), X, X, 1, lr=0.1), TypeError, "grad is Double, wanted Float"),
    (lambda: ops.total_variation_grad_(X.clone(), X, 0.1), ValueError, "x has shape [4, 6], wanted [N, C, H, W]"),
    (
        lambda: ops.total_variation_grad_(IMAGE[..., :5].clone(), IMAGE, 0.1),
        ValueError,
        "total_variation_grad_: grad has shape [1, 1, 4, 5], wanted [1, 1, 4, 6] as x",
    ),
    (lambda: ops.total_variation_grad_(IMAGE.double(), IMAGE, 0.1), TypeError, "grad is Double, wanted Float as x"),
    (lambda: ops.total_variation_grad_(IMAGE.int(), IMAGE.int(), 0.1), TypeError, "x is Int, wanted float32"),
]


@pytest.mark.parametrize("through", [nullcontext, RecordNames], ids=["direct", "dispatcher"])
@pytest.mark.parametrize(("call", "error", "message"), REFUSED, ids=[message for _, _, message in REFUSED])
def test_a_refusal_is_one_line_of_the_same_type_through_both_doors(call, error, message, through):
    with pytest.raises(error) as refused, through():
        call()
    assert message in str(refused.value) and "\n" not in str(refused.value)


NEGATED = torch.complex(Y, X).conj().imag
NEGATED_IMAGE = NEGATED.reshape(1, 1, 4, 6)
MOMENT = torch.zeros(4, 6)
TAKEN_NEGATED = {
    "soft_cross_entropy: logits": lambda: ops.soft_cross_entropy(NEGATED, Y, 2.0),
    "soft_cross_entropy: target": lambda: ops.soft_cross_entropy(X, NEGATED, 2.0),
    "soft_cross_entropy: out": lambda: ops.soft_cross_entropy_value_and_grad(X, Y, 2.0, out=torch._neg_view(MOMENT)),
    "distillation_loss: teacher_logits": lambda: ops.distillation_loss(X, NEGATED, 2.0),
    "dirichlet: concentration": lambda: ops.dirichlet(NEGATED, IDS, seed=1),
    "impression_update_: x": lambda: ops.impression_update_(NEGATED, X, MOMENT, MOMENT, 1, lr=0.1),
    "impression_update_: grad": lambda: ops.impression_update_(X.clone(), NEGATED, MOMENT, MOMENT, 1, lr=0.1),
    "impression_update_: lr": lambda: ops.impression_update_(X.clone(), X, MOMENT, MOMENT, 1, lr=NEGATED[0, 0]),
    "impression_update_: hi": lambda: ops.impression_update_(X.clone(), X, MOMENT, MOMENT, 1, lr=0.1, hi=NEGATED[0, 0]),
    "total_variation_grad_: x": lambda: ops.total_variation_grad_(IMAGE.clone(), NEGATED_IMAGE, 0.1),
    "total_variation_grad_: grad": lambda: ops.total_variation_grad_(NEGATED_IMAGE, IMAGE, 0.1),
    "augment: x": lambda: ops.augment(NEGATED, IDS, seed=1, stream=0),
    "dead_leaves: leaves": lambda: ops.dead_leaves(NEGATED[None], 4, 4),
    "max_pool: x": lambda: ops.max_pool(torch._neg_view(IMAGE)),
}


@pytest.mark.parametrize("argument", TAKEN_NEGATED)
def test_a_negated_view_is_refused_because_its_memory_has_the_other_sign(argument):
    with pytest.raises(TypeError, match=rf"{argument} is a negated view, wanted its values: pass \.resolve_neg\(\)"):
        TAKEN_NEGATED[argument]()


def test_an_upstream_gradient_may_be_a_negated_view():
    logits = X.clone().requires_grad_()
    want, got = (
        torch.autograd.grad(ops.soft_cross_entropy(logits, Y, 2.0), logits, weight)[0]
        for weight in (-NEGATED[0, 0].resolve_neg(), torch._neg_view(NEGATED[0, 0].resolve_neg()))
    )
    assert torch.equal(got, want)


@pytest.mark.parametrize("op", CALLS)
def test_eager_call_bypasses_the_dispatcher(op, monkeypatch):
    module = importlib.import_module("zskd_fast.ops." + op.rstrip("_"))
    monkeypatch.setattr(module, "_op", None)
    CALLS[op]()


def test_autograd_detects_the_update_of_a_saved_tensor():
    x, moments = torch.rand(3, 2), torch.zeros(2, 3, 2)
    weight = torch.ones(3, 2, requires_grad=True)
    loss = (x * weight).sum()
    ops.impression_update_(x, torch.ones(3, 2), *moments, 1, lr=0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
