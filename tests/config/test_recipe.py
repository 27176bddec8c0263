"""The shipped recipes, and the checks of a recipe's values."""

import copy

import pytest

from zskd_fast.config.recipe import Recipe
from zskd_fast.config.recipe_files import load_recipe, recipe_names
from zskd_fast.config.serialization import from_plain, to_plain
from zskd_fast.errors import InputError

_DORMANT = {
    "every": 9,
    "until_fraction": 0.8,
    "until_step": 8000,
    "least_active": 0.01,
    "reset_active": 0.1,
    "reset_scale": 1.0,
}


def test_three_recipes_are_shipped():
    assert recipe_names() == ["demo", "fast", "paper"]


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_has_the_name_of_its_file(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description


def test_the_demo_has_the_numbers_that_were_measured():
    recipe = load_recipe("demo")
    synthesis = recipe.synthesis
    assert (synthesis.impressions, synthesis.steps, synthesis.temperature) == (2000, 200, 20)
    assert (recipe.distillation.steps, recipe.distillation.batch_size) == (1000, 128)
    assert recipe.distillation.temperature == 4
    assert recipe.distillation.relabel
    assert (synthesis.start_noise.kind, synthesis.start_noise.scale) == ("uniform", 0.2)
    assert recipe.distillation.fresh_noise.fraction == recipe.distillation.dormant_units.every == 0


def test_the_recommended_recipe_has_the_numbers_that_were_measured():
    recipe = load_recipe("fast")
    synthesis, distillation = recipe.synthesis, recipe.distillation
    assert (synthesis.impressions, synthesis.steps, synthesis.start_noise.kind) == (4000, 60, "dead_leaves")
    assert (distillation.steps, distillation.batch_size, distillation.fresh_noise.fraction) == (10000, 128, 0.5)
    assert (distillation.dormant_units.every, distillation.dormant_units.until_step) == (100, 8000)


def test_the_paper_recipe_has_the_choices_of_the_paper():
    synthesis = load_recipe("paper").synthesis
    assert (synthesis.impressions, synthesis.steps, synthesis.batch_size) == (24000, 1500, 100)
    assert (synthesis.betas, synthesis.temperature) == ((1.0, 0.1), 20)
    assert (synthesis.start_noise.kind, synthesis.start_noise.scale) == ("normal", 1.0)
    assert not synthesis.clamp


def _set(path, value):
    """Return a change of a dict that sets a dotted key, or deletes it if the value is None."""

    def change(values):
        *tables, key = path.split(".")
        for table in tables:
            values = values[table]
        if value is None:
            del values[key]
        else:
            values[key] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("synthesis.stepz", 3), r"unknown key synthesis\.stepz; .*\[synthesis\] are: .*steps"),
        (_set("distillation.augmentation.tilt", 1), r"unknown key distillation\.augmentation\.tilt"),
        (_set("seed", 1), "unknown key seed; the keys at the top level are: name"),
        (_set("input", {"shape": [1, 32, 32]}), "unknown key input; the keys at the top level are: name"),
        (_set("synthesis.steps", None), r"synthesis\.steps is missing"),
        (_set("synthesis.steps", "3"), r"synthesis\.steps must be int, got '3'"),
        (_set("synthesis.steps", 2.5), r"synthesis\.steps must be int, got 2\.5"),
        (_set("synthesis.steps", -1), r"synthesis\.steps must be at least 0, got -1"),
        (_set("synthesis.impressions", 0), r"synthesis\.impressions must be at least 1, got 0"),
        (_set("synthesis.targets", "soft"), r"synthesis\.targets.*got 'soft'"),
        (_set("synthesis.total_variation", -1.0), r"synthesis\.total_variation must be at least 0"),
        (_set("synthesis.steps", True), r"synthesis\.steps must be a finite number, got True"),
        (_set("synthesis.temperature", float("nan")), r"synthesis\.temperature must be a finite number"),
        (_set("synthesis.temperature", 0.0), r"synthesis\.temperature must be above 0"),
        (_set("synthesis.concentration_floor", 0.0), r"synthesis\.concentration_floor must be above 0"),
        (_set("synthesis.betas", []), r"synthesis\.betas must be one or more"),
        (_set("synthesis.betas", [1.0, 0.0]), r"synthesis\.betas must be one or more"),
        (_set("synthesis.adam_betas", [0.9, 1.0]), r"synthesis\.adam_betas"),
        (_set("synthesis.start_noise.kind", "pink"), r"synthesis\.start_noise\.kind.*got 'pink'"),
        (
            _set("synthesis.start_noise.kind", "dead_leaves"),
            r"synthesis\.start_noise\.leaves must be at least 1, got 0",
        ),
        (
            _set("synthesis.start_noise.leaves", 3),
            r"synthesis\.start_noise\.leaves must be 0 where the noise is uniform",
        ),
        (
            _set("synthesis.start_noise.leaf_size", [0.5, 0.1]),
            r"synthesis\.start_noise\.leaf_size must be 0, 0 where the noise is uniform",
        ),
        (_set("synthesis.store_dtype", "float64"), r"synthesis\.store_dtype.*got 'float64'"),
        (_set("distillation.warmup_fraction", 1.5), r"distillation\.warmup_fraction must be between 0 and 1"),
        (_set("distillation.augmentation.mix_probability", -0.1), r"mix_probability must be between 0 and 1"),
        (_set("distillation.dormant_units.every", -1), r"dormant_units\.every must be at least 0, got -1"),
        (
            _set("distillation.dormant_units", {**_DORMANT, "reset_active": 0.01}),
            r"dormant_units\.reset_active must be above least_active, 0\.01, got 0\.01",
        ),
        (
            _set("distillation.dormant_units", {**_DORMANT, "reset_scale": 0.0}),
            r"dormant_units\.reset_scale must be above 0",
        ),
        (_set("distillation.fresh_noise.fraction", 1.1), r"distillation\.fresh_noise\.fraction must be between 0"),
        (_set("distillation.fresh_noise.scale", 0.0), r"distillation\.fresh_noise\.scale must be above 0"),
        (
            _set("distillation.fresh_noise.leaf_size", [0.5, 0.1]),
            r"distillation\.fresh_noise\.leaf_size must be two numbers above 0, the smaller one first",
        ),
        (_set("distillation.adversary", {"steps": 1}), r"unknown key distillation\.adversary"),
        (_set("distillation", 3), "distillation must be DistillationRecipe, got 3"),
    ],
)
def test_a_wrong_key_is_named(change, message):
    values = copy.deepcopy(to_plain(load_recipe("demo")))
    change(values)
    with pytest.raises(InputError, match=f"^recipe: .*{message}"):
        from_plain(Recipe, values, "recipe")


@pytest.mark.parametrize(
    "moving", ["rotation_sigma", "scale_sigma", "shift_sigma", "flip_probability", "mix_probability", "fraction"]
)
def test_stored_logits_cannot_label_changed_inputs(moving):
    values = to_plain(load_recipe("demo"))
    distillation = values["distillation"]
    distillation["relabel"] = False
    for name in ("rotation_sigma", "scale_sigma", "shift_sigma", "flip_probability", "mix_probability"):
        distillation["augmentation"][name] = 0.0
    from_plain(Recipe, values, "recipe")  # noise alone is allowed
    distillation["fresh_noise" if moving == "fraction" else "augmentation"][moving] = 0.1
    with pytest.raises(InputError, match="relabel = false"):
        from_plain(Recipe, values, "recipe")


def test_a_warmup_of_one_step_is_refused():
    """torch would divide by zero."""
    values = to_plain(load_recipe("demo"))
    values["distillation"] |= {"steps": 10, "warmup_fraction": 0.1}
    with pytest.raises(InputError, match="warmup_fraction"):
        from_plain(Recipe, values, "recipe")
