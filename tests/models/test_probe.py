"""What the probe of a model finds before any work: what is refused in one sentence, and what is made to work."""

import pytest
import torch
from odd_models import (
    KeywordInput,
    Standardizing,
    TwoInputs,
    Wrapped,
    dropped,
    named,
    subtracting,
    with_keyword,
    with_mask,
)
from probed import X, require_refused, wanted_logits
from small_models import VECTOR, vector_classifier
from torch import nn

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.errors import InputError
from zskd_fast.models import probe
from zskd_fast.models.classifier import Classifier, frozen

# ------------------------------------------------------------------------------------------ the inputs


def test_the_inputs_are_noise_of_several_scales_inside_the_valid_range():
    inputs = probe.noise_inputs(InputSpec((3, 8, 8), (-1.0, 3.0)), 6, torch.device("cpu"))
    assert inputs.shape == (6, 3, 8, 8) and inputs.dtype == torch.float32
    assert inputs.min() == -1 and inputs.max() == 3
    assert set(inputs[1].unique().tolist()) == {-1.0, 3.0}
    assert inputs[2].min() >= 0 and inputs[2].max() <= 2
    assert (inputs.flatten(1).std(dim=1) > 0.3).all(), "an input is constant"
    assert torch.equal(inputs, probe.noise_inputs(InputSpec((3, 8, 8), (-1.0, 3.0)), 6, torch.device("cpu")))


def test_a_teacher_that_standardizes_each_input_is_probed():
    assert Classifier(Standardizing(), VECTOR).num_classes == 4


def test_the_probe_leaves_torchs_random_state_and_default_dtype_alone():
    state = torch.get_rng_state()
    Classifier(Wrapped(before=lambda x: x + 0 * torch.rand_like(x)), VECTOR)
    assert torch.equal(torch.get_rng_state(), state)


# ----------------------------------------------------------------------------------------- the answers


def test_probabilities_are_turned_into_logits_and_noted():
    classifier = Classifier(Wrapped(lambda y: y.softmax(1)), VECTOR)
    wanted = wanted_logits(vector_classifier())
    with frozen(classifier.model):
        torch.testing.assert_close(classifier.logits(X).softmax(1), wanted_logits(classifier.model))
        torch.testing.assert_close(classifier.logits(X), wanted.log_softmax(1))
    assert classifier.notes == [
        "returns probabilities, rows that sum to 1: their logarithm is used as the logits, "
        "which is exact after a softmax"
    ]
    assert Classifier(vector_classifier(), VECTOR).notes == []


def test_one_logit_becomes_two_and_is_noted():
    classifier = Classifier(Wrapped(classes=1), VECTOR)
    assert classifier.num_classes == 2
    with frozen(classifier.model):
        torch.testing.assert_close(classifier.logits(X).softmax(1)[:, 1:], wanted_logits(classifier.model).sigmoid())
    assert classifier.notes[0].startswith("returns one logit z: its two classes get the logits (-z/2, z/2)")


def test_a_sigmoid_is_named():
    require_refused(Wrapped(torch.sigmoid), "the teacher returns a probability per class.* as of a sigmoid")
    require_refused(Wrapped(lambda y: 1 / (1 + (-100 * y).exp())), "as of a sigmoid")
    student = Classifier(Wrapped(torch.sigmoid), VECTOR, role="student")
    with pytest.raises(InputError, match="the student returns a probability per class"):
        student.probe_training(4)
    undone = Classifier(Wrapped(torch.sigmoid), VECTOR, logits_fn=lambda p: torch.logit(p, eps=1e-6))
    with frozen(undone.model):
        torch.testing.assert_close(undone.logits(X), wanted_logits(vector_classifier()), rtol=1e-4, atol=1e-5)


def test_logits_that_the_output_names_are_taken():
    classifier = Classifier(Wrapped(named), VECTOR)
    with frozen(classifier.model):
        assert torch.equal(classifier.logits(X), wanted_logits(vector_classifier()))


