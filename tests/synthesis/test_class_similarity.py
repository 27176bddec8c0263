import os
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import image_classifier
from torch import nn

from zskd_fast.errors import InputError
from zskd_fast.synthesis.class_similarity import (
    class_similarity,
    classifier_weight,
    concentration,
    find_classifier_layer,
)
from zskd_fast.synthesis.plan import Plan


def _golden():
    """The paper's authors' own last layer and similarity matrix (AlexNet, CIFAR-10)."""
    here = Path(__file__).resolve().parents[2]
    folder = Path(os.environ.get("ZSKD_DATA", here.parent / "shared" / "data"))
    path = folder / "golden" / "zskd_authors_alexnet_cifar10_last_layer.npz"
    if not path.is_file():
        pytest.skip(f"no {path}: set ZSKD_DATA to the folder that holds golden/")
    with np.load(path) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def _row_min_max(matrix):
    low, high = matrix.min(dim=1, keepdim=True).values, matrix.max(dim=1, keepdim=True).values
    return (matrix - low) / (high - low)


def test_agrees_with_the_authors_matrix_up_to_their_choice_of_range():
    """One affine map separates a row of cosines from theirs, and normalising the row undoes any such map."""
    golden = _golden()
    ours = class_similarity(golden["weight"].T)
    theirs = _row_min_max(golden["similarity_global_minmax"].double())
    torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=2e-6)


def test_authors_weights_taken_the_wrong_way_round_do_not_agree():
    """Guards the test above: it can tell one class per row from one class per column."""
    golden = _golden()
    assert class_similarity(golden["weight"]).shape != golden["similarity_global_minmax"].shape


def test_each_row_runs_from_0_to_1_with_the_class_itself_at_1():
    similarity = class_similarity(torch.randn(10, 84, generator=torch.Generator().manual_seed(0)))
    assert similarity.dtype == torch.float32
    assert torch.equal(similarity.diagonal(), torch.ones(10))
    assert torch.equal(similarity.amin(dim=1), torch.zeros(10))
    assert torch.equal(similarity.amax(dim=1), torch.ones(10))


def test_min_max_is_over_the_row_not_the_column():
    """The known fault: without keepdim column k, not row k, is scaled by the extremes of class k."""
    weight = torch.randn(10, 16, generator=torch.Generator().manual_seed(1)) + 0.3
    unit = weight.double() / weight.double().norm(dim=1, keepdim=True)
    cosine = unit @ unit.T
    low, high = cosine.min(dim=1).values, cosine.max(dim=1).values
    wrong = (cosine - low) / (high - low)
    assert (wrong.amin(dim=1) > 0.01).any(), "the weights chosen do not show the fault"
    torch.testing.assert_close(class_similarity(weight), _row_min_max(cosine).float())


def test_does_not_depend_on_the_length_of_the_weight_vectors():
    weight = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor([1e-18, 1.0, 1e18, 1e-30, 1e30]).unsqueeze(1)
    torch.testing.assert_close(
        class_similarity(weight * scale), class_similarity(weight), rtol=1e-5, atol=1e-6
    )


def test_two_classes_are_as_unlike_as_can_be():
    assert torch.equal(class_similarity(torch.tensor([[1.0, 0.2], [0.3, 1.0]])), torch.eye(2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weight: weight[2].fill_(0.0), "class 2 are all zero"),
        (lambda weight: weight[1, 3].fill_(float("nan")), "class 1 hold NaN"),
        (lambda weight: weight[3, 0].fill_(float("inf")), "class 3 hold NaN or infinity"),
        (lambda weight: weight.copy_(weight[0].clone()), "class 0 point the same way"),
        (
            lambda weight: weight.copy_(weight[0] * torch.arange(1.0, 5.0).unsqueeze(1)),
            "class 0 point the same",
        ),
    ],
)
def test_names_the_class_whose_weights_say_nothing(change, message):
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    change(weight)
    with pytest.raises(InputError, match=message):
        class_similarity(weight)


@pytest.mark.parametrize("shape", [(1, 5), (5,), (3, 4, 1)])
def test_refuses_weights_that_are_not_a_matrix_of_two_classes_or_more(shape):
    with pytest.raises(InputError, match=r"\[K, D\]"):
        class_similarity(torch.ones(shape))


def test_beta_scales_the_concentration_and_is_not_normalised_away():
    """The known fault: a second min-max over each row made beta = 0.1 the same as beta = 1."""
    similarity = class_similarity(torch.randn(3, 8, generator=torch.Generator().manual_seed(0)))
    rows = concentration(similarity, torch.arange(6), Plan(3, (1.0, 0.1)), floor=1e-3)
    torch.testing.assert_close(rows[:3], similarity + 1e-3)
    torch.testing.assert_close(rows[3:], 0.1 * (similarity + 1e-3))
    assert (rows > 0).all()


# Which layer is the classifier


class TwoHeads(nn.Module):
    """The auxiliary head is registered last and has as many outputs, as in GoogLeNet."""

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


def test_finds_the_last_linear_layer_of_a_plain_classifier():
    model = image_classifier()
    assert find_classifier_layer(model) == ("4", model[4])


def test_finds_the_layer_whose_output_is_the_logits():
    model = TwoHeads()
    assert find_classifier_layer(model, forward=_forward(model, 6)) == ("head", model.head)


def test_the_search_leaves_no_hook_behind():
    model = TwoHeads()
    find_classifier_layer(model, forward=_forward(model, 6))
    with pytest.raises(ZeroDivisionError):
        find_classifier_layer(model, forward=lambda: 1 / 0)
    assert not any(module._forward_hooks for module in model.modules())


def test_finds_a_1x1_convolution_before_global_pooling():
    model = nn.Sequential(
        nn.Conv2d(3, 10, 3), nn.ReLU(), nn.Conv2d(10, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    name, layer = find_classifier_layer(model, forward=_forward(model, 3, 8, 8))
    assert (name, layer) == ("2", model[2])
    assert torch.equal(classifier_weight(layer), model[2].weight[:, :, 0, 0])


def test_a_softmax_after_the_classifier_does_not_hide_it():
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4), nn.LogSoftmax(dim=1))
    assert find_classifier_layer(model, forward=_forward(model, 6))[0] == "1"


def test_finds_the_classifier_of_an_exported_program():
    batch = torch.export.Dim("batch", min=1, max=64)
    example = (torch.randn(2, 1, 8, 8),)
    exported = torch.export.export(image_classifier(), example, dynamic_shapes=({0: batch},)).module()
    name, layer = find_classifier_layer(exported, forward=_forward(exported, 1, 8, 8))
    assert name == "4"
    assert torch.equal(classifier_weight(layer), image_classifier()[4].weight)


def test_an_ambiguous_teacher_gets_a_list_of_the_candidates():
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
def test_layers_with_other_weights_are_no_candidates(layer):
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
def test_a_wrong_name_is_answered_with_what_there_is(name, message):
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    with pytest.raises(InputError, match=message):
        find_classifier_layer(model, 4, name)


def test_a_teacher_gives_the_similarity_of_its_classifier_weights():
    model = image_classifier()
    assert torch.equal(class_similarity(model), class_similarity(model[4].weight))
    assert torch.equal(class_similarity(model, layer="4"), class_similarity(model[4].weight))
