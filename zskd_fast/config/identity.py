"""Fingerprints: what a run depends on, as nested dicts, and how two of them differ."""

import dataclasses
from typing import Any

_ABSENT = object()


def as_json(recipe: Any) -> dict[str, Any]:
    """A dataclass, with those inside it, as nested dicts that JSON gives back unchanged: lists for tuples."""
    return dataclasses.asdict(recipe, dict_factory=lambda items: {k: _plain(v) for k, v in items})


def differences(ours: dict[str, Any], theirs: dict[str, Any], *, here: str, there: str) -> list[str]:
    """One line per key that differs, such as ``recipe.steps: 200 here, 100 there``; none if equal."""
    left, right = dict(_flat(ours)), dict(_flat(theirs))
    return [
        f"{key}: {_show(left, key)} {here}, {_show(right, key)} {there}"
        for key in sorted(left.keys() | right.keys())
        if left.get(key, _ABSENT) != right.get(key, _ABSENT)
    ]


def _plain(value):
    return list(value) if isinstance(value, tuple) else value


def _flat(values, prefix=""):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _show(flat, key):
    return repr(flat[key]) if key in flat else "nothing"
