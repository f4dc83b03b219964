"""Whether all nodes would compute the same, before any work begins."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from converter.cluster.cluster import Cluster
from converter.cluster.connection import opened_cluster
from converter.cluster.environment import describe_software, refuse_differences
from converter.console import SILENT, Reporter


def refuse_other_software(cluster: Cluster) -> None:
    """Refuse nodes with other versions than this process has, now and when they join the cluster later.

    Raises:
        ClusterError: there is such a node, or lensconv is not installed there.
    """
    cluster.software = describe_software()
    for node, found in cluster.each(describe_software).items():
        refuse_differences(node.name, found, cluster.software)


@contextmanager
def named_cluster(address: str | None, reporter: Reporter = SILENT) -> Iterator[Cluster | None]:
    """Connect to a cluster for the block, if one is named, and refuse nodes with other software.

    Args:
        address: as for ``opened_cluster``; None for no cluster.
        reporter: as for ``opened_cluster``.

    Raises: as ``opened_cluster`` and ``refuse_other_software``.
    """
    if address is None:
        yield None
        return
    with opened_cluster(address, reporter) as cluster:
        refuse_other_software(cluster)
        yield cluster
