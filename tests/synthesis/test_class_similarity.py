"""Class similarity: agreement with the paper's authors, invariances, and weights that are refused."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import image_classifier

from zskd_fast.errors import InputError
from zskd_fast.synthesis.class_similarity import class_similarity, concentration
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


def test_the_similarity_is_that_of_the_authors_up_to_normalization():
    """The authors normalize over the whole matrix: an affine map of each row, which min-max over the row undoes."""
    golden = _golden()
    ours = class_similarity(golden["weight"].T)
    theirs = _row_min_max(golden["similarity_global_minmax"].double())
    torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=2e-6)


def test_the_authors_weights_transposed_do_not_agree():
    """Guards the test above: it tells one class per row from one class per column."""
    golden = _golden()
    assert class_similarity(golden["weight"]).shape != golden["similarity_global_minmax"].shape


def test_each_row_ranges_from_0_to_1_and_the_diagonal_is_1():
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
    assert (wrong.amin(dim=1) > 0.01).any(), "these weights do not show the fault"
    torch.testing.assert_close(class_similarity(weight), _row_min_max(cosine).float())


def test_the_length_of_the_weight_vectors_does_not_matter():
    weight = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor([1e-18, 1.0, 1e18, 1e-30, 1e30]).unsqueeze(1)
    torch.testing.assert_close(class_similarity(weight * scale), class_similarity(weight), rtol=1e-5, atol=1e-6)


def test_two_classes_have_the_identity_matrix():
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
def test_weights_that_define_no_similarity_are_refused_with_the_class(change, message):
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    change(weight)
    with pytest.raises(InputError, match=message):
        class_similarity(weight)


@pytest.mark.parametrize("shape", [(1, 5), (5,), (3, 4, 1)])
def test_weights_must_be_a_matrix_of_two_classes_or_more(shape):
    with pytest.raises(InputError, match=r"\[K, D\]"):
        class_similarity(torch.ones(shape))


def test_beta_scales_the_concentration_and_is_not_normalized_away():
    """The known fault: a second min-max over each row made beta = 0.1 the same as beta = 1."""
    similarity = class_similarity(torch.randn(3, 8, generator=torch.Generator().manual_seed(0)))
    rows = concentration(similarity, torch.arange(6), Plan(3, (1.0, 0.1)), floor=1e-3)
    torch.testing.assert_close(rows[:3], similarity + 1e-3)
    torch.testing.assert_close(rows[3:], 0.1 * (similarity + 1e-3))
    assert (rows > 0).all()


def test_the_similarity_of_a_teacher_is_that_of_its_classifier_weights():
    model = image_classifier()
    assert torch.equal(class_similarity(model), class_similarity(model[4].weight))
    assert torch.equal(class_similarity(model, layer="4"), class_similarity(model[4].weight))
