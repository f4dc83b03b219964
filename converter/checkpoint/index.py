"""Whether an index of shards and the shards agree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from converter.checkpoint.header import Header
from converter.errors import MalformedCheckpoint


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
