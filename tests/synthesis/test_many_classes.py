"""Many classes: targets and temperature follow their number, and nothing grows with its square."""

import dataclasses
import math

import pytest
import torch
from many_classes import prototype_classifier
from small_models import IMAGE, image_classifier, open_store, synthesis_recipe
from torch import nn

from zskd_fast import ops
from zskd_fast.config.recipe_files import load_recipe
from zskd_fast.synthesis import class_similarity as similarity_module
from zskd_fast.synthesis import synthesizer as synthesizer_module
from zskd_fast.synthesis.class_similarity import ClassSimilarity, class_similarity, concentration
from zskd_fast.synthesis.plan import Plan
from zskd_fast.synthesis.scaling import (
    scaled_floor,
    scaled_recipe,
    scaled_similarity,
    scaled_temperature,
    scaling_note,
)
from zskd_fast.synthesis.shards import synthesize
from zskd_fast.synthesis.synthesizer import Synthesizer

FAST = load_recipe("fast").synthesis


def _weight(classes, features=16):
    """Weights that are no two alike and have a direction in common, as those of a trained teacher."""
    return torch.randn(classes, features, generator=torch.Generator().manual_seed(0)) + 0.5


# --------------------------------------------------------------------------------- what is scaled, and how far


@pytest.mark.parametrize("classes", [2, 3, 4, 9, 10])
def test_with_at_most_ten_classes_every_number_and_bit_is_the_recipes(classes):
    similarity, ids = class_similarity(_weight(classes)), torch.arange(5 * classes)
    plan = Plan(classes, FAST.betas)
    rows = plan.beta_of(ids).unsqueeze(1) * (similarity[ids % classes] + FAST.concentration_floor)
    assert torch.equal(concentration(similarity, ids, plan, FAST.concentration_floor), rows)
    assert scaled_recipe(FAST, classes) == FAST
    assert scaling_note(FAST, classes) == ""
    synthesizer = Synthesizer(image_classifier(classes=classes), IMAGE, FAST, seed=1)
    assert synthesizer.recipe == FAST and synthesizer.notes == {}


@pytest.mark.parametrize("classes", [11, 100, 1775])
def test_a_target_is_of_its_class_and_the_nine_most_similar_ones(classes):
    whole = class_similarity(_weight(classes))
    own = torch.tensor([0, classes - 1, 5])
    rows = scaled_similarity(whole[own], own)
    for row, given, k in zip(rows, whole[own], own.tolist(), strict=True):
        others = given.clone()
        others[k] = -1
        nearest = set(others.argsort(descending=True)[:9].tolist())
        assert set(row.nonzero().flatten().tolist()) <= nearest | {k}
        assert row[k] == 1
        places = sorted(nearest)
        ratio = row[places] / given[places]
        torch.testing.assert_close(ratio, ratio[:1].expand(9), rtol=1e-5, atol=0)  # they are scaled alike
        mean = (given.double().sum() - given[k]) / (classes - 1)
        assert float(row.double().sum() - 1) == pytest.approx(9 * float(mean), rel=1e-4)
        assert row.max() == 1, "no class counts for more than the own one"


def test_the_own_class_keeps_its_share_of_the_targets():
    """Without scaling its mean share falls from 1/5 of a target to 1/1000."""
    shares = {}
    for classes in (10, 100, 1775):
        similarity = class_similarity(_weight(classes))
        ids = torch.arange(4000)
        plan = Plan(classes, (1.0,))
        floor = scaled_floor(1e-3, classes)
        target = ops.dirichlet(concentration(similarity, ids, plan, floor), ids, seed=1)
        assert torch.isfinite(target).all()
        shares[classes] = float(target.gather(1, plan.class_of(ids).unsqueeze(1)).mean())
        others = (float(similarity.mean()) * classes - 1) / (classes - 1)
        assert shares[classes] == pytest.approx(1 / (1 + 9 * others), abs=0.03)
        if classes > 10:
            plain = (similarity[plan.class_of(ids)] + 1e-3).sum(dim=1).reciprocal().mean()
            assert plain < 0.3 * shares[classes]
    assert min(shares.values()) > 0.15, shares


def test_classes_that_are_all_equally_far_get_one_hot_targets():
    """Perfectly trained classes are; their other similarities are all 0."""
    rows = scaled_similarity(class_similarity(torch.eye(20)), torch.arange(20))
    assert torch.equal(rows, torch.eye(20))


