"""Clusters of Ray with several real nodes on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

#: Ray writes no token into the home folder, and sends nothing to its makers. Several nodes share the processors of this
#: machine, so each has one thread.
VARIABLES = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}


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
    with mock.patch.dict(os.environ, VARIABLES):
        cluster = Cluster(initialize_head=True, head_node_args=shared)
        try:
            for _ in range(count - 1):
                cluster.add_node(**shared)
            cluster.wait_for_nodes()
            yield cluster
        finally:
            cluster.shutdown()
