"""Converting without writing: the sha256 of each tensor of the output, in place of its bytes."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from typing import TYPE_CHECKING, Any

from converter.checkpoint.journal import Finished
from converter.checkpoint.layout import Layout
from converter.console import Reporter
from converter.conversion.execution.running import ordered_jobs, run_jobs
from converter.conversion.execution.streaming import Streams
from converter.conversion.execution.work import Work, memory_budget
from converter.conversion.execution.workers import WorkerPool
from converter.conversion.kernels.host import HOST, Host
from converter.conversion.request import Target
from converter.hub.shadow import Shadow

if TYPE_CHECKING:
    from converter.conversion.kernels.devices import Device


class TensorSums:
    """Takes the bytes of a layout's tensors, those of each tensor in order, and keeps their sums.

    Args:
        layout: of the output.
    """

    def __init__(self, layout: Layout) -> None:
        found: dict[str, list[tuple[int, str]]] = {file.name: [] for file in layout.files}
        for name, slot in layout.slots.items():
            if slot.bytes:
                found[slot.file].append((slot.offset, name))
        self._starts = {file: sorted(starts) for file, starts in found.items()}
        self._sums = {name: hashlib.sha256() for name in layout.slots}
        self._next = {name: slot.offset for name, slot in layout.slots.items()}

    def write(self, file: str, offset: int, data: bytes | memoryview) -> None:
        """Add bytes at an offset of a file to the sum of the tensor that is there; each worker has other tensors."""
        view = memoryview(data).cast("B") if len(data) else memoryview(b"")
        if not view:
            return
        starts = self._starts[file]
        _, name = starts[bisect_right(starts, offset, key=lambda start: start[0]) - 1]
        if offset != self._next[name]:
            raise ValueError(f"{name}: bytes at {offset} do not follow those before {self._next[name]}")
        self._sums[name].update(view)
        self._next[name] += len(view)

    def digests(self) -> dict[str, str]:
        """The sha256 of each tensor, in hexadecimal digits, by name."""
        return {name: checksum.hexdigest() for name, checksum in self._sums.items()}


class _Nothing:
    """Notes nothing, as nothing continues."""

    @property
    def begun(self) -> Finished:
        """Nothing."""
        return {}

    def note(self, tensor: str, **facts: Any) -> None:
        """Do nothing."""

    def note_begun(self, tensor: str, **facts: Any) -> None:
        """Do nothing."""

    def finish_slot(self, *names: str) -> None:
        """Do nothing."""


def sum_output(
    target: Target, work: Work, reporter: Reporter, *, device: Host | Device = HOST, shadow: Shadow | None = None
) -> dict[str, str]:
    """Convert, and return the sha256 of each tensor of the output by name; nothing is written.

    Args:
        target: source, recipe and options; dtypes must not depend on weights.
        work: what to do.
        reporter: shows progress.
        device: where weights are quantized.
        shadow: of the source, if it is on the Hub.

    Raises:
        LensconvError: a tensor cannot be converted, or the Hub sends other bytes than it has recorded.
        KeyboardInterrupt: the user stopped it.
    """
    sums, nothing = TensorSums(work.layout), _Nothing()
    jobs = ordered_jobs(target, work)
    streams = Streams(target, shadow, nothing, reporter) if shadow is not None else None
    with reporter.progress("converting", sum(job.tensor.entry.bytes for job in jobs)) as progress:
        pool = WorkerPool(nothing, nothing, sums, progress, target.options, device)
        run_jobs(target, work, jobs, {}, pool, memory_budget(work, target.options.memory), streams)
    return sums.digests()
