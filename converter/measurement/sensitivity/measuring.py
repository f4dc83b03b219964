"""Measuring a tensor: its rows are read once, stored in every way that is wanted, restored and compared."""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from converter.checkpoint.dtypes import WEIGHT_DTYPES
from converter.checkpoint.reader import TensorReader
from converter.console import Progress
from converter.conversion.execution.arithmetic import PieceArithmetic, refuse_other_parts
from converter.conversion.execution.budget import MemoryBudget
from converter.conversion.execution.converting import Stopped
from converter.conversion.execution.jobs import KeepJob, QuantizeJob
from converter.conversion.execution.pieces import Bytes
from converter.conversion.kernels.sdnq import QuantizedParts, seeded_generator
from converter.conversion.kernels.searching import as_numbers
from converter.conversion.planning.methods import OWN_KINDS, Kind
from converter.errors import UnsupportedCheckpoint
from converter.libraries import QUANTIZING_ERRORS
from converter.measurement.sensitivity.figures import StorageFigures
from converter.measurement.sensitivity.storage import Storage
from converter.measurement.sensitivity.stored import StoredTensor
from converter.measurement.sensitivity.sums import Squares
from converter.measurement.sensitivity.tasks import Task
from converter.verification.dequantizing import dequantize


class Scanner:
    """Measures tensors; any thread may call it.

    Args:
        reader: reads the source.
        arithmetic: one for each thread.
        budget: limit on memory, shared by all threads.
        piece_bytes: of the source, that are worked on at a time.
        spool: the folder for the parts of quantized tensors; None to keep none.
        note: is called with the figures of each storage.
        progress: counts the bytes of the source that are done.
    """

    def __init__(
        self,
        reader: TensorReader,
        arithmetic: Iterable[PieceArithmetic],
        budget: MemoryBudget,
        piece_bytes: int,
        spool: Path | None,
        note: Callable[[StorageFigures], object],
        progress: Progress,
    ) -> None:
        self.stop = threading.Event()
        """When it is set, no further piece is read."""
        self._reader = reader
        self._budget = budget
        self._piece_bytes = piece_bytes
        self._spool = spool
        self._note = note
        self._progress = progress
        self._idle: queue.SimpleQueue[PieceArithmetic] = queue.SimpleQueue()
        for one in arithmetic:
            self._idle.put(one)
        # torch has one generator for all threads.
        self._drawing = threading.Lock()

    def measure(self, task: Task) -> list[StorageFigures]:
        """Measure all storages of a tensor.

        Returns:
            Their figures; nothing if it was stopped.

        Raises:
            NonFiniteWeight: the tensor contains such numbers, and they are not allowed.
            UnsupportedCheckpoint: SDNQ cannot quantize or restore it.
            DiskError: the disk of the spool is full.
            OutputError: the spool cannot be written to.
        """
        arithmetic = self._idle.get()
        try:
            with ExitStack() as files:
                stored = [
                    files.enter_context(closing(StoredTensor(wanted, task.width, self._spool)))
                    for wanted in task.wanted
                ]
                energy = self._store_rows(task, stored, arithmetic)
                for one in stored:
                    one.finish()
        except Stopped:
            return []
        finally:
            self._idle.put(arithmetic)
        figures = [one.figures(energy) for one in stored]
        for measured in figures:
            self._note(measured)
        return figures

    def _store_rows(self, task: Task, stored: list[StoredTensor], arithmetic: PieceArithmetic) -> float:
        """Read the tensor and store its rows in every way; returns the sum of its squares."""
        entry = task.tensor.entry
        squares = Squares(task.width)
        piece_bytes = task.piece_within(self._budget.total, self._piece_bytes)
        with self._budget.share(task.memory(piece_bytes)):
            for first, last in task.runs(piece_bytes):
                if self.stop.is_set():
                    raise Stopped
                start, stop = first * task.row_bytes, min(last * task.row_bytes, entry.bytes)
                data = arithmetic.buffer("source", stop - start)
                self._reader.read(task.tensor, start, data)
                self._refuse_nonfinite(task, data, arithmetic)
                if entry.dtype in WEIGHT_DTYPES:
                    squares.add(as_numbers(data, entry.dtype))
                for one in stored:
                    for begin, end in task.runs_within(one.job, first, last, piece_bytes):
                        rows = data[(begin - first) * task.row_bytes : (end - first) * task.row_bytes]
                        one.add(begin, end, self._store(one, end - begin, rows, arithmetic))
                self._progress.advance(stop - start)
        return squares.total

    def _refuse_nonfinite(self, task: Task, data: Bytes, arithmetic: PieceArithmetic) -> None:
        """Look once for all quantized storages; those that are kept are looked at where they are rounded."""
        job = next((wanted.job for wanted in task.wanted if isinstance(wanted.job, QuantizeJob)), None)
        if job is not None:
            arithmetic.count_nonfinite(job, data, as_bfloat16=not arithmetic.options.from_float32)

    def _store(
        self, stored: StoredTensor, rows: int, data: Bytes, arithmetic: PieceArithmetic
    ) -> Mapping[str, NDArray[Any]]:
        """Store rows in one way, and compare what is restored of them.

        Args:
            stored: in which way.
            rows: how many rows.
            data: their numbers, in the dtype of the source.
            arithmetic: of this thread.

        Returns:
            The bytes of the parts.
        """
        if isinstance(stored.job, KeepJob):
            return _keep(stored, stored.job, data, arithmetic)
        return self._quantize(stored, stored.job, rows, data, arithmetic)

    def _quantize(
        self, stored: StoredTensor, job: QuantizeJob, rows: int, data: Bytes, arithmetic: PieceArithmetic
    ) -> Mapping[str, NDArray[Any]]:
        """Quantize rows, and compare what is restored of them; returns the parts."""
        numbers, form = as_numbers(data, job.dtype), stored.form
        if form is not None and job.method.kind in OWN_KINDS:
            parts = arithmetic.run_kernel(job, data)
            if parts is not None:
                stored.comparison.add_integers(numbers, parts, form)
                return parts
        with self._seeded(stored.storage):
            result = arithmetic.run_sdnq(job, rows, data)
        parts = {part: result.bytes_of(part) for part in result.parts}
        refuse_other_parts(job, rows, parts)
        if form is not None:
            stored.comparison.add_integers(numbers, _by_row(job, rows, parts), form)
        else:
            stored.comparison.add(numbers, _restore(job, result))
        return parts

    @contextmanager
    def _seeded(self, storage: Storage) -> Iterator[None]:
        """Seed torch's generator for one tensor in one storage, if SDNQ draws from it, and use it alone."""
        if not storage.is_random:
            yield
            return
        seed = int.from_bytes(hashlib.sha256(f"{storage.source} {storage.key}".encode()).digest()[:4])
        with self._drawing, seeded_generator(seed, torch.device("cpu"), None):
            yield


