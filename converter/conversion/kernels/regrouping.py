"""The search for scales in any layout of SDNQ: codes are unpacked, searched group by group, and packed again."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from converter.conversion.kernels.moments import Moments
from converter.conversion.kernels.sdnq import QuantizedParts
from converter.conversion.kernels.searching import as_numbers, improve_groups
from converter.libraries import load_library


def improve_scales(
    result: QuantizedParts,
    data: NDArray[np.uint8],
    dtype: str,
    shape: tuple[int, ...],
    moments: Moments | None = None,
) -> QuantizedParts:
    """Search the scales of what SDNQ made of a weight, or of a run of its rows, and calibrate its codes.

    Args:
        result: what it made: integers of at most 8 bits with plain scales.
        data: the bytes of the source.
        dtype: its safetensors dtype.
        shape: its shape.
        moments: of the inputs of a linear; None to search scales only.

    Returns:
        The same parts, of the same dtypes and shapes, with another content where that lowers the error of a group.
    """
    layout = _Layout(result)
    zero_points = layout.values("zero_point") if "zero_point" in result.parts else None
    scales, codes = layout.values("scale"), layout.codes()
    improve_groups(
        layout.numbers(as_numbers(data, dtype).reshape(shape)),
        codes,
        scales,
        zero_points,
        channels=shape[-1],
        bits=result.dequantizer.num_bits,
        round_scales=result.parts["scale"].dtype == torch.bfloat16,
        moments=moments,
    )
    parts = {**result.parts, "weight": layout.packed(codes), "scale": layout.stored(scales, "scale")}
    if zero_points is not None:
        parts["zero_point"] = layout.stored(zero_points, "zero_point")
    return replace(result, parts=parts)


class _Layout:
    """How the numbers of a weight are spread over groups, and how SDNQ stores them."""

    def __init__(self, result: QuantizedParts) -> None:
        self._parts = result.parts
        dequantizer = self._dequantizer = result.dequantizer
        self._packing = load_library("sdnq.packed_int")
        self._least = 0 if dequantizer.is_unsigned else -(2 ** (dequantizer.num_bits - 1))
        shape = tuple(dequantizer.quantized_weight_shape)
        # For matmul without scaling the weight again, SDNQ stores it transposed, and its scales too.
        self._is_transposed = (
            dequantizer.use_quantized_matmul and not dequantizer.re_quantize_for_matmul and not dequantizer.is_packed
        )
        self._shape = shape[::-1] if self._is_transposed else shape
        scale = self._untransposed(result.parts["scale"])
        shared = [axis for axis, size in enumerate(scale.shape) if size == 1]
        own = [axis for axis, size in enumerate(scale.shape) if size != 1]
        self._axes = [*own, *shared]
        self._group = prod(self._shape[axis] for axis in shared)

    def _untransposed(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.t() if self._is_transposed else tensor

    def _grouped(self, tensor: torch.Tensor) -> NDArray[Any]:
        """The numbers of each group next to each other, in memory of their own if they were elsewhere."""
        grouped: NDArray[Any] = tensor.reshape(self._shape).permute(self._axes).reshape(-1, self._group).numpy()
        return np.ascontiguousarray(grouped)

    def numbers(self, source: NDArray[Any]) -> NDArray[Any]:
        """The source, ``[groups, length]``."""
        return self._grouped(torch.from_numpy(source))

    def codes(self) -> NDArray[Any]:
        """The codes, counted from the least one, ``[groups, length]``."""
        dequantizer, weight = self._dequantizer, self._untransposed(self._parts["weight"])
        if dequantizer.is_packed:
            weight = self._packing.unpack_int(weight, dequantizer.weights_dtype, self._shape)
        return self._grouped((weight.to(torch.int16) - self._least).to(torch.uint8))

    def values(self, part: str) -> NDArray[np.float32]:
        """Scales or zero points in float32, one for each group."""
        values = self._untransposed(self._parts[part]).permute(self._axes).reshape(-1).float()
        return np.array(values.numpy())

    def packed(self, codes: NDArray[Any]) -> torch.Tensor:
        """The codes as SDNQ stores them."""
        permuted = torch.from_numpy(codes).reshape([self._shape[axis] for axis in self._axes])
        dequantizer = self._dequantizer
        weight = permuted.permute(np.argsort(self._axes).tolist()).to(torch.int16) + self._least
        weight = weight.to(torch.uint8 if dequantizer.is_unsigned else torch.int8)
        if dequantizer.is_packed:
            packed: torch.Tensor = self._packing.pack_int(weight, dequantizer.weights_dtype)
            return packed
        return self._untransposed(weight).contiguous()

    def stored(self, values: NDArray[np.float32], part: str) -> torch.Tensor:
        """Scales or zero points as SDNQ stores them."""
        old = self._parts[part]
        shape = self._untransposed(old).shape
        permuted = torch.from_numpy(values).reshape([shape[axis] for axis in self._axes])
        restored = permuted.permute(np.argsort(self._axes).tolist())
        return self._untransposed(restored).to(old.dtype).contiguous()
