"""Converting one tensor: its pieces are read, rounded or quantized, and written into its slots."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from converter.checkpoint.header import read_header
from converter.checkpoint.reader import TensorReader, ranges
from converter.checkpoint.source import SourceTensor
from converter.console import Progress
from converter.conversion.execution.arithmetic import Columns, PieceArithmetic, refuse_other_parts
from converter.conversion.execution.budget import MemoryBudget
from converter.conversion.execution.jobs import Job, KeepJob, QuantizeJob
from converter.conversion.execution.pieces import Bytes, open_pieces
from converter.conversion.execution.sinks import Slots
from converter.conversion.planning.methods import OWN_KINDS, Kind


class Stopped(Exception):
    """The work was stopped by the user, or because something else failed."""


def _facts(**values: float) -> dict[str, Any]:
    """Those that are not zero."""
    return {name: value for name, value in values.items() if value}


@dataclass
class TensorConverter:
    """Converts tensors one after the other, in buffers of its own; each worker has one.

    Args:
        writer: writes the slots.
        arithmetic: rounds and quantizes, for this worker only.
        budget: shared limit on memory.
        piece_bytes: of the source, that are read at a time.
        progress: counts the bytes of the source that are done.
        stop: is checked between pieces.
        note_begun: notes how far a long tensor is.
    """

    writer: Slots
    arithmetic: PieceArithmetic
    budget: MemoryBudget
    piece_bytes: int
    progress: Progress
    stop: threading.Event
    note_begun: Callable[..., None]

    def convert(self, job: Job, reader: TensorReader, begun: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Convert one tensor of the source.

        Args:
            job: what becomes of it.
            reader: reads the source.
            begun: what was noted when an interrupted run had converted a part of it; None to begin.

        Returns:
            What to note of it: ``nonfinite``, how many of its numbers are not finite, if there are some; ``damped``,
            what was added to second moments that are not positive semidefinite, as a part of their mean diagonal.

        Raises:
            Stopped: the work was stopped.
            NonFiniteWeight: it contains such numbers, and they are not allowed.
            CalibrationError: the second moments of its inputs cannot be used.
            OSError: the output could not be written.
        """
        if isinstance(job, KeepJob):
            return _facts(nonfinite=self._keep(job, reader, begun or {}))
        if job.spooled is not None:
            with TensorReader() as spool:
                self._copy_spooled(job, job.spooled, spool)
            return {}
        return self._quantize(job, reader, begun or {})

    def _note_begun(self, job: Job, reader: TensorReader, done: int, nonfinite: int) -> None:
        """Note how many bytes of a tensor are done, if it can continue there and they are many."""
        if job.can_continue and (facts := reader.facts_inside()):
            self.note_begun(job.tensor.entry.name, done=done, **_facts(nonfinite=nonfinite), **facts)

    def _read(self, reader: TensorReader, tensor: SourceTensor, start: int, size: int) -> Bytes:
        if self.stop.is_set():
            raise Stopped
        data = self.arithmetic.buffer("source", size)
        reader.read(tensor, start, data)
        return data

    def _keep(self, job: KeepJob, reader: TensorReader, begun: Mapping[str, Any]) -> int:
        """Write a tensor in the dtype that the plan gives it."""
        tensor, slot = job.tensor, job.kept.slot
        total = tensor.entry.bytes
        nonfinite, done = int(begun.get("nonfinite", 0)), int(begun.get("done", 0))
        self.progress.skip(done)
        with open_pieces(job, partial(self._read, reader), self.budget, self.piece_bytes) as pieces:
            for start, stop in job.ranges(pieces.bytes, done):
                with pieces.share(stop - start):
                    data = pieces.read(start, stop - start)
                    converted, flawed = self.arithmetic.round(job, job.kept.spec.dtype, data)
                    self.writer.write(slot.file, slot.offset + start * slot.bytes // total, converted.data)
                nonfinite += flawed
                self.progress.advance(stop - start)
                self._note_begun(job, reader, stop, nonfinite)
        return nonfinite

    def _quantize(self, job: QuantizeJob, reader: TensorReader, begun: Mapping[str, Any]) -> dict[str, Any]:
        """Quantize a weight, a run of rows at a time."""
        nonfinite, done, damped = int(begun.get("nonfinite", 0)), int(begun.get("done", 0)), 0.0
        self.progress.skip(done)
        with open_pieces(job, partial(self._read, reader), self.budget, self.piece_bytes) as pieces:
            moments = None
            if job.moments is not None:
                # Imported here: it imports torch.
                from converter.conversion.kernels.moments import NOT_DAMPED, read_moments

                with TensorReader() as local:
                    moments = read_moments(job.moments, local)
                damped = moments.damping if moments.damping > NOT_DAMPED else 0.0
            columns = Columns(job) if job.method.kind is Kind.COLUMNS else None
            for first, last in job.row_runs(pieces.bytes, done // max(1, job.row_bytes)):
                size = (last - first) * job.row_bytes
                with pieces.share(size):
                    data = pieces.read(first * job.row_bytes, size)
                    results = self.arithmetic.run_kernel(job, data, moments) if job.method.kind in OWN_KINDS else None
                    if results is None:
                        as_bfloat16 = not self.arithmetic.options.from_float32
                        nonfinite += self.arithmetic.count_nonfinite(job, data, as_bfloat16=as_bfloat16)
                        made = self.arithmetic.run_sdnq(job, last - first, data, moments)
                        results = {part: made.bytes_of(part) for part in made.parts}
                    refuse_other_parts(job, last - first, results)
                    if columns is None:
                        self._write_rows(job, first, results)
                    else:
                        columns.put(first, last, results)
                self.progress.advance(size)
                self._note_begun(job, reader, last * job.row_bytes, nonfinite)
            if columns is not None:
                self._write_rows(job, 0, columns.parts)
        return _facts(nonfinite=nonfinite, damped=damped)

    def _write_rows(self, job: QuantizeJob, first: int, results: Mapping[str, NDArray[Any]]) -> None:
        rows = job.module.shape[0]
        for part, output in job.parts.items():
            offset = output.slot.offset + output.slot.bytes * first // rows
            self.writer.write(output.slot.file, offset, results[part].data)

    def _copy_spooled(self, job: QuantizeJob, spooled: Path, reader: TensorReader) -> None:
        header = read_header(spooled)
        for part, output in job.parts.items():
            entry = header.tensors[part]
            tensor = SourceTensor(entry, spooled, header.data_start + entry.start)
            for start, stop in ranges(entry.bytes, self.piece_bytes):
                data = self._read(reader, tensor, start, stop - start)
                self.writer.write(output.slot.file, output.slot.offset + start, data.data)
        self.progress.advance(job.tensor.entry.bytes)
