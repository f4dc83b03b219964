"""Shards and their index. The model does not matter, for no case gets that far."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from tests.malformed.site import (
    HOSTILE_TEXT,
    INDEX_FILE,
    SHARDS,
    SMALL_FILE,
    WHOLE_FILE,
    Site,
    Stored,
    add_case,
    write_tensors,
)

_FIRST, _SECOND = SHARDS
_BAD = "MalformedCheckpoint"
_WHOLE_MAP = {"a": _FIRST, "b": _SECOND}


def _add_index_case(
    name: str,
    error: str,
    *message: str,
    weight_map: Any = _WHOLE_MAP,
    content: bytes | None = None,
    prepare: Callable[[Site], object] = lambda _: None,
) -> None:
    """Two shards with a tensor each, and the map of an index, or the whole of it; ``prepare`` changes more files."""

    def build(site: Site) -> None:
        site.source.mkdir()
        for tensor, shard in _WHOLE_MAP.items():
            write_tensors(site.source / shard, {tensor: Stored("F32", [2], bytes(8))})
        index = json.dumps({"metadata": {"total_size": 16}, "weight_map": weight_map}).encode()
        site.write(f"source/{INDEX_FILE}", index if content is None else content)
        prepare(site)

    add_case(f"index-{name}", build, error, *message)


_OUTSIDE, _NOT_WEIGHTS = "not to a file in the same folder", "not a safetensors file"
for _shard, _said in (
    *((f"{place}secret.safetensors", _OUTSIDE) for place in ("../", "sub/", "/etc/", "..\\")),
    *((name, _NOT_WEIGHTS) for name in ("model.bin", "", 7, [_SECOND])),
    *(("model\0.safetensors", "model\\x00.safetensors"), (HOSTILE_TEXT, "evil\\r\\n\\x1b[2J")),
):
    _weight_map = {"a": _FIRST, "b": _shard}
    _add_index_case(f"shard-{_shard!r}", _BAD, INDEX_FILE, "tensor b", _said, weight_map=_weight_map)
for _name, _content, _said in (
    *(("empty-file", b"", "not JSON"), ("not-json", b"{'a': 1}", "not JSON")),
    *(("not-utf-8", b'{"\xff": 1}', "not UTF-8"), ("array", b"[]", "JSON list, not an object")),
    *(("nested-too-deep", b"[" * 10**5, "nested too deeply"), ("without-a-map", b"{}", "has no weight_map")),
    ("repeated-tensor", b'{"weight_map":{"a":"x.safetensors","a":"y.safetensors"}}', "names a twice"),
):
    _add_index_case(_name, _BAD, INDEX_FILE, _said, content=_content)
_UNLISTED = f"{INDEX_FILE} does not list it for this file"
_ELSEWHERE = f"should be in {_SECOND}, which does not contain it"
for _name, _map, _said in (
    ("map-empty", {}, "has no weight_map"),
    ("map-a-list", ["a", "b"], "has no weight_map"),
    ("map-a-string", "a", "has no weight_map"),
    ("tensor-missing-in-its-shard", {**_WHOLE_MAP, "c": _SECOND}, f"tensor c: {_ELSEWHERE}"),
    ("tensors-in-each-others-shards", {"a": _SECOND, "b": _FIRST}, f"tensor a: {_ELSEWHERE}"),
):
    _add_index_case(_name, _BAD, INDEX_FILE, _said, weight_map=_map)


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


for _name, _error, _prepare, *_message in (
    ("tensor-it-does-not-name", _BAD, _fill_second("b", "c"), _SECOND, f"tensor c: {_UNLISTED}"),
    ("tensor-in-two-shards", _BAD, _fill_second("a", "b"), _SECOND, f"tensor a: is in {_FIRST} too"),
    ("shard-missing", "MissingInput", _remove_second, _SECOND, f"no such file, though {INDEX_FILE} names it"),
    ("shard-cut-short", _BAD, _cut_second, _SECOND, "is cut short"),
    ("and-a-single-file", _BAD, _add_whole_file, "source", f"contains both {SMALL_FILE} and {INDEX_FILE}"),
):
    _add_index_case(_name, _error, *_message, prepare=_prepare)
