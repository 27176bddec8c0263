"""Accuracy counts what it should and leaves the model as it was."""

import pytest
import torch
from image_files import write_test_split
from torch import nn

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.errors import InputError
from zskd_fast.models.classifier import Classifier
from zskd_fast.real_data.evaluation import accuracy, agreement, load_test_set


class Echo(nn.Module):
    """Returns its input as logits, and something else in training mode."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return -x if self.training else x * self.scale


@pytest.mark.parametrize("batch_size", [1, 3, 7, 1000])
def test_counts_every_row_once_in_eval_mode(batch_size):
    model = Echo().train()
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    inputs = nn.functional.one_hot(labels, 3).float()
    inputs[2] = torch.tensor([1.0, 0.0, 0.0])  # one wrong
    assert accuracy(model, inputs, labels, batch_size=batch_size) == 6 / 7
    assert model.training and model.scale.requires_grad


def test_logits_can_come_from_another_function():
    labels = torch.tensor([0, 1])
    inputs = torch.eye(2)
    assert accuracy(Echo(), inputs, labels, forward=lambda x: x.flip(1)) == 0.0


def test_nothing_to_evaluate():
    with pytest.raises(InputError, match="got 0 labels"):
        accuracy(Echo(), torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))


def test_test_set_lies_in_the_raw_range_of_the_teacher(tmp_path):
    write_test_split(tmp_path)
    test = load_test_set(tmp_path, InputSpec((1, 32, 32), valid_range=(-1.0, 3.0)))
    assert test.inputs.shape == (2, 1, 32, 32)
    assert test.inputs[0, 0, 0, 0] == -1.0 and test.inputs[0, 0, 16, 16] == 3.0
    assert str(tmp_path) in test.source


@pytest.mark.parametrize("shape", [(3, 32, 32), (1024,), (1, 32, 30)])
def test_test_set_that_does_not_fit_the_teacher(tmp_path, shape):
    write_test_split(tmp_path)
    with pytest.raises(InputError, match="images of 1 channels do not fit the teacher's input"):
        load_test_set(tmp_path, InputSpec(shape))


def test_agreement_counts_the_inputs_to_which_both_give_the_same_class():
    def says(classes):
        return Classifier(_Scripted(classes), InputSpec((1,)))

    x = torch.arange(4.0).reshape(4, 1)
    assert agreement(says([0, 1, 2, 1]), says([0, 1, 1, 1]), x) == 0.75
    assert agreement(says([0, 1, 2, 1]), says([0, 1, 1, 1]), x, batch_size=3) == 0.75
    with pytest.raises(InputError, match="got 0 rows"):
        agreement(says([0]), says([0]), x[:0])


class _Scripted(nn.Module):
    """Gives the input i the class classes[i]."""

    def __init__(self, classes):
        super().__init__()
        self.logits = torch.eye(3)[classes]

    def forward(self, x):
        return self.logits[x.long().flatten().clamp(max=len(self.logits) - 1)]