def _keep(stored: StoredTensor, job: KeepJob, data: Bytes, arithmetic: PieceArithmetic) -> Mapping[str, NDArray[Any]]:
    """Round numbers as they are kept, and compare them; returns the only part."""
    target = job.kept.spec.dtype
    rounded, _ = arithmetic.round(job, target, data)
    if job.dtype in WEIGHT_DTYPES:
        stored.comparison.add(as_numbers(data, job.dtype), as_numbers(rounded, target))
    return {"": rounded}


def _by_row(job: QuantizeJob, rows: int, parts: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    """The parts of rows of a matrix, number after number of each row."""
    if job.method.kind is not Kind.COLUMNS:
        return parts
    return {**parts, "weight": np.ascontiguousarray(parts["weight"].reshape(-1, rows).T).reshape(-1)}


def _restore(job: QuantizeJob, result: QuantizedParts) -> NDArray[np.float32]:
    """What SDNQ restores of rows, one number after the other.

    Raises:
        UnsupportedCheckpoint: SDNQ cannot restore what it quantized.
    """
    try:
        restored = dequantize(result.dequantizer, result.parts)
    except QUANTIZING_ERRORS as error:
        raise UnsupportedCheckpoint(
            f"{job.tensor.file}: tensor {job.tensor.entry.name}: SDNQ cannot restore it from "
            f"{job.module.options['weights_dtype']}: {str(error) or repr(error)}",
            "Choose another dtype, or other options.",
        ) from error
    numbers: NDArray[np.float32] = restored.contiguous().reshape(-1).numpy()
    return numbers
