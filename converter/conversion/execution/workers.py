"""Running a plan: workers that read pieces, convert them and write them into their slots.

Threads, not processes: reading, writing, hashing and both kinds of kernels all release the interpreter's lock. A
tensor is noted in the journal when its last byte has been written; nothing else is kept about it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.dtypes import WEIGHT_DTYPES
from converter.checkpoint.header import read_header
from converter.checkpoint.reader import TensorReader, ranges
from converter.checkpoint.source import SourceTensor
from converter.checkpoint.staging import Staging
from converter.checkpoint.writer import SlotWriter, write_error
from converter.conversion.execution.budget import MemoryBudget
from converter.conversion.execution.hashing import FollowingHasher
from converter.conversion.execution.jobs import PIECE_BYTES, Job, KeepJob, QuantizeJob, element_bytes
from converter.conversion.kernels import fused
from converter.conversion.planning.methods import Kind
from converter.errors import NonFiniteWeight, UnsupportedCheckpoint
from converter.threads import run_in_threads

if TYPE_CHECKING:
    from converter.console import Progress

Bytes = NDArray[np.uint8]

#: Pieces do not get smaller than this, however little memory is allowed.
MINIMUM_PIECE_BYTES = 64 << 10


@dataclass(frozen=True)
class Numerics:
    """How numbers are treated."""

    from_float32: bool = False
    """Whether weights are quantized from float32 instead of from their bfloat16 rounding."""
    allow_nonfinite: bool = False
    """Whether NaN and infinity are converted and counted instead of refused."""
    device: str = "cpu"
    """Where SDNQ computes; lensconv's own loops run on the CPU."""


def refuse_nonfinite(tensor: SourceTensor, count: int, numerics: Numerics) -> None:
    """Refuse numbers that are not finite, unless they are allowed.

    Raises:
        NonFiniteWeight: there are some.
    """
    if count and not numerics.allow_nonfinite:
        what = "NaN or infinity" if numerics.from_float32 else "NaN, infinity or a number that overflows bfloat16"
        raise NonFiniteWeight(
            f"{tensor.file}: tensor {tensor.entry.name}: holds {what} (at least {count} of its numbers)",
            "Get an intact checkpoint, or convert it as it is with --allow-nonfinite.",
        )


