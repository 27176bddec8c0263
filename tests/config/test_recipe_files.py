"""Recipes in TOML files, with and without a base."""

import pytest

from zskd_fast.config.recipe_files import changed, load_recipe
from zskd_fast.config.serialization import differences, to_plain
from zskd_fast.errors import InputError

MINE = """
base = "demo"
name = "mine"
description = "say \\"hi\\"\\n\\tback\\\\slash, Grüße"

[synthesis]
steps = 7
temperature = 10

[distillation.fresh_noise]
kind = "normal"
leaves = 0
leaf_size = [0, 0]
"""


def _write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def _differences(recipe, other):
    return differences(recipe, other, here="here", there="there")


def test_a_file_with_a_base_differs_in_its_own_values_only(tmp_path):
    mine = load_recipe(_write(tmp_path / "mine.toml", MINE))
    assert _differences(mine, load_recipe("demo")) == [
        f"description: {mine.description!r} here, {load_recipe('demo').description!r} there",
        "distillation.fresh_noise.kind: 'normal' here, 'dead_leaves' there",
        "distillation.fresh_noise.leaf_size: [0.0, 0.0] here, [0.06, 0.6] there",
        "distillation.fresh_noise.leaves: 0 here, 10 there",
        "name: 'mine' here, 'demo' there",
        "synthesis.steps: 7 here, 200 there",
        "synthesis.temperature: 10.0 here, 20.0 there",
    ]


def test_quotes_newlines_and_umlauts_are_read_as_utf_8(tmp_path):
    mine = load_recipe(_write(tmp_path / "mine.toml", MINE))
    assert mine.description == 'say "hi"\n\tback\\slash, Grüße'


def test_the_demo_inherits_from_the_recommended_recipe():
    demo, fast = load_recipe("demo"), load_recipe("fast")
    assert demo.distillation.augmentation == fast.distillation.augmentation
    assert (demo.synthesis.steps, fast.synthesis.steps) == (200, 60)


def test_a_base_may_have_a_base(tmp_path, monkeypatch):
    """The path of a base starts at the folder of the file that names it, whatever the current folder is."""
    (tmp_path / "recipes/common").mkdir(parents=True)
    _write(tmp_path / "recipes/common/mine.toml", MINE)
    _write(tmp_path / "recipes/yours.toml", 'base = "common/mine.toml"\nname = "yours"\n[synthesis]\nsteps = 8')
    _write(tmp_path / "last.toml", f'base = "{tmp_path}/recipes/yours.toml"\n[synthesis]\nimpressions = 9')
    monkeypatch.chdir(tmp_path.parent)
    last = load_recipe(tmp_path / "last.toml")
    assert (last.name, last.synthesis.impressions) == ("yours", 9)
    assert (last.synthesis.steps, last.synthesis.temperature) == (8, 10)
    assert last.distillation.fresh_noise.kind == "normal"
    assert last.distillation.augmentation == load_recipe("demo").distillation.augmentation


@pytest.mark.parametrize("base", ['"dmo"', "3"])
def test_an_unknown_base_lists_the_recipes(tmp_path, base):
    path = _write(tmp_path / "mine.toml", f"base = {base}")
    with pytest.raises(InputError, match=r"no recipe is named '(dmo|3)'; give a file \*\.toml or one of: demo, fast"):
        load_recipe(path)


def test_a_missing_base_file_is_named(tmp_path):
    path = _write(tmp_path / "mine.toml", 'base = "none.toml"')
    with pytest.raises(InputError, match=r"cannot read the recipe .*none\.toml"):
        load_recipe(path)


@pytest.mark.parametrize("files", [("a.toml",), ("a.toml", "b.toml"), ("a.toml", "./b.toml", "c/../c.toml")])
def test_a_cycle_of_bases_is_named(tmp_path, monkeypatch, files):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c").mkdir()
    for file, base in zip(files, [*files[1:], files[0]], strict=True):
        _write(tmp_path / file, f'base = "{base}"')
    with pytest.raises(InputError, match=r"it is its own base \(a\.toml -> .*a\.toml\)"):
        load_recipe("a.toml")


def test_an_unknown_name_lists_the_recipes():
    with pytest.raises(
        InputError, match=r"no recipe is named 'dmo'; give a file \*\.toml or one of: demo, fast, paper"
    ):
        load_recipe("dmo")


def test_a_missing_file_and_broken_toml_are_named(tmp_path):
    with pytest.raises(InputError, match=r"cannot read the recipe .*none\.toml"):
        load_recipe(tmp_path / "none.toml")
    with pytest.raises(InputError, match=r"broken\.toml is not valid TOML"):
        load_recipe(_write(tmp_path / "broken.toml", "steps = = 3"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[synthesis]\nshardsize = 3", r"unknown key synthesis\.shardsize"),
        ("[synthesis]\nsteps = -1", r"synthesis\.steps must be at least 0, got -1"),
        ("[distillation.fresh_noise]\nshift = inf", r"distillation\.fresh_noise\.shift must be a finite number"),
        ("synthesis = 3", "synthesis must be SynthesisRecipe, got 3"),
    ],
)
def test_an_error_in_a_file_names_the_file_and_the_key(tmp_path, text, message):
    path = _write(tmp_path / "mine.toml", f'base = "demo"\n{text}')
    with pytest.raises(InputError, match=rf"^recipe {path}: {message}"):
        load_recipe(path)


def test_a_file_without_a_base_must_name_every_number(tmp_path):
    with pytest.raises(InputError, match=r"mine\.toml: the key description is missing"):
        load_recipe(_write(tmp_path / "mine.toml", 'name = "mine"'))


def test_changed_sets_dotted_keys_only():
    demo = load_recipe("demo")
    before = to_plain(demo)
    other = changed(
        demo,
        {
            "synthesis.steps": 7,
            "synthesis.temperature": 10,
            "distillation.augmentation": {"clamp": False},
            "name": "other",
        },
    )
    assert isinstance(other.synthesis.temperature, float)
    assert _differences(other, demo) == [
        "distillation.augmentation.clamp: False here, True there",
        "name: 'other' here, 'demo' there",
        "synthesis.steps: 7 here, 200 there",
        "synthesis.temperature: 10.0 here, 20.0 there",
    ]
    assert to_plain(demo) == before
    assert changed(demo, {}) == demo


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("synthesis.stepz", r"unknown key synthesis\.stepz"),
        ("sinthesis.steps", "unknown key sinthesis"),
        ("name.steps", "name must be str"),
        ("synthesis.steps", r"synthesis\.steps must be at least 0, got -1"),
    ],
)
def test_changed_refuses_what_a_file_could_not_hold(key, message):
    with pytest.raises(InputError, match=message):
        changed(load_recipe("demo"), {key: -1})