@pytest.mark.parametrize("temperature", [20.0, 4.0])
def test_the_temperature_keeps_the_gap_of_logits_that_gives_half_of_the_softmax(temperature):
    gap = (temperature - 1) * math.log(9)
    for classes in (11, 100, 1775, 20_000):
        scaled = scaled_temperature(temperature, classes)
        assert (scaled - 1) * math.log(classes - 1) == pytest.approx(gap)
        assert 1 < scaled < temperature
    assert scaled_temperature(1.0, 1775) == 1.0
    assert scaled_temperature(0.5, 1775) == 0.5


def test_the_floor_keeps_its_sum():
    assert [scaled_floor(1e-3, classes) * (classes - 1) for classes in (10, 11, 1775)] == pytest.approx([9e-3] * 3)


def test_what_was_scaled_is_said_and_is_in_the_identity():
    synthesizer = Synthesizer(image_classifier(classes=1775), IMAGE, FAST, seed=1)
    note = synthesizer.notes["scaled"]
    assert note == (
        "for 1,775 classes: temperature 20 -> 6.58, concentration_floor 0.001 -> 5.1e-06, "
        "targets of the 9 most similar classes"
    )
    recipe = synthesizer.identity.recipe
    assert recipe.temperature == scaled_temperature(20.0, 1775)
    assert recipe.concentration_floor == scaled_floor(1e-3, 1775)
    one_hot = dataclasses.replace(FAST, targets="one_hot", temperature=1.0)
    assert Synthesizer(image_classifier(classes=1775), IMAGE, one_hot, seed=1).notes == {}


# ------------------------------------------------------------------------------------------- what it is good for


@pytest.fixture(scope="module")
def teacher():
    return prototype_classifier(1775)


def _health(teacher, folder, **recipe):
    changes = {"impressions": 300, "shard_size": 100, **recipe}
    synthesizer = Synthesizer(teacher, IMAGE, dataclasses.replace(FAST, **changes), seed=0)
    return synthesize(synthesizer, open_store(folder, synthesizer), progress=False).health


def test_1775_classes_are_reached_with_the_recipe_fast(teacher, tmp_path):
    health = _health(teacher, tmp_path / "a")
    assert health.reached > 0.9
    assert health.answered_classes > 0.9 * health.wanted_classes > 0.8 * 300
    assert health.warning == ""


def test_without_scaling_1775_classes_are_not_reached_and_the_health_says_so(teacher, tmp_path, monkeypatch):
    """The known fault: nearly uniform targets, so that no impression has its class and most have one and the same."""
    monkeypatch.setattr(similarity_module, "scaled_similarity", lambda similarity, classes: similarity)
    monkeypatch.setattr(synthesizer_module, "scaled_recipe", lambda recipe, classes: recipe)
    health = _health(teacher, tmp_path / "a")
    assert health.reached < 0.02
    assert health.answered_classes < 30
    assert "the impressions have only" in health.warning


# --------------------------------------------------------------------------------------- what grows with K * K


def _straightforward(weight):
    unit = weight.double() / weight.double().norm(dim=1, keepdim=True)
    cosine = unit @ unit.T
    low = cosine.amin(dim=1, keepdim=True)
    return ((cosine - low) / (cosine.amax(dim=1, keepdim=True) - low)).float()


def test_rows_are_those_of_the_whole_matrix_whatever_else_is_asked_for():
    weight = _weight(700)
    similarity = ClassSimilarity(weight)
    whole = similarity.matrix()
    torch.testing.assert_close(whole, _straightforward(weight), rtol=0, atol=1e-6)
    assert torch.equal(whole.diagonal(), torch.ones(700))
    classes = torch.tensor([699, 0, 256, 255, 0, 511, 512])
    assert torch.equal(similarity[classes], whole[classes])
    assert torch.equal(similarity[classes[:1]], whole[classes[:1]])
    assert torch.equal(similarity.matrix(300), whole[:300, :300])
    assert torch.equal(similarity.matrix(9999), whole)
    assert len(similarity) == 700


def test_20000_classes_take_the_memory_of_the_rows_that_are_needed(monkeypatch):
    classes, blocks = 20_000, []
    real = ClassSimilarity._block

    def block(self, number):
        blocks.append(number)
        rows = real(self, number)
        assert rows.shape == (256, classes)
        return rows

    monkeypatch.setattr(ClassSimilarity, "_block", block)
    monkeypatch.setattr(ClassSimilarity, "matrix", lambda *_: pytest.fail("the matrix takes 1.6 GB"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
    recipe = synthesis_recipe(impressions=64, batch_size=64)
    made = Synthesizer(teacher, IMAGE, recipe, seed=0).run(range(64))
    assert made.target.shape == (64, classes)
    assert blocks == [0, 0], "one for the check of the constructor, one for the targets"
