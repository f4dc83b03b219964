"""Workers that take jobs from a queue, one tensor after the other.

They are threads, not processes: reading, writing, hashing and both kinds of kernels release the interpreter's lock. A
tensor is noted in the journal when its last byte has been written; nothing else is kept about it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from converter.checkpoint.reader import TensorReader
from converter.checkpoint.staging import StagedComponent
from converter.checkpoint.writer import SlotWriter, writing
from converter.console import Progress
from converter.conversion.execution.arithmetic import PieceArithmetic
from converter.conversion.execution.budget import MemoryBudget
from converter.conversion.execution.converting import Stopped, TensorConverter
from converter.conversion.execution.hashing import FollowingHasher
from converter.conversion.execution.jobs import Job, QuantizeJob, piece_size
from converter.conversion.kernels.host import Host
from converter.conversion.options import ConvertOptions
from converter.threads import run_in_threads

if TYPE_CHECKING:
    from converter.conversion.kernels.devices import Device


@dataclass
class WorkerPool:
    """Threads that work through a list of jobs.

    Args:
        staged: notes every finished tensor in its journal.
        hasher: is notified of every filled slot.
        writer: writes the slots.
        progress: shows the user what is done.
        options: how numbers are treated.
        device: where weights are quantized.
        random_state: where SDNQ uses random numbers, what to note after each tensor so that the next run can continue.
    """

    staged: StagedComponent
    hasher: FollowingHasher
    writer: SlotWriter
    progress: Progress
    options: ConvertOptions
    device: Host | Device
    random_state: Callable[[], str] | None = None
    _jobs: queue.SimpleQueue[Job] = field(default_factory=queue.SimpleQueue)
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self, jobs: Iterable[Job], *, workers: int, budget: int) -> None:
        """Run all jobs, and return when the last one is done.

        Args:
            jobs: in the order in which to start them.
            workers: how many threads.
            budget: the most bytes in memory at a time.

        Raises:
            LensconvError: a tensor cannot be converted, or the output cannot be written.
            KeyboardInterrupt: the user stopped it; unfinished tensors stay unfinished.
        """
        for job in jobs:
            self._jobs.put(job)
        shared = MemoryBudget(budget)
        piece_bytes = piece_size(self.options, budget, workers)
        with TensorReader() as reader, writing(self.writer.folder):
            converters = [
                TensorConverter(
                    reader,
                    self.writer,
                    PieceArithmetic(self.options, self.device),
                    shared,
                    piece_bytes,
                    self.progress,
                    self._stop,
                )
                for _ in range(workers)
            ]
            run_in_threads(
                self._work,
                converters,
                workers=workers,
                name="worker",
                refresh=self.progress.refresh,
                stop=self._stop.set,
            )

    def _work(self, converter: TensorConverter) -> None:
        with self.device.used():
            self._convert_jobs(converter)

    def _convert_jobs(self, converter: TensorConverter) -> None:
        while not self._stop.is_set():
            try:
                job = self._jobs.get_nowait()
                found = converter.convert(job)
            except (queue.Empty, Stopped):
                return
            facts: dict[str, Any] = {"outputs": len(job.outputs), **found}
            if self.random_state is not None and isinstance(job, QuantizeJob):
                facts["random_state"] = self.random_state()
            self.staged.note(job.tensor.entry.name, **facts)
            self.hasher.finish_slot(*job.outputs)
