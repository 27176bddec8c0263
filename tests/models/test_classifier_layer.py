"""Which layer of a teacher is its classifier layer."""

import pytest
import torch
from small_models import image_classifier
from torch import nn

from zskd_fast.errors import InputError
from zskd_fast.models.classifier_layer import classifier_weight, find_classifier_layer


class TwoHeads(nn.Module):
    """A classifier whose auxiliary head is registered last and has as many outputs, as in GoogLeNet."""

    def __init__(self, use_auxiliary=False):
        super().__init__()
        self.body = nn.Linear(6, 8)
        self.head = nn.Linear(8, 4)
        self.auxiliary = nn.Linear(8, 4)
        self.use_auxiliary = use_auxiliary

    def forward(self, x):
        features = self.body(x).tanh()
        logits = self.head(features)
        return logits + self.auxiliary(features) if self.use_auxiliary else logits


def _forward(model, *shape):
    return lambda: model(torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)))


def test_the_only_linear_layer_is_found():
    model = image_classifier()
    assert find_classifier_layer(model) == ("4", model[4])


def test_the_layer_whose_output_is_the_logits_is_found():
    model = TwoHeads()
    assert find_classifier_layer(model, forward=_forward(model, 6)) == ("head", model.head)


def test_the_search_leaves_no_hook_on_the_model():
    model = TwoHeads()
    find_classifier_layer(model, forward=_forward(model, 6))
    with pytest.raises(ZeroDivisionError):
        find_classifier_layer(model, forward=lambda: 1 / 0)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_1x1_convolution_before_global_pooling_is_found():
    model = nn.Sequential(
        nn.Conv2d(3, 10, 3), nn.ReLU(), nn.Conv2d(10, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    name, layer = find_classifier_layer(model, forward=_forward(model, 3, 8, 8))
    assert (name, layer) == ("2", model[2])
    assert torch.equal(classifier_weight(layer), model[2].weight[:, :, 0, 0])


def test_a_classifier_layer_before_a_softmax_is_found():
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4), nn.LogSoftmax(dim=1))
    assert find_classifier_layer(model, forward=_forward(model, 6))[0] == "1"


def test_the_classifier_layer_of_an_exported_program_is_found():
    batch = torch.export.Dim("batch", min=1, max=64)
    example = (torch.randn(2, 1, 8, 8),)
    exported = torch.export.export(image_classifier(), example, dynamic_shapes=({0: batch},)).module()
    name, layer = find_classifier_layer(exported, forward=_forward(exported, 1, 8, 8))
    assert name == "4"
    assert torch.equal(classifier_weight(layer), image_classifier()[4].weight)


def test_an_ambiguous_teacher_is_refused_with_the_candidates():
    model = TwoHeads(use_auxiliary=True)
    message = r"more than one layer .*head \(Linear, \[4, 8\]\), auxiliary \(Linear, \[4, 8\]\)"
    with pytest.raises(InputError, match=message):
        find_classifier_layer(model, forward=_forward(model, 6))
    assert find_classifier_layer(model, name="head")[1] is model.head


def test_a_teacher_without_a_classifier_layer_is_refused():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(InputError, match=r"no Linear layer or 1x1 convolution.*Candidates: none"):
        find_classifier_layer(model, forward=_forward(model, 1, 8, 8))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Embedding(4, 8),
        nn.ConvTranspose2d(4, 8, 1),
        nn.Conv2d(8, 4, 1, groups=2),
        nn.Conv2d(8, 4, 3),
        nn.BatchNorm1d(4),
        nn.Bilinear(4, 4, 4),
    ],
)
def test_layers_with_other_weights_are_refused(layer):
    with pytest.raises(InputError, match="neither a Linear layer nor a 1x1"):
        classifier_weight(layer)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fc9", r"no layer 'fc9'; candidates: 0 \(Linear, \[8, 6\]\), 2 \(Linear"),
        ("1", r"'1' \(Tanh\) is no classifier"),
        ("0", "has 8 rows, but the teacher has 4 classes"),
    ],
)
def test_a_wrong_name_is_refused_with_the_candidates(name, message):
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    with pytest.raises(InputError, match=message):
        find_classifier_layer(model, 4, name)
