"""Records of the package, rewritten as this version of it would not write them."""

import copy
import json
from typing import Any

from zskd_fast.runtime.files import sha256


def older(values: dict[str, Any], key: str) -> dict[str, Any]:
    """Return a copy without a key, such as ``identity.recipe.steps``, as before that was added."""
    changed = copy.deepcopy(values)
    table, name = _table_and_name(changed, key)
    del table[name]
    return changed


def newer(values: dict[str, Any], key: str) -> dict[str, Any]:
    """Return a copy with a key that this version does not know."""
    changed = copy.deepcopy(values)
    table, name = _table_and_name(changed, key)
    assert name not in table
    table[name] = 1
    return changed


def with_hash(manifest: dict[str, Any]) -> bytes:
    """Return the file of a manifest with these values, whose own hash is right."""
    values = {key: value for key, value in manifest.items() if key != "sha256"}
    return json.dumps({**values, "sha256": sha256(json.dumps(values, sort_keys=True).encode())}).encode()


def _table_and_name(values: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    *path, name = key.split(".")
    for part in path:
        values = values[part]
    return values, name
