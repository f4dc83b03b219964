"""Converting one tensor: its pieces are read, rounded or quantized, and written into its slots."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.dtypes import WEIGHT_DTYPES
from converter.checkpoint.header import read_header
from converter.checkpoint.reader import TensorReader, ranges
from converter.checkpoint.source import SourceTensor
from converter.checkpoint.writer import SlotWriter
from converter.console import Progress
from converter.conversion.execution.budget import MemoryBudget
from converter.conversion.execution.jobs import Job, KeepJob, QuantizeJob
from converter.conversion.execution.pieces import Bytes, open_pieces
from converter.conversion.kernels import fused, searching
from converter.conversion.kernels.host import HOST, Host
from converter.conversion.options import ConvertOptions
from converter.conversion.planning.methods import OWN_KINDS, Kind
from converter.conversion.recipe.recipe import NEAREST
from converter.errors import NonFiniteWeight, UnsupportedCheckpoint

if TYPE_CHECKING:
    from converter.conversion.kernels.devices import Device
    from converter.conversion.kernels.moments import Moments


class Stopped(Exception):
    """The work was stopped by the user, or because something else failed."""


def refuse_nonfinite(job: Job, count: int, options: ConvertOptions) -> None:
    """Refuse numbers of a job's tensor that are not finite, unless they are allowed.

    Raises:
        NonFiniteWeight: there are some.
    """
    if count and not options.allow_nonfinite:
        what = "NaN or infinity" if options.from_float32 else "NaN, infinity or a number that overflows bfloat16"
        added, intact = "", "Get an intact checkpoint"
        if job.addition is not None:
            added, intact = " once the adapters are added", "Check the scales of the adapters, get intact files"
        raise NonFiniteWeight(
            f"{job.tensor.file}: tensor {job.tensor.entry.name}: contains {what}{added} "
            f"(at least {count} of its numbers)",
            f"{intact}, or convert it as it is with --allow-nonfinite.",
        )


def _facts(**values: float) -> dict[str, Any]:
    """Those that are not zero."""
    return {name: value for name, value in values.items() if value}


@dataclass
class TensorConverter:
    """Converts tensors one after the other, in buffers of its own; each worker has one.

    Args:
        reader: reads the source.
        writer: writes the slots.
        options: how numbers are treated.
        budget: shared limit on memory.
        piece_bytes: of the source, that are read at a time.
        progress: counts the bytes of the source that are done.
        stop: is checked between pieces.
        device: where weights are quantized.
    """

    reader: TensorReader
    writer: SlotWriter
    options: ConvertOptions
    budget: MemoryBudget
    piece_bytes: int
    progress: Progress
    stop: threading.Event
    device: Host | Device
    _buffers: dict[str, Bytes] = field(default_factory=dict)

    def convert(self, job: Job) -> dict[str, Any]:
        """Convert one tensor of the source.

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
            return _facts(nonfinite=self._keep(job))
        if job.spooled is not None:
            self._copy_spooled(job, job.spooled)
            return {}
        return self._quantize(job)

    def _read(self, tensor: SourceTensor, start: int, size: int) -> Bytes:
        if self.stop.is_set():
            raise Stopped
        data = self._buffer("source", size)
        self.reader.read(tensor, start, data)
        return data

    def _buffer(self, name: str, size: int) -> Bytes:
        """A buffer that is used again; fresh memory costs a page fault every 4 KiB."""
        found = self._buffers.get(name)
        if found is None or found.size < size:
            found = self._buffers[name] = self.device.buffer(size)
        return found[:size]

    def _keep(self, job: KeepJob) -> int:
        """Write a tensor in the dtype that the plan gives it."""
        tensor, slot = job.tensor, job.kept.slot
        total = tensor.entry.bytes
        nonfinite = 0
        with open_pieces(job, self._read, self.budget, self.piece_bytes) as pieces:
            for start, stop in job.ranges(pieces.bytes):
                with pieces.share(stop - start):
                    data = pieces.read(start, stop - start)
                    converted, flawed = self._round(job, job.kept.spec.dtype, data)
                    self.writer.write(slot.file, slot.offset + start * slot.bytes // total, converted.data)
                nonfinite += flawed
                self.progress.advance(stop - start)
        return nonfinite

    def _round(self, job: KeepJob, target: str, data: Bytes) -> tuple[Bytes, int]:
        """Convert numbers to another dtype; also count those that are not finite."""
        source = job.dtype
        if source not in WEIGHT_DTYPES:
            return data, 0
        bits = fused.widen(data, source)
        rounded = self._buffer("rounded", bits.size * 2)
        largest = fused.round_to_bfloat16(bits, rounded.view(np.uint16))
        flawed = 0
        if largest >= (fused.OVERFLOWS_BFLOAT16 if target == "BF16" else fused.INFINITE):
            flawed = self._count_nonfinite(job, data, as_bfloat16=target == "BF16")
        if target == source:
            return data, flawed
        if target == "F32":
            return bits.view(np.uint8), flawed
        if flawed:
            # A NaN has many bit patterns; this writes the one that torch chooses.
            from converter.conversion.kernels.sdnq import as_bytes, as_tensor

            return as_bytes(as_tensor(data, source, (bits.size,)).bfloat16()), flawed
        return rounded, 0

    def _count_nonfinite(self, job: Job, data: Bytes, *, as_bfloat16: bool) -> int:
        from converter.conversion.kernels.sdnq import count_nonfinite

        count = count_nonfinite(data, job.dtype, as_bfloat16=as_bfloat16)
        refuse_nonfinite(job, count, self.options)
        return count

    def _quantize(self, job: QuantizeJob) -> dict[str, Any]:
        """Quantize a weight, a run of rows at a time."""
        nonfinite, damped = 0, 0.0
        with open_pieces(job, self._read, self.budget, self.piece_bytes) as pieces:
            moments = None
            if job.moments is not None:
                # Imported here: it imports torch.
                from converter.conversion.kernels.moments import NOT_DAMPED, read_moments

                moments = read_moments(job.moments, self.reader)
                damped = moments.damping if moments.damping > NOT_DAMPED else 0.0
            for first, last in job.row_runs(pieces.bytes):
                size = (last - first) * job.row_bytes
                with pieces.share(size):
                    data = pieces.read(first * job.row_bytes, size)
                    results = self._run_kernel(job, data) if job.method.kind in OWN_KINDS else None
                    if results is None:
                        as_bfloat16 = not self.options.from_float32
                        nonfinite += self._count_nonfinite(job, data, as_bfloat16=as_bfloat16)
                        results = self._run_sdnq(job, last - first, data, moments)
                    elif job.method.rounding != NEAREST:
                        searching.improve_uint4(
                            data,
                            job.dtype,
                            results,
                            channels=job.module.shape[1],
                            round_scales=job.method.round_scales,
                            moments=moments,
                        )
                    self._write_rows(job, first, last, results)
                self.progress.advance(size)
        return _facts(nonfinite=nonfinite, damped=damped)

    def _run_kernel(self, job: QuantizeJob, data: Bytes) -> dict[str, NDArray[Any]] | None:
        """Quantize rows by lensconv's kernel; None when they contain numbers that it does not handle."""
        from_float32 = self.options.from_float32
        if not isinstance(self.device, Host) and job.method.kind is Kind.DEVICE:
            from converter.conversion.kernels.on_device import quantize_bytes

            return quantize_bytes(
                data,
                job.dtype,
                round_weights=not from_float32,
                round_scales=job.method.round_scales,
                device=self.device,
                where=f"{job.tensor.file}: tensor {job.tensor.entry.name}",
                buffer=self._buffer,
            )
        parts, largest = fused.quantize_uint4(
            fused.widen(data, job.dtype),
            round_weights=not from_float32,
            round_scales=job.method.round_scales,
            buffer=self._buffer,
        )
        return parts if largest < (fused.INFINITE if from_float32 else fused.OVERFLOWS_BFLOAT16) else None

    def _run_sdnq(self, job: QuantizeJob, rows: int, data: Bytes, moments: Moments | None) -> dict[str, NDArray[Any]]:
        from converter.conversion.kernels.sdnq import quantize_with_sdnq

        # What lensconv's kernel does not handle has the bytes of the CPU, too, and scales are searched there.
        is_nearest = job.method.rounding == NEAREST
        place = HOST if job.method.kind in OWN_KINDS or not is_nearest else self.device
        shape = (rows, *job.module.shape[1:])
        result = quantize_with_sdnq(
            data,
            job.dtype,
            shape,
            job.module.options,
            from_float32=self.options.from_float32,
            device=place.torch_device,
        )
        if not is_nearest:
            from converter.conversion.kernels.regrouping import improve_scales

            result = improve_scales(result, data, job.dtype, shape, moments)
        return {part: result.bytes_of(part) for part in result.parts}

    def _write_rows(self, job: QuantizeJob, first: int, last: int, results: Mapping[str, NDArray[Any]]) -> None:
        rows = job.module.shape[0]
        fits = results.keys() == job.parts.keys() and all(
            results[part].nbytes == output.slot.bytes * (last - first) // rows for part, output in job.parts.items()
        )
        if not fits:
            raise UnsupportedCheckpoint(
                f"{job.tensor.file}: tensor {job.tensor.entry.name}: SDNQ returned other parts "
                f"than planned ({', '.join(results)}), which happens when an SVD fails",
                f"Keep this module: --set '{job.module.name}=keep'.",
            )
        for part, output in job.parts.items():
            offset = output.slot.offset + output.slot.bytes * first // rows
            self.writer.write(output.slot.file, offset, results[part].data)

    def _copy_spooled(self, job: QuantizeJob, spooled: Path) -> None:
        header = read_header(spooled)
        for part, output in job.parts.items():
            entry = header.tensors[part]
            tensor = SourceTensor(entry, spooled, header.data_start + entry.start)
            for start, stop in ranges(entry.bytes, self.piece_bytes):
                data = self._read(tensor, start, stop - start)
                self.writer.write(output.slot.file, output.slot.offset + start, data.data)
        self.progress.advance(job.tensor.entry.bytes)
