"""The nodes of a cluster, and what processes need of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from converter.errors import printable


@dataclass(frozen=True)
class Node:
    """A node of the cluster."""

    id: str
    name: str
    """Its address, and the beginning of Ray's name for it, as several can be on one machine."""
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Need:
    """What a process on a node needs."""

    cpus: float = 1.0
    gpus: float = 0.0


def node_of(entry: Mapping[str, Any]) -> Node:
    """The node that an entry of ``ray.nodes()`` is about."""
    resources: Mapping[str, float] = entry["Resources"]
    name = f"{printable(entry['NodeName'])} ({entry['NodeID'][:8]})"
    return Node(entry["NodeID"], name, resources.get("CPU", 0.0), resources.get("GPU", 0.0))


def in_words(nodes: Sequence[Node]) -> str:
    """How many nodes and GPUs there are."""
    gpus = sum(node.gpus for node in nodes)
    count = f"{len(nodes)} node{'s' if len(nodes) != 1 else ''}"
    return f"{count}, {gpus:g} GPU{'s' if gpus != 1 else ''}" if gpus else count
