"""The part of a conversion that runs on a node of a cluster: weight files of the source, one after the other.

It writes nothing. What it would write and note goes to the process that runs the command, in order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from converter.checkpoint.header import Header, file_stamp, read_header
from converter.checkpoint.journal import Finished
from converter.conversion.execution.relaying import Outbox, Received, RelayedProgress, RelayedReporter, Step
from converter.conversion.execution.running import run_jobs
from converter.conversion.execution.streaming import Streams
from converter.conversion.execution.work import Work
from converter.conversion.execution.workers import WorkerPool
from converter.conversion.kernels.host import HOST
from converter.conversion.request import Target
from converter.errors import MalformedCheckpoint, MissingInput
from converter.hub.client import quiet_hub
from converter.hub.remote import KnownRepo
from converter.hub.shadow import Shadow
from converter.libraries import load_library, require_library_memory

_SHARE = "Share the source with all nodes, at the same path, or give an address hf://OWNER/NAME."


@dataclass(frozen=True)
class HubSource:
    """A source on the Hub, for a process on a node."""

    repo: KnownRepo
    folder: Path
    """The folder in place of the repo, which only the machine that runs the command has."""

    def open(self) -> Shadow:
        """The repo in its folder; no file of it is read."""
        return Shadow(self.repo.open(), self.folder)


class ShardConverter:
    """Converts weight files of one component, with one thread.

    Args:
        target: the component, whose checkpoint opens no other files.
        work: what to do with all of it.
        budget: the most bytes of weights and results in memory at a time.
        hub: where its files are; None if they are on this node.

    Raises:
        MemoryLimitError: there is not enough memory for torch.
    """

    def __init__(self, target: Target, work: Work, budget: int, hub: HubSource | None) -> None:
        self._target = replace(target, options=replace(target.options, jobs=1, connections=1))
        self._work = work
        self._budget = budget
        self._shadow = hub.open() if hub else None
        if work.needs_sdnq:
            # A thread must not be the first to import it.
            require_library_memory()
            load_library("sdnq.quantizer")

    def convert(self, file: str, finished: Finished, begun: Finished) -> Iterator[list[Step]]:
        """Convert the tensors of one weight file, and yield the steps of it, several at a time.

        Args:
            file: its name.
            finished: what earlier attempts had finished of it.
            begun: the last notes about tensors of it that they had begun.

        Raises:
            LensconvError: a tensor cannot be converted, or the Hub sends other bytes than it has recorded.
        """
        outbox = Outbox(begun)
        with ThreadPoolExecutor(1, thread_name_prefix="conversion") as pool:
            done = pool.submit(self._convert, file, finished, outbox)
            done.add_done_callback(lambda _: outbox.end())
            try:
                yield from outbox.messages()
            finally:
                outbox.stop()
        done.result()

    def _convert(self, file: str, finished: Finished, outbox: Outbox) -> None:
        checkpoint, shadow = self._target.checkpoint, self._shadow
        header = next(header for header in checkpoint.headers if header.file.name == file)
        target = replace(self._target, checkpoint=replace(checkpoint, headers=(header,)))
        jobs = [job for job in self._work.jobs if job.tensor.file == header.file]
        todo = [job for job in jobs if job.tensor.entry.name not in finished]
        reporter = RelayedReporter(outbox)
        pool = WorkerPool(outbox, outbox, outbox, RelayedProgress(outbox), target.options, HOST)
        if shadow is None:
            # Nodes that joined the cluster later have not been asked yet.
            find_files([WeightFile.of(header)])
            run_jobs(target, self._work, todo, finished, pool, self._budget)
            find_files([WeightFile.of(header)])
            return
        shadow.repo.be_patient(reporter)
        before = shadow.repo.received_bytes
        with quiet_hub():
            streams = Streams(target, shadow, outbox, reporter)
            run_jobs(target, self._work, todo, finished, pool, self._budget, streams)
        outbox.put(Received(shadow.repo.received_bytes - before))


@dataclass(frozen=True)
class WeightFile:
    """A weight file, as the machine that runs the command sees it."""

    path: Path
    stamp: tuple[int, ...]
    """As in a header."""
    sha256: str
    """Checksum of its header."""

    @classmethod
    def of(cls, header: Header) -> Self:
        """The file of a header."""
        return cls(header.file, header.stamp, header.sha256)


def find_files(files: Sequence[WeightFile]) -> None:
    """Check that weight files are on this node as on the machine that runs the command.

    Raises:
        MissingInput: one is missing, or cannot be read.
        MalformedCheckpoint: one differs.
    """
    for file in files:
        stamp = file_stamp(file.path)
        if not stamp:
            raise MissingInput(file.path, "no such file", _SHARE)
        if stamp != file.stamp or read_header(file.path).sha256 != file.sha256:
            raise MalformedCheckpoint(file.path, "is not the file that it is where the command runs", _SHARE)


def find_repo(hub: HubSource, header: Header) -> None:
    """Check that this node can read a repo on the Hub.

    Args:
        hub: where it is.
        header: of the file of which the header is read.

    Raises:
        HubError: it cannot be read.
    """
    shadow = hub.open()
    with quiet_hub():
        shadow.repo.read(shadow.path_of(header.file), 0, header.data_start)
