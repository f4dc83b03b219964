"""Clusters of Ray with several real nodes on this machine, and comparing what was computed there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

#: Ray writes no token into the home folder, and sends nothing to its makers. Several nodes share the processors of this
#: machine, so each has one thread.
VARIABLES = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
#: Parts of names of figures that differ between any two runs.
_VARYING = (
    *("time_s", "times_s", "_gb", "stages", "conditions", "timed_pairs", "slowdown", "comparison_matrix.json.summary"),
    *("date", "elapsed", "rss", "per_s", ".pairs"),
)


@contextmanager
def nodes(count: int, *, cpus: int = 1, **options: Any) -> Iterator[Any]:
    """Start nodes for the block; ``address`` of what it yields is for ``--ray``, ``remove_node`` kills one.

    Args:
        count: how many nodes.
        cpus: of each.
        options: of ``Cluster.add_node``, such as ``num_gpus``, for all.
    """
    from ray.cluster_utils import Cluster

    shared = {"num_cpus": cpus, "include_dashboard": False, **options}
    with (
        mock.patch.dict(os.environ, VARIABLES),
        # Paths of sockets must be short.
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder,
    ):
        cluster = Cluster(initialize_head=True, head_node_args={**shared, "temp_dir": folder})
        try:
            for _ in range(count - 1):
                cluster.add_node(**shared)
            cluster.wait_for_nodes()
            yield cluster
        finally:
            cluster.shutdown()


def processes_with(mark: str) -> list[str]:
    """The command lines of processes that inherited a mark."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def differences(first: Any, second: Any, where: str = "") -> Iterator[str]:
    """Yield the figures that differ, times and memory apart."""
    if any(part in where for part in _VARYING):
        return
    if isinstance(first, dict) and isinstance(second, dict):
        for key in {**first, **second}:
            yield from differences(first.get(key), second.get(key), f"{where}.{key}")
    elif isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        for number, pair in enumerate(zip(first, second, strict=True)):
            yield from differences(*pair, f"{where}.{number}")
    elif first != second:
        yield f"{where}: {first} and {second}"
