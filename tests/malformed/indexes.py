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


def _add_index_case(
    name: str,
    error: str,
    *message: str,
    weight_map: Any = (("a", SHARDS[0]), ("b", SHARDS[1])),
    content: bytes | None = None,
    prepare: Callable[[Site], object] = lambda _: None,
) -> None:
    """Two shards with a tensor each, and what an index says of them.

    Args:
        weight_map: pairs of tensor and shard, or what the index holds instead.
        content: the whole index, in place of the map.
        prepare: changes the files further.
    """

    def build(site: Site) -> None:
        site.source.mkdir()
        for tensor, shard in zip("ab", SHARDS, strict=True):
            write_tensors(site.source / shard, {tensor: Stored("F32", [2], bytes(8))})
        mapped = dict(weight_map) if isinstance(weight_map, tuple) else weight_map
        index = json.dumps({"metadata": {"total_size": 16}, "weight_map": mapped}).encode()
        site.write(f"source/{INDEX_FILE}", index if content is None else content)
        prepare(site)

    add_case(f"index-{name}", build, error, *message)


def _add_shard_name_case(name: str, shard: Any, *message: str) -> None:
    weight_map = (("a", SHARDS[0]), ("b", shard))
    _add_index_case(f"shard-{name}", "MalformedCheckpoint", INDEX_FILE, "tensor b", *message, weight_map=weight_map)


_add_shard_name_case("in-the-parent-folder", "../secret.safetensors", "leads out of the folder")
_add_shard_name_case("in-a-subfolder", "sub/model.safetensors", "leads out of the folder")
_add_shard_name_case("absolute", "/etc/secret.safetensors", "leads out of the folder")
_add_shard_name_case("with-a-backslash", "..\\secret.safetensors", "leads out of the folder")
_add_shard_name_case("with-a-nul", "model\0.safetensors", "model\\x00.safetensors")
_add_shard_name_case("of-another-type", "model.bin", "not a safetensors file")
_add_shard_name_case("empty", "", "not a safetensors file")
_add_shard_name_case("a-number", 7, "not a safetensors file")
_add_shard_name_case("a-list", [SHARDS[1]], "not a safetensors file")
_add_shard_name_case("hostile", HOSTILE_TEXT, "evil\\r\\n\\x1b[2J")
_add_index_case("empty-file", "MalformedCheckpoint", INDEX_FILE, "not JSON", content=b"")
_add_index_case("not-json", "MalformedCheckpoint", INDEX_FILE, "not JSON", content=b"{'a': 1}")
_add_index_case("not-utf-8", "MalformedCheckpoint", INDEX_FILE, "not UTF-8", content=b'{"\xff": 1}')
_add_index_case("array", "MalformedCheckpoint", INDEX_FILE, "JSON list, not an object", content=b"[]")
_add_index_case("nested-too-deep", "MalformedCheckpoint", INDEX_FILE, "nested too deeply", content=b"[" * 10**5)
_add_index_case("without-a-map", "MalformedCheckpoint", INDEX_FILE, "has no weight_map", content=b"{}")
_add_index_case("map-empty", "MalformedCheckpoint", INDEX_FILE, "has no weight_map", weight_map={})
_add_index_case("map-a-list", "MalformedCheckpoint", INDEX_FILE, "has no weight_map", weight_map=["a", "b"])
_add_index_case("map-a-string", "MalformedCheckpoint", INDEX_FILE, "has no weight_map", weight_map="a")
_add_index_case(
    "repeated-tensor",
    "MalformedCheckpoint",
    INDEX_FILE,
    "names a twice",
    content=b'{"weight_map":{"a":"x.safetensors","a":"y.safetensors"}}',
)
_add_index_case(
    "tensor-missing-in-its-shard",
    "MalformedCheckpoint",
    INDEX_FILE,
    f"tensor c: should be in {SHARDS[1]}, which does not contain it",
    weight_map=(("a", SHARDS[0]), ("b", SHARDS[1]), ("c", SHARDS[1])),
)
_add_index_case(
    "tensors-in-each-others-shards",
    "MalformedCheckpoint",
    INDEX_FILE,
    f"tensor a: should be in {SHARDS[1]}, which does not contain it",
    weight_map=(("a", SHARDS[1]), ("b", SHARDS[0])),
)
_add_index_case(
    "tensor-it-does-not-name",
    "MalformedCheckpoint",
    SHARDS[1],
    f"tensor c: {INDEX_FILE} does not list it for this file",
    prepare=lambda site: write_tensors(
        site.source / SHARDS[1], {"b": Stored("U8", [1], b"x"), "c": Stored("U8", [1], b"x")}
    ),
)
_add_index_case(
    "tensor-in-two-shards",
    "MalformedCheckpoint",
    SHARDS[1],
    f"tensor a: is in {SHARDS[0]} too",
    prepare=lambda site: write_tensors(
        site.source / SHARDS[1], {"a": Stored("U8", [1], b"x"), "b": Stored("U8", [1], b"x")}
    ),
)
_add_index_case(
    "shard-missing",
    "MissingInput",
    SHARDS[1],
    f"no such file, though {INDEX_FILE} names it",
    prepare=lambda site: (site.source / SHARDS[1]).unlink(),
)
_add_index_case(
    "shard-cut-short",
    "MalformedCheckpoint",
    SHARDS[1],
    "is cut short",
    prepare=lambda site: os.truncate(site.source / SHARDS[1], (site.source / SHARDS[1]).stat().st_size - 1),
)
_add_index_case(
    "and-a-single-file",
    "MalformedCheckpoint",
    "source",
    f"contains both {SMALL_FILE} and {INDEX_FILE}",
    prepare=lambda site: site.write(f"source/{SMALL_FILE}", WHOLE_FILE),
)