class TensorConverter:
    """Converts tensors one after the other, in buffers of its own; each worker has one.

    Args:
        reader: reads the source.
        writer: writes the slots.
        numerics: how numbers are treated.
        budget: shared limit on memory.
        piece_bytes: of the source, that are taken at a time.
        progress: is told how many bytes of the source are done.
        stop: is checked between pieces.
    """

    def __init__(
        self,
        reader: TensorReader,
        writer: SlotWriter,
        numerics: Numerics,
        budget: MemoryBudget,
        piece_bytes: int,
        progress: Progress,
        stop: threading.Event,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._numerics = numerics
        self._budget = budget
        self._piece_bytes = piece_bytes
        self._progress = progress
        self._stop = stop
        self._buffers: dict[str, Bytes] = {}

    def convert(self, job: Job) -> int:
        """Convert one tensor of the source.

        Returns:
            How many of its numbers are not finite.

        Raises:
            Stopped: the work was called off.
            NonFiniteWeight: it holds such numbers, and they are not allowed.
            OSError: the output could not be written.
        """
        if isinstance(job, KeepJob):
            return self._keep(job)
        if job.spooled is not None:
            self._copy_spooled(job, job.spooled)
            return 0
        return self._quantize(job)

    def _read(self, tensor: SourceTensor, start: int, size: int) -> Bytes:
        if self._stop.is_set():
            raise Stopped
        data = self._buffer("source", size)
        self._reader.read(tensor, start, data)
        return data

    def _buffer(self, name: str, size: int) -> Bytes:
        """A buffer that is used again; fresh memory costs a page fault every 4 KiB."""
        found = self._buffers.get(name)
        if found is None or found.size < size:
            found = self._buffers[name] = np.empty(size, np.uint8)
        return found[:size]

    def _keep(self, job: KeepJob) -> int:
        """Write a tensor as it is, in the dtype that the plan gives it."""
        tensor, slot = job.tensor, job.kept.slot
        total, size = tensor.entry.bytes, element_bytes(tensor)
        nonfinite = 0
        for start, stop in ranges(total, max(1, self._piece_bytes // size) * size):
            with self._budget.share((stop - start) // size * job.working_bytes):
                data = self._read(tensor, start, stop - start)
                converted, flawed = self._round(tensor, job.kept.spec.dtype, data)
                self._writer.write(slot.file, slot.offset + start * slot.bytes // total, converted.data)
            nonfinite += flawed
            self._progress.advance(stop - start)
        return nonfinite

    def _round(self, tensor: SourceTensor, target: str, data: Bytes) -> tuple[Bytes, int]:
        """Bring numbers to another dtype; also tells how many are not finite."""
        source = tensor.entry.dtype
        if source not in WEIGHT_DTYPES:
            return data, 0
        bits = fused.widen(data, source)
        rounded = self._buffer("rounded", bits.size * 2)
        largest = fused.round_to_bfloat16(bits, rounded.view(np.uint16))
        flawed = 0
        if largest >= (fused.OVERFLOWS_BFLOAT16 if target == "BF16" else fused.INFINITE):
            flawed = self._count_nonfinite(tensor, data, as_bfloat16=target == "BF16")
        if target == source:
            return data, flawed
        if target == "F32":
            return bits.view(np.uint8), flawed
        if flawed:
            # A NaN has many bit patterns; take the one that torch chooses.
            from converter.conversion.kernels.sdnq import as_bytes, as_tensor

            return as_bytes(as_tensor(data, source, (bits.size,)).bfloat16()), flawed
        return rounded, 0

    def _count_nonfinite(self, tensor: SourceTensor, data: Bytes, *, as_bfloat16: bool) -> int:
        from converter.conversion.kernels.sdnq import count_nonfinite

        count = count_nonfinite(data, tensor.entry.dtype, as_bfloat16=as_bfloat16)
        refuse_nonfinite(tensor, count, self._numerics)
        return count

    def _quantize(self, job: QuantizeJob) -> int:
        """Quantize a weight, a run of rows at a time."""
        nonfinite = 0
        for first, last in job.row_runs(self._piece_bytes):
            size = (last - first) * job.row_bytes
            with self._budget.share(size // element_bytes(job.tensor) * job.working_bytes):
                data = self._read(job.tensor, first * job.row_bytes, size)
                results = self._run_kernel(job, data) if job.method.kind is Kind.FUSED else None
                if results is None:
                    nonfinite += self._count_nonfinite(job.tensor, data, as_bfloat16=not self._numerics.from_float32)
                    results = self._run_sdnq(job, last - first, data)
                self._write_rows(job, first, last, results)
            self._progress.advance(size)
        return nonfinite

    def _run_kernel(self, job: QuantizeJob, data: Bytes) -> dict[str, NDArray[Any]] | None:
        """Quantize rows by lensconv's kernel; None when they hold numbers that it does not handle."""
        bits = fused.widen(data, job.tensor.entry.dtype)
        groups = bits.size // fused.GROUP
        scale_type: type[Any] = np.uint16 if job.method.round_scales else np.uint32
        scale_bytes = groups * np.dtype(scale_type).itemsize
        packed = self._buffer("packed", bits.size // 2)
        scales = self._buffer("scales", scale_bytes).view(scale_type)
        zero_points = self._buffer("zero points", scale_bytes).view(scale_type)
        from_float32 = self._numerics.from_float32
        largest = fused.quantize_uint4(bits, packed, scales, zero_points, round_weights=not from_float32)
        if largest >= (fused.INFINITE if from_float32 else fused.OVERFLOWS_BFLOAT16):
            return None
        return {"weight": packed, "scale": scales, "zero_point": zero_points}

    def _run_sdnq(self, job: QuantizeJob, rows: int, data: Bytes) -> dict[str, NDArray[Any]]:
        from converter.conversion.kernels.sdnq import open_device, quantize_with_sdnq

        result = quantize_with_sdnq(
            data,
            job.tensor.entry.dtype,
            (rows, *job.module.shape[1:]),
            job.module.options,
            from_float32=self._numerics.from_float32,
            device=open_device(self._numerics.device),
        )
        return {part: result.bytes_of(part) for part in result.parts}

    def _write_rows(self, job: QuantizeJob, first: int, last: int, results: Mapping[str, NDArray[Any]]) -> None:
        rows = job.module.shape[0]
        fits = results.keys() == job.parts.keys() and all(
            results[part].nbytes == output.slot.bytes * (last - first) // rows for part, output in job.parts.items()
        )
        if not fits:
            raise UnsupportedCheckpoint(
                f"{job.tensor.file}: tensor {job.tensor.entry.name}: SDNQ gave other parts "
                f"than planned ({', '.join(results)}), which it does where a factorisation fails",
                f"Keep this module: --set '{job.module.name}=keep'.",
            )
        for part, output in job.parts.items():
            offset = output.slot.offset + output.slot.bytes * first // rows
            self._writer.write(output.slot.file, offset, results[part].data)

    def _copy_spooled(self, job: QuantizeJob, spooled: Path) -> None:
        header = read_header(spooled)
        for part, output in job.parts.items():
            entry = header.tensors[part]
            tensor = SourceTensor(entry, spooled, header.data_start + entry.start)
            for start, stop in ranges(entry.bytes, self._piece_bytes):
                data = self._read(tensor, start, stop - start)
                self._writer.write(output.slot.file, output.slot.offset + start, data.data)
        self._progress.advance(job.tensor.entry.bytes)


class Stopped(Exception):
    """The work was called off because something else failed, or by the user."""


class WorkerPool:
    """Threads that work off a list of jobs.

    Args:
        staging: whose journal is told of every finished tensor.
        hasher: is told of every filled slot.
        progress: what the user sees.
        random_state: where SDNQ draws random numbers, what to note after each tensor so that the next run can go on.
    """

    def __init__(
        self,
        staging: Staging,
        hasher: FollowingHasher,
        progress: Progress,
        random_state: Callable[[], str] | None = None,
    ) -> None:
        self._staging = staging
        self._hasher = hasher
        self._progress = progress
        self._random_state = random_state
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._stop = threading.Event()

    def run(
        self,
        jobs: Iterable[Job],
        *,
        workers: int,
        writer: SlotWriter,
        numerics: Numerics,
        budget: int,
    ) -> None:
        """Run all jobs, and return when the last one is done.

        Args:
            jobs: in the order in which to start them.
            workers: how many threads.
            writer: writes the slots.
            numerics: how numbers are treated.
            budget: bytes that may be in memory at a time.

        Raises:
            LensconvError: a tensor cannot be converted, or the output cannot be written.
            KeyboardInterrupt: the user called it off; tensors in work are left unfinished.
        """
        for job in jobs:
            self._jobs.put(job)
        shared = MemoryBudget(budget)
        piece_bytes = min(PIECE_BYTES, max(MINIMUM_PIECE_BYTES, budget // (4 * workers)))
        with TensorReader() as reader:
            converters = [
                TensorConverter(reader, writer, numerics, shared, piece_bytes, self._progress, self._stop)
                for _ in range(workers)
            ]
            try:
                run_in_threads(
                    self._work,
                    converters,
                    workers=workers,
                    name="worker",
                    refresh=self._progress.refresh,
                    stop=self._stop.set,
                )
            except OSError as error:
                raise write_error(writer.folder, error) from error

    def _work(self, converter: TensorConverter) -> None:
        while not self._stop.is_set():
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return
            facts: dict[str, Any] = {"outputs": len(job.outputs)}
            try:
                nonfinite = converter.convert(job)
            except Stopped:
                return
            if nonfinite:
                facts["nonfinite"] = nonfinite
            if self._random_state is not None and isinstance(job, QuantizeJob):
                facts["random_state"] = self._random_state()
            self._staging.note(job.tensor.entry.name, **facts)
            self._hasher.finish_slot(*job.outputs)
