"""What a model returns, and which logits follow from it."""

from collections import OrderedDict, namedtuple
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from zskd_fast.errors import InputError
from zskd_fast.models.answers import Answer, logits_of, recognized, two_logits, values_of

LOGITS = 4 * torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
Outputs = namedtuple("Outputs", ["logits", "aux_logits"])


def _recognized(values, role="teacher", **options):
    return recognized(values, len(values), role, **options)


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        SimpleNamespace(logits=LOGITS, loss=None),
        Outputs(LOGITS, LOGITS + 1),
        {"logits": LOGITS, "features": LOGITS + 1},
        OrderedDict(logits=LOGITS),
        (LOGITS,),
        [LOGITS],
    ],
    ids=["tensor", "attribute", "namedtuple", "dict", "ordered dict", "tuple of one", "list of one"],
)
def test_the_logits_are_taken_where_the_output_names_them(output):
    assert values_of(output) is LOGITS


@pytest.mark.parametrize("output", [(LOGITS, LOGITS), {"scores": LOGITS}, SimpleNamespace(logits=None), (1,), "logits"])
def test_an_output_that_does_not_name_its_logits_is_kept(output):
    assert values_of(output) is output


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_softmax_is_recognized_and_undone(dtype):
    values = LOGITS.to(dtype).softmax(1)
    assert _recognized(values) is Answer.PROBABILITIES
    logits = logits_of(values, Answer.PROBABILITIES)
    assert logits.dtype == torch.float32
    tolerance = {torch.float16: 2e-2, torch.bfloat16: 5e-2}.get(dtype, 1e-5)
    wanted = LOGITS.to(dtype).float()
    for temperature in (1.0, 20.0):
        got = (logits / temperature).softmax(1)
        torch.testing.assert_close(got, (wanted / temperature).softmax(1), rtol=tolerance, atol=tolerance)


def test_the_gradient_through_a_softmax_is_that_of_the_logits():
    """Also where a probability is near the smallest number: the product with its inverse must not overflow."""
    logits = torch.tensor([[0.0, 80.0, -5.0], [3.0, 1.0, 2.0]], requires_grad=True)
    target = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]])

    def loss(values):
        return -(target * (values / 20.0).log_softmax(1)).sum()

    wanted = torch.autograd.grad(loss(logits), logits)[0]
    got = torch.autograd.grad(loss(logits_of(logits.softmax(1), Answer.PROBABILITIES)), logits)[0]
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


def test_a_probability_that_underflowed_has_a_finite_logit_and_gradient():
    values = torch.tensor([[1.0, 0.0]], requires_grad=True)
    logits = logits_of(values, Answer.PROBABILITIES)
    logits.sum().backward()
    assert torch.isfinite(logits).all() and torch.isfinite(values.grad).all()
    half = torch.tensor([[1.0, 0.0, 6e-8]], dtype=torch.float16)
    assert logits_of(half, Answer.PROBABILITIES).diff(dim=1).abs().max() < 20


@pytest.mark.parametrize(
    "values",
    [LOGITS, LOGITS.log_softmax(1), LOGITS - LOGITS.sum(1, keepdim=True) / 5 + 0.2, torch.zeros(3, 4)],
    ids=["logits", "log softmax", "sums of 1 with negative values", "zeros"],
)
def test_what_is_no_softmax_is_logits(values):
    assert _recognized(values) is Answer.LOGITS
    assert torch.equal(logits_of(values, Answer.LOGITS), values)


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_one_logit_becomes_two_with_the_probabilities_of_a_sigmoid(shape):
    z = LOGITS[:, 0].reshape(shape)
    assert _recognized(z) is Answer.ONE_LOGIT
    logits = logits_of(z, Answer.ONE_LOGIT)
    torch.testing.assert_close(logits.softmax(1)[:, 1], LOGITS[:, 0].sigmoid())
    assert torch.equal(logits, two_logits(z)) and torch.equal(logits[:, 0], -logits[:, 1])


@pytest.mark.parametrize(
    ("role", "option"), [("teacher", "logits_fn (--logits-fn"), ("student", "student_logits_fn (--student-logits-fn")]
)
@pytest.mark.parametrize(
    ("logits", "kind"),
    [(LOGITS, "a probability per class, whose rows do not sum to 1"), (LOGITS[:, :1], "a probability as of a sigmoid")],
)
def test_a_sigmoid_is_seen_in_the_graph_and_named(role, option, logits, kind):
    values = (logits / 10).clone().requires_grad_().sigmoid()
    for same in (values, values.squeeze().reshape(values.shape), values.half().float()):
        with pytest.raises(InputError) as error:
            _recognized(same, role)
        assert kind in str(error.value) and "torch.logit(output, eps=1e-6)" in str(error.value)
        assert option in str(error.value)


def test_a_sigmoid_without_a_graph_is_seen_by_its_values_far_outside_the_valid_range():
    values = (LOGITS / 10).sigmoid()
    with pytest.raises(InputError, match="as of a sigmoid"):
        _recognized(values, far=lambda: (100 * LOGITS).sigmoid())
    for far in (lambda: 100 * values, lambda: values, lambda: None):  # logits, a bounded model, a rejected input
        assert _recognized(values, far=far) is Answer.LOGITS
    assert _recognized(LOGITS, far=lambda: pytest.fail("logits outside of [0, 1] need no further look"))


def test_logits_between_0_and_1_are_logits():
    model = nn.Linear(5, 2)
    with torch.no_grad():
        model.weight.mul_(0.01)
        model.bias.fill_(0.4)
    assert _recognized(model(LOGITS), far=lambda: model(100 * LOGITS)) is Answer.LOGITS
