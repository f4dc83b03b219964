"""The order in which tensors of a repo on the Hub are converted: file by file, each read once from front to back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from converter.checkpoint.header import Header
from converter.checkpoint.journal import Finished
from converter.checkpoint.reader import TensorReader
from converter.console import Reporter
from converter.conversion.execution.jobs import Job
from converter.conversion.execution.sinks import Journal
from converter.conversion.execution.workers import Batch
from converter.conversion.request import Target
from converter.errors import NonFiniteWeight
from converter.hub.readers import StreamReader
from converter.hub.recorded_sum import RecordedSum
from converter.hub.shadow import Shadow

#: Journal entries of files of the source whose checksum was compared begin with this.
PROVEN = "proven:"


@dataclass(frozen=True)
class Streams:
    """The files of a component on the Hub, as streams.

    Args:
        target: the component.
        shadow: in which its files are.
        staged: notes what is finished.
        reporter: is told what takes longer.
    """

    target: Target
    shadow: Shadow
    staged: Journal
    reporter: Reporter

    def batches(self, jobs: Sequence[Job], finished: Finished) -> Iterator[Batch]:
        """A batch for each file that is not proven yet, even if all of its tensors are finished.

        Args:
            jobs: what has to be done.
            finished: what an interrupted run had finished.
        """
        checkpoint = self.target.checkpoint
        of_file: dict[str, list[Job]] = {header.file.name: [] for header in checkpoint.headers}
        for job in jobs:
            of_file[job.tensor.file.name].append(job)
        for header in checkpoint.headers:
            if PROVEN + header.file.name not in finished:
                found = sorted(of_file[header.file.name], key=lambda job: job.tensor.offset)
                begun = self._begun(found)
                saved = self._saved(header, begun, finished)
                yield Batch(found, partial(self._open, header, saved), partial(self._finish, header), begun)

    def _begun(self, jobs: Sequence[Job]) -> dict[str, Mapping[str, Any]]:
        """The note about the first tensor that is not finished, if a part of it is; else empty."""
        first = next((job for job in jobs if job.tensor.entry.bytes), None)
        noted = self.staged.begun.get(first.tensor.entry.name) if first else None
        if first is None or noted is None or not first.can_continue:
            return {}
        return {first.tensor.entry.name: noted}

    def _saved(
        self, header: Header, begun: Mapping[str, Mapping[str, Any]], finished: Finished
    ) -> Mapping[str, Any] | None:
        """Where a file has been read to, with the state of its sum; None if it has to be read from its beginning."""
        tensors = self.target.checkpoint.tensors
        done = {
            name: facts for name, facts in finished.items() if name in tensors and tensors[name].file == header.file
        }
        # Tensors of a file are finished in their order.
        noted = [facts["stream"] for facts in (*done.values(), *begun.values()) if "stream" in facts]
        found = max(noted, key=lambda saved: saved["offset"], default=None)
        if found is not None:
            try:
                RecordedSum(self.shadow.record_of(header.file), found["state"])
            except ValueError:
                # Another Python has no library for it.
                found = None
        if done and found is None:
            where = self.shadow.repo.where(self.shadow.path_of(header.file))
            self.reporter.note(f"Note: {where}: is read again from its beginning, to compute its checksum.")
        return found

    @contextmanager
    def _open(self, header: Header, saved: Mapping[str, Any] | None) -> Iterator[StreamReader]:
        with StreamReader(self.shadow, header, saved, self.reporter) as reader:
            try:
                yield reader
            except NonFiniteWeight:
                # The source is to blame only if this is what it contains.
                reader.finish()
                raise

    def _finish(self, header: Header, reader: TensorReader) -> None:
        if isinstance(reader, StreamReader):
            reader.finish()
        self.staged.note(PROVEN + header.file.name)

    @property
    def connections(self) -> int:
        """Files to read at a time."""
        return min(self.target.options.connections, len(self.target.checkpoint.headers))
