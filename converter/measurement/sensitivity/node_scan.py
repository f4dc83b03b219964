"""The weight level on the nodes of a cluster: each measures some of the tensors, and the figures come back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from converter.checkpoint.source import Checkpoint
from converter.cluster.cluster import Cluster
from converter.cluster.hosted import Hosted
from converter.cluster.resources import Need
from converter.cluster.sharing import Crew, Work
from converter.console import SILENT, Reporter
from converter.conversion.options import ConvertOptions
from converter.measurement.benchmark.node_repos import NodeRepos
from converter.measurement.sensitivity.figures import Figures, StorageFigures
from converter.measurement.sensitivity.scan import scan
from converter.measurement.sensitivity.storage import Storage

#: Groups of tensors for each node, so that all end at about the same time.
_GROUPS = 8


class NodeScanner:
    """Measures tensors in a process of a node.

    Args:
        repos: the checkpoint's files alone.
        checkpoint: as the process of the command sees it, with absolute paths.
        options: how numbers are treated.

    Raises: as ``NodeRepos.here``.
    """

    def __init__(self, repos: NodeRepos, checkpoint: Checkpoint, options: ConvertOptions) -> None:
        repos.here()
        self._checkpoint = checkpoint
        self._options = options

    def scan(self, group: _Group) -> list[StorageFigures]:
        """The figures that were not known; as ``scan``."""
        found = list[StorageFigures]()
        scan(self._checkpoint, group.wanted, self._options, finished=group.finished, note=found.append)
        return found


@dataclass(frozen=True)
class _Group:
    """Some tensors, and what is wanted and known of them; arguments of ``scan``."""

    wanted: Mapping[str, Sequence[Storage]]
    finished: Figures
    bytes: int


def scan_on_nodes(
    cluster: Cluster,
    repos: NodeRepos,
    checkpoint: Checkpoint,
    wanted: Mapping[str, Sequence[Storage]],
    options: ConvertOptions,
    *,
    finished: Figures = MappingProxyType({}),
    note: Callable[[StorageFigures], object] = lambda _: None,
    reporter: Reporter = SILENT,
) -> dict[tuple[str, str], StorageFigures]:
    """Measure storages of the tensors of a checkpoint, with the figures of ``scan``; quantized ones are not kept.

    Args:
        cluster: where.
        repos: the checkpoint's files alone.
        checkpoint: the source.
        wanted: as for ``scan``.
        options: as for ``scan``, on each node.
        finished: as for ``scan``.
        note: as for ``scan``.
        reporter: shows progress.

    Raises: as ``scan`` and ``Crew.run``.
    """
    keys = [(source, storage.key) for source, storages in wanted.items() for storage in storages]
    found = {key: finished[key] for key in keys if key in finished}
    missing = {
        source: several for source, several in wanted.items() if any((source, one.key) not in found for one in several)
    }
    nodes = cluster.nodes
    groups = list(_groups(checkpoint, missing, found, _GROUPS * len(nodes)))
    arguments = repos, _portable(checkpoint), options
    crew = Crew[Hosted](
        cluster, Need(min(node.cpus for node in nodes)), len(nodes), NodeScanner, arguments, lambda hosted: hosted
    )
    with reporter.progress("measuring weights", sum(group.bytes for group in groups)) as shown:

        def measure(hosted: Hosted, group: _Group) -> None:
            for figures in hosted.call("scan", group):
                note(figures)
                found[figures.source, figures.key] = figures
            shown.advance(group.bytes)

        crew.run(Work({"": groups}), measure, shown)
    crew.close()
    return found


def _groups(
    checkpoint: Checkpoint, wanted: Mapping[str, Sequence[Storage]], found: Figures, count: int
) -> Iterator[_Group]:
    """The tensors in groups of about the same size, in the order of the source."""
    sizes = {source: tensor.entry.bytes for source, tensor in checkpoint.tensors.items() if source in wanted}
    most = sum(sizes.values()) / count
    group, taken = dict[str, Sequence[Storage]](), 0

    def make() -> _Group:
        known = {
            (source, one.key): found[source, one.key]
            for source, several in group.items()
            for one in several
            if (source, one.key) in found
        }
        return _Group(dict(group), known, taken)

    for source, size in sizes.items():
        group[source] = wanted[source]
        taken += size
        if taken >= most:
            yield make()
            group, taken = {}, 0
    if group:
        yield make()


def _portable(checkpoint: Checkpoint) -> Checkpoint:
    """What ``scan`` uses of a checkpoint, with absolute paths."""
    tensors: dict[str, Any] = {
        name: replace(tensor, file=tensor.file.absolute()) for name, tensor in checkpoint.tensors.items()
    }
    folder = checkpoint.folder.absolute()
    return replace(
        checkpoint, folder=folder, tensors=tensors, headers=(), pipeline=None, index=None, problems=(), stray_files=()
    )
