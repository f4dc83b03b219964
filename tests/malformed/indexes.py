"""Shards and their index. The model does not matter, for no case gets that far."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from tests.malformed.site import (
    INDEX_FILE,
    SHARDS,
    SMALL_FILE,
    WHOLE_FILE,
    Site,
    Stored,
    add_case,
    rows_of,
    write_tensors,
)

_FIRST, _SECOND = SHARDS
_BAD = "MalformedCheckpoint"
_WHOLE_MAP = {"a": _FIRST, "b": _SECOND}
_WHOLE_INDEX = {"metadata": {"total_size": 16}, "weight_map": _WHOLE_MAP}


def _add_index_case(
    name: str, index: Any, *said: str, error: str = _BAD, prepare: Callable[[Site], object] = lambda _: None
) -> None:
    """Two shards with a tensor each, and an index, as it is or as JSON; ``prepare`` changes more files."""

    def build(site: Site) -> None:
        site.source.mkdir()
        for tensor, shard in _WHOLE_MAP.items():
            write_tensors(site.source / shard, {tensor: Stored("F32", [2], bytes(8))})
        site.write(f"source/{INDEX_FILE}", index if isinstance(index, bytes | str) else json.dumps(index))
        prepare(site)

    add_case(f"index-{name}", build, error, *said)


for _name, _index, *_said in rows_of("indexes"):
    _add_index_case(_name, _index, INDEX_FILE, *_said)
_add_index_case("not-utf-8", b'{"\xff": 1}', INDEX_FILE, "not UTF-8")
_add_index_case("nested-too-deep", "[" * 10**5, INDEX_FILE, "nested too deeply")


def _fill_second(*tensors: str) -> Callable[[Site], object]:
    contents = {tensor: Stored("U8", [1], b"x") for tensor in tensors}
    return lambda site: write_tensors(site.source / _SECOND, contents)


def _cut_second(site: Site) -> None:
    file = site.source / _SECOND
    os.truncate(file, file.stat().st_size - 1)


def _add_whole_file(site: Site) -> None:
    site.write(f"source/{SMALL_FILE}", WHOLE_FILE)


def _remove_second(site: Site) -> None:
    (site.source / _SECOND).unlink()


_UNLISTED = f"tensor c: {INDEX_FILE} does not list it for this file"
for _name, _error, _prepare, *_said in (
    (
        "tensor-it-does-not-name",
        _BAD,
        _fill_second("b", "c"),
        _SECOND,
        _UNLISTED,
    ),
    ("tensor-in-two-shards", _BAD, _fill_second("a", "b"), _SECOND, f"tensor a: is in {_FIRST} too"),
    ("shard-missing", "MissingInput", _remove_second, _SECOND, f"no such file, though {INDEX_FILE} names it"),
    ("shard-cut-short", _BAD, _cut_second, _SECOND, "is cut short"),
    ("and-a-single-file", _BAD, _add_whole_file, "source", f"contains both {SMALL_FILE} and {INDEX_FILE}"),
):
    _add_index_case(_name, _WHOLE_INDEX, *_said, error=_error, prepare=_prepare)
