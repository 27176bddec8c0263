"""The probe of a student's step in train mode."""

import copy

import pytest
import torch
from odd_models import InTrainMode, Wrapped, named
from probed import X, wanted_logits
from small_models import VECTOR, same_tensors, vector_classifier
from torch import nn

from zskd_fast.errors import InputError
from zskd_fast.models.classifier import Classifier


def _train(model, rows=4):
    classifier = Classifier(model, VECTOR, role="student")
    model.train()
    return classifier.probe_training(rows), classifier


def test_a_training_step_leaves_nothing_behind():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 4))
    before = copy.deepcopy(model)
    assert _train(model)[0] is True
    assert same_tensors(model, before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_parameter_without_a_gradient_is_noticed():
    model = Wrapped()
    model.unused = nn.Linear(2, 2)
    assert _train(model)[0] is False
    model.unused.requires_grad_(False)
    assert _train(model)[0] is True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: (y, y), r"the student returns a tuple in train mode, wanted .*student_logits_fn .* in either mode"),
        (lambda y: y[:, :3], "other classes in each mode: 3 in train mode, but 4 in eval mode"),
        (lambda y: y / 0, "logits of an input inside the valid range are not all finite in train mode"),
        (lambda y: y.detach(), "no gradient flows from the student's logits in train mode"),
        (lambda y: torch.zeros_like(y, requires_grad=True), "no gradient flows from the student's logits"),
    ],
)
def test_what_fails_in_train_mode_is_described(change, message):
    with pytest.raises(InputError, match=message):
        _train(InTrainMode(change))


def test_auxiliary_outputs_that_are_named_are_no_obstacle():
    _, classifier = _train(InTrainMode(named))
    x = X.clone()
    classifier.model.eval()
    wanted = classifier.logits(x)
    classifier.model.train()
    classifier.model.inner.eval()
    assert torch.equal(classifier.logits(x), wanted)


def test_batch_norm_rejects_one_row_in_train_mode():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    with pytest.raises(InputError, match=r"rejects a batch of 1 input of shape .* in train mode: Expected more than 1"):
        _train(model, rows=1)
    assert _train(model, rows=2)[0]


def test_a_backward_pass_that_fails_is_described():
    def overwritten(logits):
        y = logits.exp()
        z = y.square()
        y.zero_()
        return z

    with pytest.raises(InputError, match="the student's backward pass in train mode fails: one of the variables"):
        _train(InTrainMode(overwritten))


def test_a_softmax_in_one_mode_only_is_undone_in_that_mode_only():
    """Some models apply it in eval mode only: in train mode the logarithm of logits would be NaN."""

    class InEvalMode(InTrainMode):
        def forward(self, x):
            logits = self.inner(x)
            return logits if self.training else logits.softmax(1)

    _, classifier = _train(InEvalMode(None))
    for module in classifier.model.modules():
        module.eval()
    probabilities = classifier.logits(X)
    classifier.model.training = True
    assert torch.equal(classifier.logits(X), wanted_logits(vector_classifier(seed=5)))
    torch.testing.assert_close(probabilities, classifier.logits(X).log_softmax(1))
