"""Documents and their schemas: a document fits, and its schema refuses what may go wrong in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema

from converter.schemas import load_schema

#: Objects whose keys are not fields.
_MAPS = ("bytes_by_dtype", "components", "headers", "nonfinite", "stages", "times_s", "versions")


def _wrong(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """A value with a part that is missing, of no possible kind, below 0 or too much. One of several alike is enough."""
    yield path, [[]]
    if isinstance(value, dict):
        yield f"{path} more", {**value, "more": [[]]}
        known: list[object] = []
        for key, item in value.items():
            if path.rpartition(".")[2] not in _MAPS:
                yield f"{path}.{key} less", {name: other for name, other in value.items() if name != key}
            if not isinstance(item, dict) or item.keys() not in known:
                known += [item.keys()] if isinstance(item, dict) else []
                yield from ((label, {**value, key: changed}) for label, changed in _wrong(item, f"{path}.{key}"))
    elif isinstance(value, list) and value:
        yield from ((label, [changed, *value[1:4]]) for label, changed in _wrong(value[0], f"{path}[]"))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield f"{path} below", -1
    elif isinstance(value, str) and len(value) in (40, 64):
        yield f"{path} short", value[1:]


def accepted(document: Any, name: str) -> list[str]:
    """What a schema accepts of what may go wrong in a document that fits it."""
    validator = jsonschema.Draft202012Validator(load_schema(name))
    validator.validate(document)
    return [label for label, wrong in _wrong(document) if validator.is_valid(wrong)]
