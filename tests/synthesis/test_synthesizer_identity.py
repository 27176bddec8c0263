"""The identity of impressions: it depends on all that they depend on, and on nothing else."""

import dataclasses

import pytest
import torch
from small_models import (
    VECTOR,
    flat_classifier,
    image_classifier,
    noise_recipe,
    synthesis_recipe,
)
from synthesizers import small_synthesizer
from torch import nn

from zskd_fast.config.identity import ImpressionIdentity
from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.recipe import ImpressionRecipe, NoiseRecipe

_LEAVES = noise_recipe(kind="dead_leaves", leaves=3, leaf_size=(0.1, 0.5))
# For each field a value that differs from the small recipe's.
_OTHER_RECIPE = {
    "betas": (1.0,),
    "targets": "one_hot",
    "concentration_floor": 2e-3,
    "temperature": 19.0,
    "steps": 6,
    "learning_rate": 0.2,
    "final_learning_rate_fraction": 0.5,
    "adam_betas": (0.9, 0.99),
    "adam_eps": 1e-7,
    "start_noise": noise_recipe(kind="normal"),
    "clamp": False,
    "l1": 0.0,
    "l2": 1e-3,
    "total_variation": 1e-3,
    "store_dtype": "float16",
    "batch_size": 5,
    "fold_batch_norm": True,
    "statistics_prior": 1.0,
    "teacher_precision": "bfloat16",
    "channels_last": "on",
    "compile_teacher": True,
}
_OTHER_NOISE = {
    "kind": (noise_recipe(), noise_recipe(kind="normal")),
    "scale": (noise_recipe(), noise_recipe(scale=0.5)),
    "shift": (noise_recipe(), noise_recipe(shift=0.5)),
    "leaves": (_LEAVES, dataclasses.replace(_LEAVES, leaves=4)),
    "leaf_size": (_LEAVES, dataclasses.replace(_LEAVES, leaf_size=(0.1, 0.6))),
}
_NORMALIZED = InputSpec((6,), mean=(0.5,), std=(0.25,))
_OTHER_INPUT = {
    "shape": (InputSpec((6,)), InputSpec((2, 3))),
    "valid_range": (InputSpec((6,)), InputSpec((6,), (0.0, 2.0))),
    "mean": (_NORMALIZED, dataclasses.replace(_NORMALIZED, mean=(0.4,))),
    "std": (_NORMALIZED, dataclasses.replace(_NORMALIZED, std=(0.5,))),
}


def _names(kind):
    return {field.name for field in dataclasses.fields(kind)}


def test_the_tests_of_the_identity_below_know_every_field():
    assert set(_OTHER_RECIPE) == _names(ImpressionRecipe)
    assert set(_OTHER_NOISE) == _names(NoiseRecipe)
    assert set(_OTHER_INPUT) == _names(InputSpec)
    assert _names(ImpressionIdentity) == {"seed", "input", "teacher", "layer", "num_classes", "recipe"}


@pytest.mark.parametrize(
    "same", [{"parallel_batches": False}, {"impressions": 21}, {"shard_size": 7}, {}], ids=lambda same: "".join(same)
)
def test_the_identity_does_not_depend_on_the_number_of_impressions_or_how_they_are_made(same):
    assert synthesis_recipe().parallel_batches
    assert small_synthesizer(**same).identity == small_synthesizer().identity


@pytest.mark.parametrize("field", _OTHER_RECIPE)
def test_the_identity_depends_on_each_field_of_the_recipe(field):
    plain, other = small_synthesizer().identity, small_synthesizer(**{field: _OTHER_RECIPE[field]}).identity
    assert other != plain
    assert other == dataclasses.replace(
        plain, recipe=dataclasses.replace(plain.recipe, **{field: _OTHER_RECIPE[field]})
    )


@pytest.mark.parametrize("field", _OTHER_NOISE)
def test_the_identity_depends_on_each_field_of_the_start_noise(field):
    one, other = (small_synthesizer(start_noise=noise).identity for noise in _OTHER_NOISE[field])
    assert one != other


@pytest.mark.parametrize("field", _OTHER_INPUT)
def test_the_identity_depends_on_each_field_of_the_input(field):
    one, other = (small_synthesizer(flat_classifier(6), spec).identity for spec in _OTHER_INPUT[field])
    assert one != other
    assert one.teacher == other.teacher


def test_the_identity_depends_on_seed_weights_and_layer():
    weight = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    one_bit = image_classifier()
    one_bit[0].bias.data[0] = torch.nextafter(one_bit[0].bias.data[0], torch.tensor(9.0))
    runs = [
        small_synthesizer(),
        small_synthesizer(seed=2),
        small_synthesizer(image_classifier(seed=3)),
        small_synthesizer(one_bit),
        small_synthesizer(layer=weight),
        small_synthesizer(layer=weight + 1),
    ]
    identities = [run.identity for run in runs]
    assert all(a != b for i, a in enumerate(identities) for b in identities[:i])
    assert small_synthesizer().identity == small_synthesizer(layer="4").identity == identities[0]
    assert (identities[0].layer, identities[0].num_classes, identities[0].seed) == ("4", 4, 1)


def test_the_identity_depends_on_the_name_of_the_layer():
    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x):
            return self.left(x) + self.right(x)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = TwoHeads()
    left, right = (small_synthesizer(teacher, VECTOR, layer=layer).identity for layer in ("left", "right"))
    assert left == dataclasses.replace(right, layer="left") != right
