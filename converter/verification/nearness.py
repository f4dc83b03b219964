"""How much of an error quantization explains. A weight with a larger error is damaged, or was made from another source.

Integers of up to eight bits are judged group by group, by their own scales: SDNQ takes the nearest code, so that no
number is off by more than half a step. Roundings of the source, of the result and of zero points are added to that;
they are relative to the weight. Over all such dtypes of SDNQ 0.2.8, with and without matmul, SVD, rotation,
one scale a group, row or tensor, scales in F32, BF16 and F16, and weights that are normal, heavy-tailed, sparse,
constant, zero, offset, or scaled by 1e-30 and 1e37, the rms error of a group came to at most 0.99 of
``0.5 * scale + 2**-6 * rms(weight)``, and to 0.61 of the same with one whole step for stochastic rounding. A scale may
be smaller than SDNQ's, so that it clips the ends of a group and lowers its error; then SDNQ's step, which follows from
the source, bounds the error.

Other formats have no such bound: SDNQ's own uint10 and float4_e1m3fnu are at 6.6 and -1.9 dB for normal weights, and
below -9 dB for sparse ones, so that no ratio in dB separates good from bad. For these, SDNQ quantizes the source once
more, and the error is compared with the error of that result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from converter.conversion.planning.rounding import MOST_STEPS
from converter.libraries import load_library
from converter.verification.dequantizing import dequantize

#: Largest rms error of the numbers that share a scale, in steps; with a tenth to spare.
STEPS, STOCHASTIC_STEPS = 0.55, 1.1
#: The same of codes that make up for each other's errors; ``calibrate`` allows a tenth less.
CALIBRATED_STEPS = 1.1 * MOST_STEPS
#: Error that roundings may add, as a part of the weight's rms: four roundings to bfloat16.
ROUNDING = 2.0**-6
#: Widest integers that SDNQ quantizes without overflow; its uint9 to uint15 have one code too many.
_MOST_BITS = 8
#: Largest rms error of other formats, as a multiple of what SDNQ makes: 6 dB. Roundings at random, random projections
#: and shorter searches for a codebook stay far below it.
REPEATED = 2.0
#: Steps of SDNQ's search for a codebook; the first few have most of the effect of 24.
CODEBOOK_STEPS = 4


@dataclass(frozen=True)
class Nearness:
    """The errors of a weight, compared with those that its format explains."""

    excess: float
    """The error as a multiple of what quantization explains; more than one is too far."""
    max_error_steps: float | None
    """The largest error in steps of its own scale; None where a scale is not a step of the weight, or is zero."""


def compare_errors(
    dequantizer: Any,
    parts: Mapping[str, torch.Tensor],
    restored: torch.Tensor,
    original: torch.Tensor,
    *,
    is_calibrated: bool = False,
) -> Nearness:
    """Compare the errors of a weight with those that its format explains.

    Args:
        dequantizer: SDNQ's, of the module.
        parts: its tensors.
        restored: the weight that SDNQ makes of them.
        original: the weight of the source, of the same shape.
        is_calibrated: whether its codes make up for each other's errors (``rounding = "calibrated"``).
    """
    has_steps = dequantizer.is_integer and not dequantizer.use_codebook and "scale_2" not in parts
    if not has_steps or dequantizer.num_bits > _MOST_BITS:
        excess = _excess_over_sdnq(dequantizer, parts, restored, original)
        return Nearness(excess, _Groups(dequantizer, parts, restored, original).max_steps() if has_steps else None)
    groups = _Groups(dequantizer, parts, restored, original)
    return Nearness(groups.excess(CALIBRATED_STEPS if is_calibrated else None), groups.max_steps())


class _Groups:
    """Errors and weights in the shape in which SDNQ spreads scales over them."""

    def __init__(
        self, dequantizer: Any, parts: Mapping[str, torch.Tensor], restored: torch.Tensor, original: torch.Tensor
    ) -> None:
        self._dequantizer = dequantizer
        scale, shape = parts["scale"], tuple(dequantizer.quantized_weight_shape)
        if dequantizer.use_quantized_matmul and not dequantizer.re_quantize_for_matmul and not dequantizer.is_packed:
            # The weight is stored transposed, and its scales too.
            scale, shape = scale.t(), (shape[1], shape[0])
        if 1 not in scale.shape:
            # Every number has a scale of its own.
            scale, shape = scale.unsqueeze(-1), (*shape, 1)
        self._error = (restored.float() - original.float()).reshape(shape)
        self._weight = original.float().reshape(shape)
        self._step = scale.abs().double()
        self._shared = [axis for axis, size in enumerate(scale.shape) if size == 1]
        self._is_plain = not (dequantizer.use_hadamard or "svd_up" in parts)

    def max_steps(self) -> float | None:
        """The largest error in steps of its own scale; None with a rotation, or when all scales are zero."""
        if self._dequantizer.use_hadamard:
            return None
        largest = self._error.abs().amax(self._shared, keepdim=True).double()
        steps = (largest / self._step)[self._step > 0]
        return float(steps.max()) if steps.numel() else None

    def excess(self, steps: float | None) -> float:
        """The largest rms error of a group as a multiple of what quantization explains.

        Args:
            steps: what it explains, in steps; by default what it does for codes that are chosen one by one.
        """
        # Norms of groups of n numbers are sqrt(n) times as large as their rms.
        step = torch.maximum(self._step, self._sdnqs_step()) if self._is_plain else self._step
        step = step * math.sqrt(self._error.numel() / self._step.numel())
        error, weight = self._norms(self._error), self._norms(self._weight)
        if self._dequantizer.use_hadamard:
            # A rotation mixes the groups and keeps the sum of squares.
            step, error, weight = (norms.norm() for norms in (step, error, weight))
        if steps is None:
            steps = STOCHASTIC_STEPS if self._dequantizer.use_stochastic_rounding else STEPS
        excess = error / (steps * step + ROUNDING * weight)
        return float(torch.where(error == 0, 0.0, excess).max())

    def _sdnqs_step(self) -> torch.Tensor:
        """The step with which no number of a group is clipped."""
        weight, bits = self._weight, self._dequantizer.num_bits
        if self._dequantizer.is_unsigned:
            span = weight.amax(self._shared, keepdim=True).double() - weight.amin(self._shared, keepdim=True)
            return span / (2**bits - 1)
        return weight.abs().amax(self._shared, keepdim=True).double() / (2 ** (bits - 1) - 1)

    def _norms(self, tensor: torch.Tensor) -> torch.Tensor:
        # Squares of float32 leave its range, unless the largest number is one; in float64 they take ten times as long.
        unit = tensor.abs().amax().clamp_min(torch.finfo(torch.float32).tiny)
        norms: torch.Tensor = torch.linalg.vector_norm(tensor / unit, dim=self._shared, keepdim=True)
        return norms.double() * unit.double()


def _excess_over_sdnq(
    dequantizer: Any, parts: Mapping[str, torch.Tensor], restored: torch.Tensor, original: torch.Tensor
) -> float:
    """The rms error as a multiple of the one that quantizing the source once more explains."""
    _, again = load_library("sdnq.quantizer").sdnq_quantize_layer_weight(
        original.bfloat16(),
        layer_class_name=dequantizer.layer_class_name,
        weights_dtype=dequantizer.weights_dtype,
        scale_dtype=dequantizer.scale_dtype,
        zero_point_dtype=dequantizer.zero_point_dtype,
        quantized_matmul_dtype=dequantizer.quantized_matmul_dtype,
        group_size=dequantizer.group_size,
        hadamard_group_size=dequantizer.hadamard_group_size,
        svd_rank=dequantizer.svd_rank,
        svd_steps=dequantizer.svd_steps,
        codebook_steps=CODEBOOK_STEPS,
        use_svd="svd_up" in parts,
        use_hadamard=dequantizer.use_hadamard,
        use_codebook=dequantizer.use_codebook,
        use_codebook_scale=dequantizer.use_codebook_scale,
        use_quantized_matmul=dequantizer.use_quantized_matmul,
        use_stochastic_rounding=dequantizer.use_stochastic_rounding,
        dequantize_fp32=parts["scale"].dtype != torch.bfloat16,
        torch_dtype=torch.bfloat16,
    )
    repeated = dequantize(dequantizer, {part: tensor for part, tensor in again.items() if tensor is not None})
    error, explained = _rms(restored, original), REPEATED * _rms(repeated, original) + ROUNDING * _rms(original)
    if error == 0 or not math.isfinite(explained):
        return 0.0
    return error / explained if explained else math.inf


def _rms(tensor: torch.Tensor, origin: torch.Tensor | None = None) -> float:
    difference = tensor.double() if origin is None else tensor.double() - origin.double()
    return float(difference.square().mean().sqrt())