@pytest.mark.parametrize(("model", "forward_fn"), [(KeywordInput, with_keyword), (TwoInputs, with_mask)])
@pytest.mark.parametrize(("role", "option"), [("teacher", "forward_fn"), ("student", "student_forward_fn")])
def test_a_dict_or_two_inputs_need_forward_fn_and_the_sentence_says_so(model, forward_fn, role, option):
    flag = option.replace("_", "-")
    require_refused(model(), rf"rejects a batch of 3 .*give {option} \(--{flag} package.module:callable\)", role=role)
    classifier = Classifier(model(), VECTOR, role=role, forward_fn=forward_fn)
    with frozen(classifier.model):
        assert torch.equal(classifier.logits(X), wanted_logits(vector_classifier()))


def test_an_error_inside_a_model_of_one_tensor_does_not_advise_forward_fn():
    with pytest.raises(InputError) as error:
        Classifier(Wrapped(before=lambda x: None.shape), VECTOR)
    assert str(error.value).endswith("'NoneType' object has no attribute 'shape'")
    require_refused(Wrapped(before=lambda x: x.pixel_values), "has no attribute 'pixel_values'; .* give forward_fn")


def test_a_forward_fn_that_fails_is_named():
    require_refused(KeywordInput(), r"no key 'pixels' \(called by forward_fn _wrong\)", forward_fn=_wrong)


def _wrong(model, x):
    return model({"pixel": x})


# ------------------------------------------------------------------------------- always the same answer


def test_a_teacher_that_answers_twice_differently_is_refused():
    require_refused(Wrapped(dropped), "gives the same input two different answers in eval mode, as with F.dropout")
    Classifier(Wrapped(dropped), VECTOR, role="student")


def test_a_teacher_whose_answer_depends_on_the_batch_is_refused():
    require_refused(
        nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, track_running_stats=False)),
        "depend on the other inputs of its batch",
    )


# ---------------------------------------------------------------------------------------- in-place models


@pytest.mark.parametrize("before", [subtracting, torch.relu_, lambda x: x.data.neg_()], ids=["-=", "relu_", "data"])
@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_model_that_writes_into_its_input_gets_a_copy(before, role):
    spec = InputSpec((6,), (-1.0, 1.0))
    classifier = Classifier(Wrapped(before=before), spec, role=role)
    x = 2 * X - 1
    given = x.clone()
    with frozen(classifier.model):
        logits = classifier.logits(given)
    assert torch.equal(given, x), "the input was changed"
    assert torch.equal(logits, wanted_logits(vector_classifier(), before(x.clone())))


@pytest.mark.parametrize(
    ("before", "copied"), [(subtracting, lambda x: x - 0.5), (torch.relu_, torch.relu)], ids=["-=", "relu_"]
)
def test_the_gradient_of_a_model_that_writes_into_its_input(before, copied):
    """relu_ changes no value of the valid range here, but autograd refuses it on a leaf all the same."""
    classifier = Classifier(Wrapped(before=before), VECTOR)
    x = X.clone().requires_grad_()
    with frozen(classifier.model):
        got = torch.autograd.grad(classifier.logits(x).square().sum(), x)[0]
    y = copied(X).requires_grad_()
    with frozen(classifier.model):
        wanted = torch.autograd.grad(classifier.model.inner(y).square().sum(), y)[0]
    assert torch.equal(got, wanted)


def test_a_model_that_does_not_write_gets_its_input_itself():
    seen = []
    model = vector_classifier()
    classifier = Classifier(model, VECTOR)
    model.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    classifier.logits(X)
    assert seen[0] is X


# ------------------------------------------------------------------------------- the reason of an error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("first\nsecond"), "first"),
        (ValueError(), "ValueError"),
        (KeyError("image"), "no key 'image'"),
        (
            RuntimeError("\n The following operation failed in the TorchScript interpreter.\nat x\nRuntimeError: mat1"),
            "mat1",
        ),
    ],
)
def test_a_reason_is_one_line(error, words):
    assert probe.reason(error) == words
