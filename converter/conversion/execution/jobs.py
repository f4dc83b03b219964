"""A job for each tensor of the source: what it becomes, in which pieces, and the memory that they take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import lcm, prod
from pathlib import Path

from converter.checkpoint.dtypes import BITS
from converter.checkpoint.layout import Slot, TensorSpec
from converter.checkpoint.reader import ranges
from converter.checkpoint.source import SourceTensor
from converter.conversion.adapters.additions import ADDED_BYTES, ADDED_DTYPE, BLOCK_ROWS, Addition
from converter.conversion.options import ConvertOptions
from converter.conversion.planning.methods import OWN_KINDS, ROWS_WORKING_BYTES, WHOLE_WORKING_BYTES, Kind, Method
from converter.conversion.planning.plan import PlannedModule
from converter.conversion.recipe.recipe import CALIBRATED, NEAREST, SCALE

#: Bytes of the source that a worker takes at a time: large enough to hide the cost of a call, small enough for a cache.
PIECE_BYTES = 4 << 20
#: The same on a device other than the CPU, where each piece costs some twenty calls and a wait.
DEVICE_PIECE_BYTES = 8 << 20
#: Pieces do not get smaller than this, however little memory is allowed.
MINIMUM_PIECE_BYTES = 64 << 10
#: The most bytes that lensconv's own loops take for one number besides its source: the widened copy and the results.
OWN_WORKING_BYTES = 8
#: The same of lensconv's kernel for devices: besides the results, what torch's operations take, which on a CUDA device
#: is memory of the device; measured on the CPU.
DEVICE_WORKING_BYTES = 20
#: The most bytes that the search for scales takes for one number besides: the codes, the groups side by side, scales
#: and zero points in float32.
SEARCH_WORKING_BYTES = 16
#: The same where codes are calibrated: in addition errors, products, and two restored weights.
CALIBRATION_WORKING_BYTES = 56
#: The most bytes that second moments take for each of their numbers: themselves, their root, and what factorising them
#: in float64 takes; measured, rounded up.
MOMENTS_BYTES = 24
#: Rows that are calibrated at a time, however much memory there is.
CALIBRATED_ROWS = 256
#: The number of rows decides whether SDNQ uses quantized matmul; for runs of at least so many, in multiples of it,
#: it decides as for the whole tensor (``check_quantized_matmul_is_allowed`` of SDNQ 0.2.8).
MATMUL_ROWS = 32
_WORKING_BYTES = {
    Kind.FUSED: OWN_WORKING_BYTES,
    Kind.DEVICE: DEVICE_WORKING_BYTES,
    Kind.ROWS: ROWS_WORKING_BYTES,
    Kind.COLUMNS: ROWS_WORKING_BYTES,
    Kind.WHOLE: WHOLE_WORKING_BYTES,
}
_CHOOSING_BYTES = {NEAREST: 0, SCALE: SEARCH_WORKING_BYTES, CALIBRATED: CALIBRATION_WORKING_BYTES}


@dataclass(frozen=True)
class Output:
    """One tensor of the output and its slot."""

    spec: TensorSpec
    slot: Slot


@dataclass(frozen=True)
class _TensorJob:
    """A tensor of the source that becomes tensors of the output."""

    tensor: SourceTensor
    addition: Addition | None = field(default=None, kw_only=True)
    """What adapters add to it before it is rounded or quantized."""

    @property
    def dtype(self) -> str:
        """The dtype of the numbers that are rounded or quantized."""
        return self.tensor.entry.dtype if self.addition is None else ADDED_DTYPE

    @property
    def source_bytes(self) -> int:
        """Memory that one number takes before it is rounded or quantized."""
        return element_bytes(self.tensor) + (ADDED_BYTES if self.addition else 0)

    @property
    def fixed_bytes(self) -> int:
        """Memory that is taken from the first number to the last."""
        return self.addition.fixed_bytes if self.addition else 0


@dataclass(frozen=True)
class KeepJob(_TensorJob):
    """A tensor that is copied, rounded to its new dtype."""

    kept: Output

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what is made."""
        return (self.kept.spec.name,)

    @property
    def working_bytes(self) -> int:
        """Memory that one number takes while it is converted, source included."""
        return self.source_bytes + OWN_WORKING_BYTES

    @property
    def can_continue(self) -> bool:
        """Whether a part of it that is in its slot stays valid in another run."""
        return self.addition is None

    @property
    def step_numbers(self) -> int:
        """Numbers that are converted together: one, or those of a row."""
        return self.addition.row_numbers if self.addition else 1

    @property
    def largest_share(self) -> int:
        """The least memory, in bytes, with which it can be converted: that of its shortest piece."""
        return self.fixed_bytes + self.step_numbers * self.working_bytes

    def ranges(self, piece_bytes: int, first: int = 0) -> Iterator[tuple[int, int]]:
        """Pieces that are converted at a time, as (first byte, after last byte) of the source.

        Args:
            piece_bytes: the most bytes in a piece, where possible.
            first: the first byte of the first piece, where one ended in another run.
        """
        step = self.step_numbers * element_bytes(self.tensor)
        step *= _in_blocks(max(1, piece_bytes // max(1, step)), self.addition)
        return ((start + first, stop + first) for start, stop in ranges(self.tensor.entry.bytes - first, step))


@dataclass(frozen=True)
class QuantizeJob(_TensorJob):
    """A weight that becomes SDNQ's parts."""

    parts: Mapping[str, Output]
    """The tensors of the output, by part."""
    module: PlannedModule
    method: Method
    spooled: Path | None = None
    """A file that contains the parts already."""
    moments: SourceTensor | None = None
    """Second moments of the inputs, if its codes are calibrated."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what is made."""
        return tuple(output.spec.name for output in self.parts.values())

    @property
    def can_continue(self) -> bool:
        """Whether rows of it that are in their slots stay valid in another run."""
        in_rows = self.method.kind in (*OWN_KINDS, Kind.ROWS)
        return in_rows and self.addition is None and self.method.rounding != CALIBRATED

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of the source."""
        return self.tensor.entry.bytes // self.module.shape[0]

    @property
    def working_bytes(self) -> int:
        """Memory that one number takes while it is converted, source included."""
        return self.source_bytes + _WORKING_BYTES[self.method.kind] + _CHOOSING_BYTES[self.method.rounding]

    @property
    def fixed_bytes(self) -> int:
        """Memory that is taken from the first number to the last."""
        result = sum(output.spec.bytes for output in self.parts.values()) if self.method.kind is Kind.COLUMNS else 0
        moments = prod(self.moments.entry.shape) * MOMENTS_BYTES if self.moments else 0
        return super().fixed_bytes + result + moments

    @property
    def largest_share(self) -> int:
        """The least memory, in bytes, with which it can be converted: that of its longest run of rows."""
        rows = max(last - first for first, last in self.row_runs(1))
        return self.fixed_bytes + rows * prod(self.module.shape[1:]) * self.working_bytes

    def row_runs(self, piece_bytes: int, first: int = 0) -> Iterator[tuple[int, int]]:
        """Runs of rows that are quantized at a time, as (first, after last).

        Args:
            piece_bytes: the most bytes of the source in a run, where possible.
            first: the first row, where a run ended in another run of the program.
        """
        rows = self.module.shape[0]
        if self.method.kind is Kind.WHOLE:
            yield 0, rows
            return
        if self.method.rounding == CALIBRATED:
            # Products of matrices of another number of rows may have other bits.
            piece_bytes = CALIBRATED_ROWS * self.row_bytes
        step = 1 if self.method.kind in OWN_KINDS else lcm(MATMUL_ROWS, self.method.rows_multiple)
        step *= max(1, piece_bytes // max(1, step * self.row_bytes))
        step = _in_blocks(step, self.addition if self.method.kind in OWN_KINDS else None)
        start = first
        while start < rows:
            stop = min(start + step, rows)
            # A last run that is too short for SDNQ's decision joins the run before it.
            if self.method.kind not in OWN_KINDS and rows - stop < MATMUL_ROWS:
                stop = rows
            yield start, stop
            start = stop


Job = KeepJob | QuantizeJob


def _in_blocks(rows: int, addition: Addition | None) -> int:
    """So many rows, or fewer if they then are whole blocks, so that no block of a product is computed twice."""
    return rows - rows % BLOCK_ROWS if addition and rows > BLOCK_ROWS else rows


def largest_piece(options: ConvertOptions) -> int:
    """Bytes of the source that a worker takes at a time, where there is enough memory."""
    return PIECE_BYTES if options.is_on_cpu else DEVICE_PIECE_BYTES


def piece_size(options: ConvertOptions, budget: int, workers: int) -> int:
    """Bytes of the source that a worker takes at a time.

    Args:
        options: how to convert.
        budget: the most bytes in memory at a time.
        workers: how many threads share it.
    """
    return min(largest_piece(options), max(MINIMUM_PIECE_BYTES, budget // (4 * workers)))


def kinds_of(jobs: Iterable[Job]) -> set[Kind]:
    """The kinds of methods by which jobs quantize."""
    return {job.method.kind for job in jobs if isinstance(job, QuantizeJob)}


def element_bytes(tensor: SourceTensor) -> int:
    """Bytes of one number of a tensor; pieces are cut between numbers."""
    return max(1, BITS[tensor.entry.dtype] // 8)
