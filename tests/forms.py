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
    yield path, {} if isinstance(value, list) else [[]]
    if isinstance(value, dict):
        yield f"{path} more", {**value, "more": [[]]}
        if path.rpartition(".")[2] not in _MAPS:
            yield from ((f"{path}.{key} less", {k: v for k, v in value.items() if k != key}) for key in value)
        kinds = {frozenset(item) if isinstance(item, dict) else key: key for key, item in reversed(value.items())}
        for key in kinds.values():
            yield from ((label, {**value, key: wrong}) for label, wrong in _wrong(value[key], f"{path}.{key}"))
    elif isinstance(value, list) and value:
        yield from ((label, [wrong, *value[1:4]]) for label, wrong in _wrong(value[0], f"{path}[]"))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield f"{path} below", -1
    elif isinstance(value, str) and len(value) in (40, 64):
        yield f"{path} short", value[1:]


def accepted(document: Any, name: str) -> list[str]:
    """What a schema accepts of what may go wrong in a document that fits it."""
    validator = jsonschema.Draft202012Validator(load_schema(name))
    validator.validate(document)
    return sorted(label for label, wrong in _wrong(document) if validator.is_valid(wrong))
