"""The weight level of ablation and search: what each storage of each tensor does to its numbers, and its bytes.

A tensor of the source is read once, in runs of rows, for all storages that are wanted of it. Each storage has the bytes
that ``convert`` writes for it. What is restored of them, as SDNQ's dequantizer restores it in float32, is compared with
the source as it is in the file; the figures are those of ``verify --against``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from converter.checkpoint.reader import TensorReader
from converter.checkpoint.source import Checkpoint
from converter.checkpoint.writer import writing
from converter.console import SILENT, Reporter
from converter.conversion.execution.arithmetic import PieceArithmetic
from converter.conversion.execution.budget import MemoryBudget
from converter.conversion.execution.jobs import QuantizeJob, piece_size
from converter.conversion.execution.work import budget_for
from converter.conversion.kernels.host import HOST
from converter.conversion.kernels.sdnq import one_torch_thread
from converter.conversion.kernels.selfcheck import methods_agree
from converter.conversion.options import ConvertOptions
from converter.measurement.sensitivity.figures import Figures, StorageFigures
from converter.measurement.sensitivity.measuring import Scanner
from converter.measurement.sensitivity.storage import Storage
from converter.measurement.sensitivity.tasks import Task, make_task
from converter.threads import run_in_threads


def scan(
    checkpoint: Checkpoint,
    wanted: Mapping[str, Sequence[Storage]],
    options: ConvertOptions | None = None,
    *,
    spool: Path | None = None,
    finished: Figures = MappingProxyType({}),
    note: Callable[[StorageFigures], object] = lambda _: None,
    reporter: Reporter = SILENT,
) -> dict[tuple[str, str], StorageFigures]:
    """Measure storages of the tensors of a checkpoint.

    The figures do not depend on the memory or on the number of threads. Where SDNQ draws random numbers (SVD,
    stochastic rounding), the generator is seeded for each tensor and storage, so that figures of one do not depend on
    the others. A conversion seeds it once, so that its bytes differ from these in what was drawn.

    Args:
        checkpoint: the source; it is not quantized.
        wanted: storages by tensor of the source, from ``storages`` of plans for this source. None of their recipes may
            let the weights decide dtypes.
        options: how numbers are treated, on how many threads, in how much memory; the CPU computes.
        spool: a folder where the parts of each quantized tensor are kept (``Storage.spool_file``), for this source and
            this treatment of numbers alone; None to keep none.
        finished: figures from an earlier scan of the same source, with the same treatment of numbers. They are not
            measured again, unless the spool lacks the file of a quantized tensor.
        note: is called with the figures of each storage as soon as they are known and its file is on the disk, from
            any thread.
        reporter: shows progress.

    Returns:
        The figures of all storages that are wanted.

    Raises:
        NonFiniteWeight: a tensor contains such numbers, and they are not allowed.
        UnsupportedCheckpoint: SDNQ cannot quantize a tensor in a storage.
        MemoryLimitError: a tensor needs more memory than is allowed.
        DiskError: the disk of the spool is full.
        OutputError: the spool cannot be written to.
        KeyboardInterrupt: the user stopped it; what was noted is finished.
    """
    options = options or ConvertOptions()
    found = {
        (source, storage.key): finished[source, storage.key]
        for source, storages in wanted.items()
        for storage in storages
        if (source, storage.key) in finished and _is_spooled(storage, spool)
    }
    tasks = _make_tasks(checkpoint, wanted, found.keys())
    if not tasks:
        return found
    workers = options.workers
    budget = budget_for(max(task.least_memory for task in tasks), options.memory)
    if spool is not None:
        with writing(spool):
            spool.mkdir(parents=True, exist_ok=True)
    total = sum(task.tensor.entry.bytes for task in tasks)
    with TensorReader() as reader, one_torch_thread(), reporter.progress("measuring weights", total) as progress:
        arithmetic = [PieceArithmetic(options, HOST) for _ in range(workers)]
        piece_bytes = piece_size(options, budget, workers)
        scanner = Scanner(reader, arithmetic, MemoryBudget(budget), piece_bytes, spool, note, progress)
        measured = run_in_threads(
            scanner.measure,
            tasks,
            workers=workers,
            name="scan",
            refresh=progress.refresh,
            stop=scanner.stop.set,
        )
    return found | {(figures.source, figures.key): figures for several in measured for figures in several}


def _is_spooled(storage: Storage, spool: Path | None) -> bool:
    """Whether the spool has what it should have of a storage."""
    return spool is None or storage.quantized is None or storage.spool_file(spool).is_file()


def _make_tasks(
    checkpoint: Checkpoint, wanted: Mapping[str, Sequence[Storage]], found: Collection[tuple[str, str]]
) -> list[Task]:
    """The tasks that are left, in the order of the source."""

    def make(*, use_fused: bool) -> list[Task]:
        made = [
            make_task(tensor, wanted[source], use_fused=use_fused)
            for source, tensor in checkpoint.tensors.items()
            if wanted.get(source)
        ]
        return [task for task in (task.without(found) for task in made) if task.wanted]

    tasks = make(use_fused=True)
    jobs = [wanted.job for task in tasks for wanted in task.wanted]
    chosen = [(job.module, job.method) for job in jobs if isinstance(job, QuantizeJob)]
    return tasks if methods_agree(chosen) else make(use_fused=False)
