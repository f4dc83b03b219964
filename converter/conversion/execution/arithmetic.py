"""What is computed with pieces of tensors: rounding, quantization, and the search for numbers that are not finite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.dtypes import BITS, WEIGHT_DTYPES
from converter.conversion.execution.jobs import Job, QuantizeJob
from converter.conversion.execution.pieces import Bytes
from converter.conversion.kernels import fused, searching
from converter.conversion.kernels.host import HOST, Host
from converter.conversion.options import ConvertOptions
from converter.conversion.planning.methods import OWN_KINDS, Kind
from converter.conversion.recipe.recipe import NEAREST
from converter.errors import NonFiniteWeight, UnsupportedCheckpoint

if TYPE_CHECKING:
    from converter.conversion.kernels.devices import Device
    from converter.conversion.kernels.moments import Moments
    from converter.conversion.kernels.sdnq import QuantizedParts


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


def refuse_other_parts(job: QuantizeJob, rows: int, results: Mapping[str, NDArray[Any]]) -> None:
    """Refuse results that are not those of the plan.

    Args:
        job: what was quantized.
        rows: how many of its rows.
        results: what they became, by part.

    Raises:
        UnsupportedCheckpoint: there are other parts, or other sizes.
    """
    fits = results.keys() == job.parts.keys() and all(
        results[part].nbytes == output.slot.bytes * rows // job.module.shape[0] for part, output in job.parts.items()
    )
    if not fits:
        raise UnsupportedCheckpoint(
            f"{job.tensor.file}: tensor {job.tensor.entry.name}: SDNQ returned other parts "
            f"than planned ({', '.join(results)}), which happens when an SVD fails",
            f"Keep this module: --set '{job.module.name}=keep'.",
        )


class Columns:
    """The parts of a transposed result, put together from those of runs of rows.

    Args:
        job: what is quantized, by ``Kind.COLUMNS``.
    """

    def __init__(self, job: QuantizeJob) -> None:
        self.parts = {
            part: np.empty(output.spec.shape, f"u{BITS[output.spec.dtype] // 8}") for part, output in job.parts.items()
        }
        """The bits of each number, by part."""

    def put(self, first: int, last: int, results: Mapping[str, NDArray[Any]]) -> None:
        """Add the results of a run of rows.

        Args:
            first: the first row.
            last: the row after the last one.
            results: the bytes of the parts of this run.
        """
        for part, whole in self.parts.items():
            whole[:, first:last] = results[part].view(whole.dtype).reshape(-1, last - first)


@dataclass
class PieceArithmetic:
    """Rounds and quantizes pieces of tensors, in buffers of its own; each worker has one.

    Args:
        options: how numbers are treated.
        device: where weights are quantized.
    """

    options: ConvertOptions
    device: Host | Device
    _buffers: dict[str, Bytes] = field(default_factory=dict)

    def buffer(self, name: str, size: int) -> Bytes:
        """A buffer that is used again; fresh memory costs a page fault every 4 KiB."""
        found = self._buffers.get(name)
        if found is None or found.size < size:
            found = self._buffers[name] = self.device.buffer(size)
        return found[:size]

    def count_nonfinite(self, job: Job, data: Bytes, *, as_bfloat16: bool) -> int:
        """Count numbers of a piece that are not finite.

        Args:
            job: whose piece.
            data: numbers of the job's dtype.
            as_bfloat16: whether those that overflow bfloat16 count, too.

        Raises:
            NonFiniteWeight: there are some, and they are not allowed.
        """
        limit = fused.OVERFLOWS_BFLOAT16 if as_bfloat16 else fused.INFINITE
        # Ten times as fast as torch's count.
        if job.dtype in WEIGHT_DTYPES and fused.largest_magnitude(fused.widen(data, job.dtype)) < limit:
            return 0
        # Imported here: it imports torch.
        from converter.conversion.kernels.sdnq import count_nonfinite

        count = count_nonfinite(data, job.dtype, as_bfloat16=as_bfloat16)
        refuse_nonfinite(job, count, self.options)
        return count

    def round(self, job: Job, target: str, data: Bytes) -> tuple[Bytes, int]:
        """Convert numbers of a piece to another dtype; also count those that are not finite.

        Args:
            job: whose piece.
            target: the dtype to convert to, by safetensors' name.
            data: numbers of the job's dtype.

        Raises:
            NonFiniteWeight: there are some, and they are not allowed.
        """
        source = job.dtype
        if source not in WEIGHT_DTYPES:
            return data, 0
        bits = fused.widen(data, source)
        rounded = self.buffer("rounded", bits.size * 2)
        largest = fused.round_to_bfloat16(bits, rounded.view(np.uint16))
        flawed = 0
        if largest >= (fused.OVERFLOWS_BFLOAT16 if target == "BF16" else fused.INFINITE):
            flawed = self.count_nonfinite(job, data, as_bfloat16=target == "BF16")
        if target == source:
            return data, flawed
        if target == "F32":
            return bits.view(np.uint8), flawed
        if flawed:
            # A NaN has many bit patterns; this writes the one that torch chooses.
            from converter.conversion.kernels.sdnq import as_bytes, as_tensor

            return as_bytes(as_tensor(data, source, (bits.size,)).bfloat16()), flawed
        return rounded, 0

    def run_kernel(
        self, job: QuantizeJob, data: Bytes, moments: Moments | None = None
    ) -> dict[str, NDArray[Any]] | None:
        """Quantize rows by lensconv's kernel; None when they contain numbers that it does not handle.

        Args:
            job: whose method is one of ``OWN_KINDS``.
            data: its rows, in the job's dtype.
            moments: of the inputs, where codes are calibrated.

        Returns:
            SDNQ's parts by name, in buffers that the next call uses again.
        """
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
                buffer=self.buffer,
            )
        parts, largest = fused.quantize_uint4(
            fused.widen(data, job.dtype),
            round_weights=not from_float32,
            round_scales=job.method.round_scales,
            buffer=self.buffer,
        )
        if largest >= (fused.INFINITE if from_float32 else fused.OVERFLOWS_BFLOAT16):
            return None
        if job.method.rounding != NEAREST:
            searching.improve_uint4(
                data,
                job.dtype,
                parts,
                channels=job.module.shape[1],
                round_scales=job.method.round_scales,
                moments=moments,
            )
        return parts

    def run_sdnq(self, job: QuantizeJob, rows: int, data: Bytes, moments: Moments | None = None) -> QuantizedParts:
        """Quantize rows by SDNQ.

        Args:
            job: whose rows.
            rows: how many.
            data: their numbers, in the job's dtype.
            moments: of the inputs, where codes are calibrated.

        Raises: what ``quantize_with_sdnq`` raises.
        """
        # Imported here: it imports torch.
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
        if is_nearest:
            return result
        from converter.conversion.kernels.regrouping import improve_scales

        return improve_scales(result, data, job.dtype, shape, moments)
