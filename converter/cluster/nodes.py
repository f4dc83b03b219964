"""Whether all nodes would compute the same, before any work begins."""

from __future__ import annotations

from converter.cluster.cluster import Cluster
from converter.cluster.environment import describe_software, refuse_differences


def refuse_other_software(cluster: Cluster) -> None:
    """Refuse nodes with other versions than this process has, now and when they join the cluster later.

    Raises:
        ClusterError: there is such a node, or lensconv is not installed there.
    """
    cluster.software = describe_software()
    for node, found in cluster.each(describe_software).items():
        refuse_differences(node.name, found, cluster.software)
