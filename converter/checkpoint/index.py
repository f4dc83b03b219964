"""The index of shards: which shard has a tensor, and whether the shards agree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from converter.checkpoint.files import is_plain_name, read_json
from converter.checkpoint.header import Header
from converter.checkpoint.weights import WEIGHTS_SUFFIX
from converter.errors import MalformedCheckpoint


def read_weight_map(index: Path, suffix: str = WEIGHTS_SUFFIX) -> dict[str, str]:
    """The weight files of the tensors that an index lists, by name of the tensor.

    Args:
        index: the file.
        suffix: that all weight files must have.

    Raises:
        MissingInput: it cannot be read.
        MalformedCheckpoint: it breaks its format, or a name leads out of the folder.
    """
    return parse_weight_map(read_json(index), index, suffix)


def parse_weight_map(content: Mapping[str, Any], index: Path, suffix: str = WEIGHTS_SUFFIX) -> dict[str, str]:
    """The same, from the content of the file.

    Raises:
        MalformedCheckpoint: it breaks its format, or a name leads out of the folder.
    """
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise MalformedCheckpoint(index, "has no weight_map")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not name.endswith(suffix):
            raise MalformedCheckpoint(index, f"maps to {name}, which is not a {suffix[1:]} file", tensor=tensor)
        if not is_plain_name(name):
            raise MalformedCheckpoint(index, f"maps to {name}, not to a file in the same folder", tensor=tensor)
    return weight_map


def compare_index(index: Path, weight_map: Mapping[str, str], headers: Iterable[Header]) -> list[MalformedCheckpoint]:
    """Compare an index and its shards in both directions.

    Args:
        index: the file, for messages.
        weight_map: its shards by tensor.
        headers: of all its shards.
    """
    problems = []
    shards = {header.file.name: header for header in headers}
    for tensor, name in weight_map.items():
        if tensor not in shards[name].tensors:
            problems.append(
                MalformedCheckpoint(index, f"should be in {name}, which does not contain it", tensor=tensor)
            )
    for name, header in shards.items():
        for tensor in header.tensors:
            if weight_map.get(tensor) != name:
                problems.append(
                    MalformedCheckpoint(header.file, f"{index.name} does not list it for this file", tensor=tensor)
                )
    return problems
