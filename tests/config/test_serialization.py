"""Dataclasses as JSON and back, and the lines that say in what two of them differ."""

import json

import pytest
from small_models import impression_identity

from zskd_fast.config.identity import ImpressionIdentity
from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.recipe import Recipe
from zskd_fast.config.recipe_files import load_recipe, recipe_names
from zskd_fast.config.serialization import differences, from_plain, to_plain
from zskd_fast.errors import InputError


def _through_json(value):
    return json.loads(json.dumps(to_plain(value)))


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_survives_json(name):
    recipe = load_recipe(name)
    assert _through_json(recipe) == to_plain(recipe)
    assert from_plain(Recipe, _through_json(recipe), "recipe") == recipe


def test_an_identity_with_an_input_survives_json():
    identity = impression_identity(input_spec=InputSpec((3, 8, 8), (-1.0, 1.0), (0.1, 0.2, 0.3), (1.0, 2.0, 3.0)))
    read = from_plain(ImpressionIdentity, _through_json(identity), "here")
    assert read == identity
    assert read.input.shape == (3, 8, 8) and read.recipe.betas == identity.recipe.betas


def test_whole_numbers_are_accepted_as_floats():
    values = to_plain(load_recipe("demo"))
    values["synthesis"]["temperature"] = 20
    values["synthesis"]["betas"] = [1]
    recipe = from_plain(Recipe, values, "recipe")
    assert isinstance(recipe.synthesis.temperature, float)
    assert isinstance(recipe.synthesis.betas[0], float)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"surprise": 1}, "unknown key surprise; the keys at the top level are: seed, input"),
        ({"seed": "1"}, "seed must be int, got '1'"),
        ({"seed": None}, "seed must be int, got None"),
        ({"teacher": {"name": "LeNet5"}}, r"the key teacher\.sha256 is missing"),
        ({"teacher": {"name": "LeNet5", "sha256": "ab", "age": 1}}, r"unknown key teacher\.age; .*\[teacher\] are"),
        ({"input": {"shape": [1, 0]}}, "input shape must be one or more integers"),
        ({"recipe": []}, r"recipe must be ImpressionRecipe, got \[\]"),
    ],
)
def test_an_error_begins_with_the_place_and_names_the_key(change, message):
    with pytest.raises(InputError, match=f"^the file: {message}"):
        from_plain(ImpressionIdentity, {**to_plain(impression_identity()), **change}, "the file")


def test_a_missing_key_a_failed_check_and_no_table_are_refused():
    values = to_plain(impression_identity())
    values["recipe"]["steps"] = -1
    with pytest.raises(InputError, match=r"^the file: synthesis\.steps must be at least 0, got -1"):
        from_plain(ImpressionIdentity, values, "the file")
    del values["layer"]
    values["recipe"]["steps"] = 1
    with pytest.raises(InputError, match=r"^the file: the key layer is missing"):
        from_plain(ImpressionIdentity, values, "the file")
    with pytest.raises(InputError, match=r"^the file: wanted a table of keys, got \[1\]"):
        from_plain(ImpressionIdentity, [1], "the file")


def test_equal_values_have_no_differences():
    identity = impression_identity()
    assert differences(identity, impression_identity(), here="a", there="b") == []
    assert differences(identity, _through_json(identity), here="a", there="b") == []


def test_differences_are_sorted_and_name_the_field_and_both_values():
    ours = impression_identity(seed=4, steps=6, betas=(1.0,))
    theirs = to_plain(impression_identity())
    del theirs["layer"]
    theirs["more"] = {"than": "ours"}
    assert differences(ours, theirs, here="in this run", there="in the store") == [
        "layer: 'fc' in this run, nothing in the store",
        "more.than: nothing in this run, 'ours' in the store",
        "recipe.betas: [1.0] in this run, [1.0, 0.1] in the store",
        "recipe.steps: 6 in this run, 5 in the store",
        "seed: 4 in this run, 3 in the store",
    ]


def test_none_is_a_value_and_not_an_absent_field():
    assert differences({"a": None}, {}, here="x", there="y") == ["a: None x, nothing y"]
