"""Pipeline repos on the nodes of a cluster: at the same path, with the same files, or downloaded there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from converter.checkpoint.checksum import file_sha256
from converter.checkpoint.source import PIPELINE_INDEX
from converter.cluster.cluster import Cluster
from converter.cluster.hosts import node_id
from converter.errors import MalformedCheckpoint, MissingInput
from converter.measurement.benchmark.changes import file_states
from converter.measurement.benchmark.subjects import Subject
from converter.measurement.generation.places import pipeline_folders

_HINT = "Share the folder with all nodes, at the same path, or give an address hf://OWNER/NAME."


@dataclass(frozen=True)
class SharedFile:
    """A file that figures depend on."""

    path: str
    """Relative to the folder of its repo; absolute if it is elsewhere."""
    sha256: str
    state: tuple[int, ...]
    """On the machine of the command, as in ``file_states``."""


@dataclass(frozen=True)
class FoundRepo:
    """A repo on one machine."""

    folder: str
    states: Mapping[str, list[int]]
    """Of the files that figures depend on, by absolute path."""


@dataclass(frozen=True)
class SharedRepo:
    """A repo, as the command sees it."""

    folder: str
    address: str
    """On the Hub, with its commit, if a node that lacks the folder may download it; else empty."""
    files: tuple[SharedFile, ...]

    @classmethod
    def of(cls, subject: Subject, address: str = "") -> SharedRepo:
        """Describe the repo of a model whose files are hashed.

        Args:
            subject: the model.
            address: from which it was downloaded; empty if it was given as a folder.
        """
        folder = subject.repo.folder.absolute()
        digests = {
            folder / name / file: digest for name, files in subject.components.items() for file, digest in files.items()
        }
        index = file_sha256(folder / PIPELINE_INDEX)
        digests |= {folder / PIPELINE_INDEX: index} if index is not None else {}
        for name, files in subject.weights.items():
            for header, file in zip(subject.repo.headers[name], files, strict=True):
                digests[header.file.absolute()] = file.sha256
        for choice in subject.choices:
            digests[choice.file.absolute()] = file_sha256(choice.file) or ""
        states = file_states(digests)
        shared = [
            SharedFile(_relative(path, folder), digest, tuple(states[str(path)])) for path, digest in digests.items()
        ]
        return cls(str(folder), f"{address}@{subject.revision}" if address else "", tuple(shared))

    def find(self) -> FoundRepo:
        """Find it on this machine, and compare its files.

        Raises:
            MissingInput: a file does not exist here.
            MalformedCheckpoint: it has another content.
            HubError: it has to be downloaded, and the Hub refuses or cannot be reached.
        """
        if self.address and not Path(self.folder).exists():
            with pipeline_folders([self.address]) as (folder,):
                return self._found_in(folder)
        return self._found_in(Path(self.folder))

    def _found_in(self, folder: Path) -> FoundRepo:
        paths = {file: folder / file.path for file in self.files}
        for path in paths.values():
            if not path.is_file():
                raise MissingInput(path, "no such file", _HINT)
        states = file_states(paths.values())
        for file, path in paths.items():
            # Devices have other numbers on other machines; a file of the same file system has the same of the rest.
            is_same = tuple(states[str(path.absolute())][1:]) == file.state[1:]
            if not is_same and file_sha256(path) != file.sha256:
                raise MalformedCheckpoint(path, "has another content than where the command runs", hint=_HINT)
        return FoundRepo(str(folder.absolute()), states)


@dataclass(frozen=True)
class NodeRepos:
    """Several repos, and where nodes have them."""

    repos: tuple[SharedRepo, ...]
    found: Mapping[str, tuple[FoundRepo, ...]]
    """By Ray's name of the node."""

    def here(self) -> tuple[FoundRepo, ...]:
        """The repos on this node; one that joined the cluster later compares them now.

        Raises: as ``SharedRepo.find``.
        """
        return self.found.get(node_id()) or _find_all(self.repos)


def find_on_nodes(cluster: Cluster, repos: Sequence[SharedRepo]) -> NodeRepos:
    """Find repos on all nodes.

    Raises:
        InputError: a node, which is named, lacks one, or has another one in its place.
        HubError: a node cannot download one.
    """
    found = cluster.each(_find_all, tuple(repos))
    return NodeRepos(tuple(repos), {node.id: places for node, places in found.items()})


def _find_all(repos: tuple[SharedRepo, ...]) -> tuple[FoundRepo, ...]:
    return tuple(repo.find() for repo in repos)


def _relative(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
