"""Workers that take batches of jobs from a queue, one tensor after the other.

They are threads, not processes: reading, writing, hashing and both kinds of kernels release the interpreter's lock. A
tensor is noted in the journal when its last byte has been written; nothing else is kept about it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from converter.checkpoint.reader import TensorReader
from converter.console import Progress
from converter.conversion.execution.arithmetic import PieceArithmetic
from converter.conversion.execution.budget import MemoryBudget
from converter.conversion.execution.converting import Stopped, TensorConverter
from converter.conversion.execution.jobs import Job, QuantizeJob, piece_size
from converter.conversion.execution.sinks import Follower, Journal, Slots
from converter.conversion.kernels.host import Host
from converter.conversion.options import ConvertOptions
from converter.threads import run_in_threads

if TYPE_CHECKING:
    from converter.conversion.kernels.devices import Device


@dataclass(frozen=True)
class Batch:
    """Jobs that one worker does one after the other."""

    jobs: Sequence[Job]
    open_reader: Callable[[], AbstractContextManager[TensorReader]]
    """Opens what reads their tensors."""
    finish: Callable[[TensorReader], None] = lambda _: None
    """Called with the reader after the last job."""
    begun: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What was noted about a tensor that continues where an interrupted run stopped."""


@dataclass
class WorkerPool:
    """Threads that work through batches of jobs.

    Args:
        staged: notes every finished tensor in its journal.
        hasher: is notified of every filled slot.
        writer: writes the slots.
        progress: shows the user what is done.
        options: how numbers are treated.
        device: where weights are quantized.
        random_state: where SDNQ uses random numbers, what to note after each tensor so that the next run can continue.
        halt: is called when the work stops, to end requests that wait.
    """

    staged: Journal
    hasher: Follower
    writer: Slots
    progress: Progress
    options: ConvertOptions
    device: Host | Device
    random_state: Callable[[], str] | None = None
    halt: Callable[[], None] = lambda: None
    _batches: queue.SimpleQueue[Batch] = field(default_factory=queue.SimpleQueue)
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self, batches: Iterable[Batch], *, workers: int, budget: int) -> None:
        """Run all jobs, and return when the last one is done.

        Args:
            batches: in the order in which to start them.
            workers: how many threads.
            budget: the most bytes in memory at a time.

        Raises:
            LensconvError: a tensor cannot be converted, or the output cannot be written.
            KeyboardInterrupt: the user stopped it; unfinished tensors stay unfinished.
        """
        for batch in batches:
            self._batches.put(batch)
        shared = MemoryBudget(budget)
        piece_bytes = piece_size(self.options, budget, workers)
        converters = [
            TensorConverter(
                self.writer,
                PieceArithmetic(self.options, self.device),
                shared,
                piece_bytes,
                self.progress,
                self._stop,
                self.staged.note_begun,
            )
            for _ in range(workers)
        ]
        run_in_threads(
            self._work,
            converters,
            workers=workers,
            name="worker",
            refresh=self.progress.refresh,
            stop=self._halt,
        )

    def _halt(self) -> None:
        self._stop.set()
        self.halt()

    def _work(self, converter: TensorConverter) -> None:
        with self.device.used(), suppress(queue.Empty, Stopped):
            while not self._stop.is_set():
                batch = self._batches.get_nowait()
                with batch.open_reader() as reader:
                    for job in batch.jobs:
                        begun = batch.begun.get(job.tensor.entry.name)
                        facts = converter.convert(job, reader, begun)
                        self._note(job, {**facts, **reader.facts()})
                    batch.finish(reader)

    def _note(self, job: Job, found: Mapping[str, Any]) -> None:
        """Note that a tensor is finished, and what was found."""
        facts: dict[str, Any] = {"outputs": len(job.outputs), **found}
        if self.random_state is not None and isinstance(job, QuantizeJob):
            facts["random_state"] = self.random_state()
        self.staged.note(job.tensor.entry.name, **facts)
        self.hasher.finish_slot(*job.outputs)
