"""What there is to do for each tensor of the source, and how much memory it takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import lcm, prod
from pathlib import Path

from converter.checkpoint.dtypes import BITS
from converter.checkpoint.layout import Layout, Slot, TensorSpec
from converter.checkpoint.source import Checkpoint, SourceTensor
from converter.conversion.planning.methods import ROWS_WORKING_BYTES, WHOLE_WORKING_BYTES, Kind, Method, choose_method
from converter.conversion.planning.plan import Plan, PlannedModule

#: Bytes of the source that a worker takes at a time: large enough to hide the cost of a call, small enough for a cache.
PIECE_BYTES = 4 << 20
#: Bytes beside its source that lensconv's own loops take for one number, at most: the widened copy and the results.
OWN_WORKING_BYTES = 8
#: SDNQ looks at the number of rows to decide about quantized matmul; runs of at least so many, in multiples of it,
#: decide as the whole tensor does (``check_quantized_matmul_is_allowed`` of SDNQ 0.2.8).
MATMUL_ROWS = 32
#: Memory that conversions use for pieces unless a tensor needs more, or the user says otherwise.
DEFAULT_BUDGET = 256_000_000


@dataclass(frozen=True)
class Output:
    """One tensor of the output and its place."""

    spec: TensorSpec
    slot: Slot


@dataclass(frozen=True)
class KeepJob:
    """A tensor that is copied, rounded to its new dtype."""

    tensor: SourceTensor
    kept: Output

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what is made."""
        return (self.kept.spec.name,)

    @property
    def working_bytes(self) -> int:
        """Memory that one number takes while it is converted, source included."""
        return element_bytes(self.tensor) + OWN_WORKING_BYTES

    @property
    def largest_share(self) -> int:
        """Memory, in bytes, without which it cannot be converted: one number's."""
        return self.working_bytes


@dataclass(frozen=True)
class QuantizeJob:
    """A weight that becomes SDNQ's parts."""

    tensor: SourceTensor
    parts: Mapping[str, Output]
    """Where they go, by part."""
    module: PlannedModule
    method: Method
    spooled: Path | None = None
    """A file that holds the parts already."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what is made."""
        return tuple(output.spec.name for output in self.parts.values())

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of the source."""
        return self.tensor.entry.bytes // self.module.shape[0]

    @property
    def working_bytes(self) -> int:
        """Memory that one number takes while it is converted, source included."""
        beside = {
            Kind.FUSED: OWN_WORKING_BYTES,
            Kind.ROWS: ROWS_WORKING_BYTES,
            Kind.WHOLE: WHOLE_WORKING_BYTES,
        }
        return element_bytes(self.tensor) + beside[self.method.kind]

    @property
    def largest_share(self) -> int:
        """Memory, in bytes, without which it cannot be converted: that of its longest run of rows."""
        if self.spooled is not None:
            return 0
        rows = max(last - first for first, last in self.row_runs(1))
        return rows * self._row_elements * self.working_bytes

    def row_runs(self, piece_bytes: int) -> Iterator[tuple[int, int]]:
        """Runs of rows that are quantized at a time, as (first, after last).

        Args:
            piece_bytes: of the source, that a run should not exceed.
        """
        rows = self.module.shape[0]
        if self.method.kind is Kind.WHOLE:
            yield 0, rows
            return
        step = 1 if self.method.kind is Kind.FUSED else lcm(MATMUL_ROWS, self.method.rows_multiple)
        step *= max(1, piece_bytes // max(1, step * self.row_bytes))
        start = 0
        while start < rows:
            stop = min(start + step, rows)
            # A rest that is too short for SDNQ to judge by joins the run before it.
            if self.method.kind is Kind.ROWS and rows - stop < MATMUL_ROWS:
                stop = rows
            yield start, stop
            start = stop

    @property
    def _row_elements(self) -> int:
        return prod(self.module.shape[1:])


Job = KeepJob | QuantizeJob


def element_bytes(tensor: SourceTensor) -> int:
    """Bytes of one number of a tensor; pieces are cut between numbers."""
    return max(1, BITS[tensor.entry.dtype] // 8)


def make_jobs(
    plan: Plan,
    layout: Layout,
    checkpoint: Checkpoint,
    *,
    use_fused: bool = True,
    spooled: Mapping[str, Path] | None = None,
) -> list[Job]:
    """The jobs of a plan, in the order in which their results lie in the files.

    Args:
        plan: what to make.
        layout: where it goes.
        checkpoint: what it is made from.
        use_fused: whether lensconv's own kernel may be used.
        spooled: files that hold parts already, by the source name of their weight.
    """
    files = {file.name: number for number, file in enumerate(layout.files)}
    parts: dict[str, dict[str, Output]] = {}
    placed: list[tuple[tuple[int, int], Job]] = []

    def place(output: Output) -> tuple[int, int]:
        return files[output.slot.file], output.slot.offset

    for tensor in plan.tensors:
        output = Output(tensor.spec, layout.slots[tensor.spec.name])
        if tensor.part:
            parts.setdefault(tensor.source, {})[tensor.part] = output
        else:
            placed.append((place(output), KeepJob(checkpoint.tensors[tensor.source], output)))
    for source, outputs in parts.items():
        module = plan.modules[source]
        specs = {part: output.spec for part, output in outputs.items()}
        job = QuantizeJob(
            checkpoint.tensors[source],
            outputs,
            module,
            choose_method(module, specs, use_fused=use_fused),
            (spooled or {}).get(source),
        )
        placed.append((min(map(place, outputs.values())), job))
    return [job for _, job in sorted(placed, key=lambda item: item[0])]


def needed_budget(jobs: Sequence[Job]) -> int:
    """The least memory, in bytes, with which every job can run."""
    return max((job.largest_share for job in jobs), default=0)
