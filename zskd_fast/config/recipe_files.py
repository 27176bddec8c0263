"""Recipes as TOML files: those that come with the package, and the user's own."""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from zskd_fast.config.recipe import Recipe
from zskd_fast.config.serialization import from_plain, to_plain
from zskd_fast.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


_FOLDER = resources.files("zskd_fast") / "recipes"


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the package, sorted."""
    return sorted(Path(entry.name).stem for entry in _FOLDER.iterdir() if entry.name.endswith(".toml"))


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Read a recipe: one that comes with the package, by name, or a TOML file, by path (``*.toml``).

    A file with a key ``base`` names another recipe (a name, or a path from the folder of the file) and holds only what
    differs from it. Raises InputError that names the file, and the key where one is at fault, if the file is missing or
    no TOML, or if a key is unknown, missing, of the wrong type or out of its range.
    """
    values = _read(str(name_or_path), seen=())
    try:
        return from_plain(Recipe, values, "recipe")
    except InputError as error:
        raise InputError(f"recipe {name_or_path}: {str(error).removeprefix('recipe: ')}") from error


def changed(recipe: Recipe, changes: Mapping[str, object]) -> Recipe:
    """Return the recipe with other values at some dotted keys, such as ``{"synthesis.steps": 120}``.

    Raises InputError as `load_recipe` does if a key or its value cannot be used.
    """
    values = to_plain(recipe)
    for path, value in changes.items():
        *tables, key = path.split(".")
        change: dict[str, Any] = {key: value}
        for table in reversed(tables):
            change = {table: change}
        values = _merged(values, change)
    return from_plain(Recipe, values, "recipe")


def recipe_to_toml(recipe: Recipe) -> str:
    """Return the recipe as a complete TOML file, which ``load_recipe`` reads as an equal recipe."""
    return "\n".join(_toml_lines(to_plain(recipe), ())) + "\n"


def _toml_lines(values: dict[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    if path:
        yield f"\n[{'.'.join(path)}]"
    for key, value in values.items():
        if not isinstance(value, dict):
            # Numbers, booleans, strings and lists of them are written alike in JSON and in TOML.
            yield f"{key} = {json.dumps(value, ensure_ascii=False)}"
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _toml_lines(value, (*path, key))


def _read(name_or_path: str, seen: tuple[str, ...]) -> dict[str, Any]:
    if name_or_path in seen:
        raise InputError(f"recipe {name_or_path}: it is its own base ({' -> '.join([*seen, name_or_path])})")
    try:
        values = tomllib.loads(_read_text(name_or_path))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"recipe {name_or_path} is not valid TOML: {error}") from error
    base = values.pop("base", None)
    return values if base is None else _merged(_read(_from(name_or_path, str(base)), (*seen, name_or_path)), values)


def _from(file: str, base: str) -> str:
    return os.path.normpath(Path(file).parent / base) if base.endswith(".toml") else base


def _read_text(name_or_path: str) -> str:
    if not name_or_path.endswith(".toml"):
        if name_or_path not in recipe_names():
            known = ", ".join(recipe_names())
            raise InputError(f"no recipe is named {name_or_path!r}; give a file *.toml or one of: {known}")
        return (_FOLDER / f"{name_or_path}.toml").read_text("utf-8")
    try:
        return Path(name_or_path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the recipe {name_or_path}: {error}") from error


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        inner = merged.get(key)
        merged[key] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged
