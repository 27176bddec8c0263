"""Dataclasses as nested dicts of JSON's types, and back."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import dacite

from zskd_fast.errors import InputError

_T = TypeVar("_T")
_ABSENT = object()


def to_plain(value: Any) -> dict[str, Any]:
    """Return a dataclass, with the dataclasses in it, as nested dicts that JSON gives back unchanged."""
    return dataclasses.asdict(value, dict_factory=lambda items: {k: _without_tuples(v) for k, v in items})


def from_plain(kind: type[_T], values: Mapping[str, Any], where: str) -> _T:
    """Return the dataclass that `to_plain` described.

    A whole number is accepted for a float, a list for a tuple. Raises InputError, beginning with `where`, if a key is
    unknown, missing or of the wrong type, or if a check of the dataclass fails.
    """
    _refuse_unknown_keys(kind, values, where, "")
    config = dacite.Config(strict=True, cast=[tuple], type_hooks={float: _whole_number_as_float})
    try:
        return dacite.from_dict(kind, values, config)
    except dacite.MissingValueError as error:
        raise InputError(f"{where}: the key {error.field_path} is missing") from error
    except dacite.WrongTypeError as error:
        wanted = getattr(error.field_type, "__name__", str(error.field_type))
        wanted = str(error.field_type) if "[" in str(error.field_type) else wanted
        raise InputError(f"{where}: {error.field_path} must be {wanted}, got {error.value!r}") from error
    except InputError as error:  # of a check of the dataclass
        raise InputError(f"{where}: {str(error).removeprefix('recipe: ')}") from error


def by_another_version(path: Path, place: str) -> str:
    """Return what `from_plain` says first of a file that this package wrote by `to_plain`; ``place`` is what to choose.

    Such a file was read whole, so a key that is missing or unknown does not mean damage: recipes get new fields. What
    the other version did in place of the field is not known, so no value of ours can stand for it.
    """
    return f"{path} was written by another version of zskd_fast; use that version, or choose another {place}"


def require_keys(values: Mapping[str, Any], keys: Iterable[str], where: str) -> None:
    """Raise InputError, beginning with `where`, unless these are the keys of a table that is no dataclass."""
    wanted = list(keys)
    for key in wanted:
        if key not in values:
            raise InputError(f"{where}: the key {key} is missing")
    for key in values:
        if key not in wanted:
            raise InputError(f"{where}: unknown key {key}")


def differences(ours: Any, theirs: Any, *, here: str, there: str) -> list[str]:
    """Return one line per field in which two dataclasses (or nested dicts) differ; none if they are equal.

    A line reads like ``recipe.steps: 200 in this run, 100 in the store``; `here` and `there` name the two.
    """
    left, right = dict(_flat(_as_dict(ours))), dict(_flat(_as_dict(theirs)))
    return [
        f"{key}: {_shown(left, key)} {here}, {_shown(right, key)} {there}"
        for key in sorted(left.keys() | right.keys())
        if left.get(key, _ABSENT) != right.get(key, _ABSENT)
    ]


def _without_tuples(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _refuse_unknown_keys(kind: Any, values: Mapping[str, Any], where: str, prefix: str) -> None:
    if not isinstance(values, Mapping):
        raise InputError(f"{where}: wanted a table of keys, got {values!r}")
    kinds = typing.get_type_hints(kind)
    unknown = sorted(set(values) - set(kinds))
    if unknown:
        place = f"in [{prefix.removesuffix('.')}]" if prefix else "at the top level"
        raise InputError(f"{where}: unknown key {prefix}{unknown[0]}; the keys {place} are: {', '.join(kinds)}")
    for name, value in values.items():
        table = _dataclass_of(kinds[name])
        if table is not None and isinstance(value, Mapping):
            _refuse_unknown_keys(table, value, where, f"{prefix}{name}.")


def _dataclass_of(kind: Any) -> Any:
    """Return the dataclass that a field of this kind holds, if only sometimes; None if it holds none."""
    is_union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    kinds = typing.get_args(kind) if is_union else (kind,)
    return next(filter(dataclasses.is_dataclass, kinds), None)


def _whole_number_as_float(value: object) -> object:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _as_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else to_plain(value)


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shown(flat: dict[str, Any], key: str) -> str:
    return repr(flat[key]) if key in flat else "nothing"
