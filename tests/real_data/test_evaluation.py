"""Accuracy and agreement count every row once and leave the model unchanged; test sets fit the teacher."""

import pytest
import torch
from image_files import write_test_split
from torch import nn

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.errors import InputError
from zskd_fast.models.classifier import Classifier
from zskd_fast.real_data.evaluation import accuracy, agreement, load_test_set


class Echo(nn.Module):
    """Returns its input as logits in eval mode, and the negative of it in train mode."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return -x if self.training else x * self.scale


def echo(model=None, classes=3, **options):
    return Classifier(model or Echo(), InputSpec((classes,)), **options)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 1000])
def test_accuracy_counts_every_row_once_in_eval_mode(batch_size):
    model = Echo().train()
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    inputs = nn.functional.one_hot(labels, 3).float()
    inputs[2] = torch.tensor([1.0, 0.0, 0.0])  # one wrong
    assert accuracy(echo(model), inputs, labels, batch_size=batch_size) == 6 / 7
    assert model.training and model.scale.requires_grad


def test_accuracy_uses_the_logits_function_of_the_classifier():
    flipped = echo(classes=2, logits_fn=lambda x: x.flip(1))
    assert accuracy(flipped, torch.eye(2), torch.tensor([0, 1])) == 0.0


def test_accuracy_of_no_rows_is_an_error():
    with pytest.raises(InputError, match="got 0 labels"):
        accuracy(echo(), torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))


def test_test_set_lies_in_the_raw_range_of_the_teacher(tmp_path):
    write_test_split(tmp_path)
    test = load_test_set(tmp_path, InputSpec((1, 32, 32), valid_range=(-1.0, 3.0)))
    assert test.inputs.shape == (2, 1, 32, 32)
    assert test.inputs[0, 0, 0, 0] == -1.0 and test.inputs[0, 0, 16, 16] == 3.0
    assert str(tmp_path) in test.source


@pytest.mark.parametrize("shape", [(3, 32, 32), (1024,), (1, 32, 30)])
def test_test_set_must_fit_the_teacher(tmp_path, shape):
    write_test_split(tmp_path)
    with pytest.raises(InputError, match="images of 1 channels do not fit the teacher's input"):
        load_test_set(tmp_path, InputSpec(shape))


def test_agreement_counts_the_inputs_that_both_assign_to_the_same_class():
    x = torch.arange(4.0).reshape(4, 1)
    assert agreement(scripted([0, 1, 2, 1]), scripted([0, 1, 1, 1]), x) == 0.75
    assert agreement(scripted([0, 1, 2, 1]), scripted([0, 1, 1, 1]), x, batch_size=3) == 0.75
    with pytest.raises(InputError, match="got 0 rows"):
        agreement(scripted([0]), scripted([0]), x[:0])


def scripted(classes):
    return Classifier(_Scripted(classes), InputSpec((1,)))


class _Scripted(nn.Module):
    """Assigns the input i to the class classes[i]."""

    def __init__(self, classes):
        super().__init__()
        self.logits = torch.eye(3)[classes]

    def forward(self, x):
        return self.logits[x.long().flatten().clamp(max=len(self.logits) - 1)]
