"""The machines of a cluster: which nodes are used, and whether they are of one kind."""

from __future__ import annotations

import re
from typing import Any

from converter.cluster.cluster import Cluster
from converter.console import Reporter
from converter.errors import ClusterError, DeviceError, UsageError
from converter.measurement.benchmark.machine_probe import probe_machine

#: What may differ between machines of one kind: firmware takes different amounts of memory for itself.
_NOT_COMPARED = "memory_gb"


def choose_nodes(cluster: Cluster, device: str) -> str:
    """Use the nodes that have a device.

    Args:
        cluster: whose nodes.
        device: as in ``GenerateOptions``.

    Returns:
        ``cuda`` or ``cpu``.

    Raises:
        UsageError: it is a single GPU, which only Ray can choose; or not the name of a device.
        DeviceError: no node has it.
    """
    if device not in ("auto", "cpu", "cuda"):
        what = "Ray chooses the GPU" if re.fullmatch(r"cuda:\d{1,3}", device) else "must be auto, cpu or cuda"
        raise UsageError(f"--device {device}: with --ray, {what}", "Use --device cuda.")
    has_gpus = any(node.gpus >= 1 for node in cluster.nodes)
    if device == "cuda" and not has_gpus:
        raise DeviceError("--device cuda: no node of the cluster has a GPU", "Use --device cpu, or add such nodes.")
    if has_gpus and device != "cpu":
        cluster.uses = lambda node: node.cpus > 0 and node.gpus >= 1
        return "cuda"
    return "cpu"


def agreed_machine(cluster: Cluster, device: str, reporter: Reporter) -> dict[str, Any]:
    """Describe the machine and the versions of all nodes that are used, which must be alike.

    Args:
        cluster: whose nodes.
        device: from ``choose_nodes``.
        reporter: shows progress.

    Returns:
        As ``probe_machine``.

    Raises:
        ClusterError: two nodes differ.
    """
    with reporter.progress("describing the nodes", 1, "clusters") as shown:
        found = cluster.each(_probe, device, gpus=1.0 if device == "cuda" else 0.0)
        shown.advance(1)
    (first, environment), *others = found.items()
    for node, other in others:
        if (node.cpus, node.gpus) != (first.cpus, first.gpus):
            # What takes a whole node would be alone on the smaller one only.
            raise ClusterError(
                f"node {node.name}: Ray has {node.cpus:g} CPUs and {node.gpus:g} GPUs there, and {first.cpus:g} and "
                f"{first.gpus:g} on node {first.name}",
                "Start Ray on all nodes with the same --num-cpus and --num-gpus.",
            )
        for name, value in environment.items():
            if name != _NOT_COMPARED and other.get(name) != value:
                raise ClusterError(
                    f"node {node.name}: {name} is {other.get(name)}, and {value} on node {first.name}; figures of both "
                    "would not belong together",
                    "Use nodes of one kind: stop Ray on the others.",
                )
    return dict(environment)


def _probe(device: str) -> dict[str, Any]:
    return probe_machine(device, lambda: None)
