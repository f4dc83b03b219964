"""Whether all nodes would compute the same, before any work begins."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from converter.cluster.cluster import Cluster
from converter.cluster.connection import opened_cluster
from converter.cluster.environment import describe_software
from converter.errors import ClusterError


def refuse_other_software(cluster: Cluster) -> None:
    """Refuse nodes with other versions than this process has.

    Raises:
        ClusterError: there is such a node, or lensconv is not installed there.
    """
    own = describe_software()
    for node, found in cluster.each(describe_software).items():
        different = [name for name in own if found.get(name) != own[name]]
        if different:
            name = different[0]
            raise ClusterError(
                f"node {node.name}: {name} is {found.get(name)}, and {own[name]} here",
                "Install the same versions on all nodes, or stop Ray on this one.",
            )


@contextmanager
def named_cluster(address: str | None) -> Iterator[Cluster | None]:
    """Connect to a cluster for the block, if one is named, and refuse nodes with other software.

    Args:
        address: as for ``opened_cluster``; None for no cluster.

    Raises: as ``opened_cluster`` and ``refuse_other_software``.
    """
    if address is None:
        yield None
        return
    with opened_cluster(address) as cluster:
        refuse_other_software(cluster)
        yield cluster
