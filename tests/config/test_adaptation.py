"""What a recipe does to images only is left out for inputs that are no images, and said."""

import pytest
from small_models import IMAGE

from zskd_fast.config.adaptation import adapt
from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.recipe_files import load_recipe, recipe_names

NO_IMAGES = [InputSpec((20,)), InputSpec((7, 30)), InputSpec((1, 4, 8, 8))]


@pytest.mark.parametrize("name", recipe_names())
def test_an_image_keeps_the_recipe(name):
    recipe = load_recipe(name)
    assert adapt(recipe.synthesis, IMAGE) == (recipe.synthesis, [])
    assert adapt(recipe.distillation, IMAGE) == (recipe.distillation, [])


@pytest.mark.parametrize("spec", NO_IMAGES, ids=str)
def test_the_recommended_recipe_fits_any_shape_after_named_changes(spec):
    recipe = load_recipe("fast")
    synthesis, notes = adapt(recipe.synthesis, spec)
    assert synthesis.start_noise.kind == "uniform" and synthesis.total_variation == 0
    assert notes == ["uniform start noise in place of dead leaves", "no total variation"]
    distillation, notes = adapt(recipe.distillation, spec)
    assert distillation.fresh_noise.kind == "uniform" and distillation.fresh_noise.fraction == 0.5
    assert not distillation.augmentation.is_geometric and distillation.augmentation.mix_probability == 0.5
    assert notes == ["uniform fresh noise in place of dead leaves", "no rotation, zoom, shift or flip"]


def test_nothing_is_said_where_nothing_changes():
    recipe = load_recipe("demo")
    assert adapt(adapt(recipe.synthesis, NO_IMAGES[0])[0], NO_IMAGES[0])[1] == []
    assert adapt(recipe.distillation, NO_IMAGES[0])[1] == ["no rotation, zoom, shift or flip"]
