import copy

import pytest

from zskd_fast.config.recipe import (
    load_recipe,
    recipe_from_dict,
    recipe_names,
    recipe_to_dict,
    recipe_to_toml,
)
from zskd_fast.errors import InputError


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_loads_under_its_own_name(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description


def test_the_demo_has_the_numbers_that_were_measured_to_work():
    recipe = load_recipe("demo-mnist")
    synthesis = recipe.synthesis
    assert (synthesis.impressions, synthesis.steps, synthesis.temperature) == (2000, 200, 20)
    assert (recipe.distillation.steps, recipe.distillation.batch_size) == (5000, 128)
    assert recipe.distillation.temperature == 4
    assert recipe.distillation.relabel


def test_the_paper_recipe_keeps_the_papers_choices():
    synthesis = load_recipe("paper-mnist").synthesis
    assert (synthesis.impressions, synthesis.steps, synthesis.batch_size) == (24000, 1500, 100)
    assert (synthesis.betas, synthesis.temperature) == ((1.0, 0.1), 20)
    assert (synthesis.start.noise, synthesis.start.scale, synthesis.clamp) == ("normal", 1.0, False)


@pytest.mark.parametrize("name", recipe_names())
def test_toml_round_trip_keeps_every_number(name, tmp_path):
    recipe = load_recipe(name)
    path = tmp_path / "copy.toml"
    path.write_text(recipe_to_toml(recipe))
    assert load_recipe(path) == recipe


def test_text_with_quotes_and_newlines_survives_the_round_trip(tmp_path):
    values = recipe_to_dict(load_recipe("demo-mnist"))
    values["description"] = 'say "hi"\n\tback\\slash, Grüße'
    path = tmp_path / "copy.toml"
    path.write_text(recipe_to_toml(recipe_from_dict(values)), encoding="utf-8")
    assert load_recipe(path).description == values["description"]


def test_whole_numbers_are_taken_for_real_ones():
    values = recipe_to_dict(load_recipe("demo-mnist"))
    values["synthesis"]["temperature"] = 20
    values["synthesis"]["betas"] = [1]
    recipe = recipe_from_dict(values)
    assert isinstance(recipe.synthesis.temperature, float)
    assert isinstance(recipe.synthesis.betas[0], float)


def _set(path, value):
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
        (_set("synthesis.stepz", 3), r"unknown key synthesis\.stepz; .*steps"),
        (_set("distillation.augmentation.tilt", 1), r"unknown key distillation\.augmentation\.tilt"),
        (_set("seed", 1), "unknown key seed; the keys at the top level are: name"),
        (_set("synthesis.steps", None), r"synthesis\.steps is missing"),
        (_set("synthesis.steps", "3"), r"synthesis\.steps must be int, got '3'"),
        (_set("synthesis.steps", 2.5), r"synthesis\.steps must be int, got 2\.5"),
        (_set("synthesis.steps", -1), r"synthesis\.steps must be at least 0, got -1"),
        (
            _set("synthesis.targets", "soft"),
            r"synthesis\.targets.*got 'soft'",
        ),
        (_set("synthesis.total_variation", -1.0), r"synthesis\.total_variation must be at least 0"),
        (_set("synthesis.steps", True), r"synthesis\.steps must be a finite number, got True"),
        (_set("synthesis.temperature", float("nan")), r"synthesis\.temperature must be a finite number"),
        (_set("synthesis.temperature", 0.0), r"synthesis\.temperature must be above 0"),
        (_set("synthesis.concentration_floor", 0.0), r"synthesis\.concentration_floor must be above 0"),
        (_set("synthesis.betas", []), r"synthesis\.betas must be one or more"),
        (_set("synthesis.betas", [1.0, 0.0]), r"synthesis\.betas must be one or more"),
        (_set("synthesis.adam_betas", [0.9, 1.0]), r"synthesis\.adam_betas"),
        (_set("synthesis.start.noise", "pink"), r"synthesis\.start\.noise.*got 'pink'"),
        (_set("synthesis.start.noise", "dead_leaves"), r"start\.leaves must be at least 1, got 0"),
        (_set("synthesis.start.leaves", 3), r"start\.leaves must be 0 where the noise is uniform"),
        (_set("synthesis.start.leaf_size", [0.5, 0.1]), r"leaf_size must be 0, 0 where the noise is uniform"),
        (_set("synthesis.store_dtype", "float64"), r"synthesis\.store_dtype.*got 'float64'"),
        (_set("distillation.warmup_fraction", 1.5), r"distillation\.warmup_fraction must be between 0 and 1"),
        (_set("distillation.augmentation.mix_probability", -0.1), r"mix_probability must be between 0 and 1"),
        (_set("distillation.adversary.steps", 1), r"adversary\.step_size must be above 0, got 0"),
        (_set("distillation.adversary.wait_fraction", 2.0), r"wait_fraction must be between 0 and 1"),
        (_set("distillation.recycling.every", -1), r"recycling\.every must be at least 0, got -1"),
        (
            _set("distillation.recycling.every", 9),
            r"recycling\.woken_active must be above least_active, 0\.0, got 0",
        ),
        (_set("distillation.fresh.fraction", 1.1), r"distillation\.fresh\.fraction must be between 0 and 1"),
        (_set("distillation", 3), "distillation must be DistillationRecipe, got 3"),
        (_set("input.shape", [1, 0]), "input shape must be"),
    ],
)
def test_names_the_key_that_is_wrong(change, message):
    values = copy.deepcopy(recipe_to_dict(load_recipe("demo-mnist")))
    change(values)
    with pytest.raises(InputError, match=message):
        recipe_from_dict(values)


@pytest.mark.parametrize(
    "moving", ["rotation_sigma", "scale_sigma", "shift_sigma", "flip_probability", "mix_probability"]
)
def test_stored_logits_cannot_label_images_that_move(moving):
    values = recipe_to_dict(load_recipe("demo-mnist"))
    values["distillation"]["relabel"] = False
    for name in ("rotation_sigma", "scale_sigma", "shift_sigma", "flip_probability", "mix_probability"):
        values["distillation"]["augmentation"][name] = 0.0
    recipe_from_dict(values)  # noise alone may stay
    values["distillation"]["augmentation"][moving] = 0.1
    with pytest.raises(InputError, match="relabel = false"):
        recipe_from_dict(values)


def test_a_warm_up_of_one_step_is_refused_before_torch_divides_by_zero():
    values = recipe_to_dict(load_recipe("demo-mnist"))
    values["distillation"] |= {"steps": 10, "warmup_fraction": 0.1}
    with pytest.raises(InputError, match="warmup_fraction"):
        recipe_from_dict(values)


def test_an_unknown_name_lists_the_recipes():
    with pytest.raises(InputError, match=r"no recipe is named 'dmo'.*demo-mnist"):
        load_recipe("dmo")


def test_a_missing_file_and_broken_toml_are_named(tmp_path):
    with pytest.raises(InputError, match=r"cannot read the recipe .*none\.toml"):
        load_recipe(tmp_path / "none.toml")
    path = tmp_path / "broken.toml"
    path.write_text("steps = = 3")
    with pytest.raises(InputError, match=r"broken\.toml is not valid TOML"):
        load_recipe(path)


def test_an_error_in_a_file_names_the_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(recipe_to_toml(load_recipe("demo-mnist")).replace("shard_size", "shardsize"))
    with pytest.raises(InputError, match=r"mine\.toml: unknown key synthesis\.shardsize"):
        load_recipe(path)
