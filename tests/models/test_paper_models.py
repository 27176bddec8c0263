"""The models have the sizes of the paper and end in the classifier layer."""

import pytest
import torch
from torch import nn

from zskd_fast import models


@pytest.mark.parametrize(
    ("build", "wanted"),
    [
        (models.LeNet5, 61_706),
        (models.LeNet5Half, 35_820),
        (models.AlexNet, 1_659_178),
        (models.AlexNetHalf, 417_434),
    ],
)
def test_the_number_of_parameters(build, wanted):
    assert sum(parameter.numel() for parameter in build().parameters()) == wanted


@pytest.mark.parametrize(
    ("build", "channels"),
    [(models.LeNet5, 1), (models.LeNet5Half, 1), (models.AlexNet, 3), (models.AlexNetHalf, 3)],
)
@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_the_last_layer_is_linear_and_yields_one_logit_per_class(build, channels, num_classes):
    model = build(num_classes).eval()
    logits = model(torch.rand(3, channels, 32, 32))
    assert logits.shape == (3, num_classes)
    last = list(model.modules())[-1]
    assert isinstance(last, nn.Linear) and last.out_features == num_classes
    assert not any(isinstance(module, nn.Softmax | nn.LogSoftmax) for module in model.modules())


def test_the_last_layer_of_alexnet_has_the_shape_of_the_authors():
    assert list(models.AlexNet().modules())[-1].weight.shape == (10, 256)


def test_the_response_norm_is_tensorflows():
    """The formula of the authors' code: x / (1 + 1e-4 * sum of x^2 over 5 channels) ** 0.75."""
    norm = next(m for m in models.AlexNet().modules() if isinstance(m, nn.LocalResponseNorm))
    x = 10.0 * torch.rand(2, 9, 4, 4)
    sums = sum(torch.nn.functional.pad(x**2, (0, 0, 0, 0, 2, 2))[:, i : i + 9] for i in range(5))
    torch.testing.assert_close(norm(x), x / (1.0 + 1e-4 * sums) ** 0.75)


def test_an_input_of_another_size_is_rejected():
    with pytest.raises(RuntimeError):
        models.LeNet5()(torch.rand(1, 1, 28, 28))
