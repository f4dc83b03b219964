"""Activations in int8, each made in one pass: what SDNQ's layers compute from the results of several operations.

SDNQ's eager layers work in bfloat16, and round after every operation. Functions here compute the same in float32 and
round where they do, so that a compiler can make one kernel of each function and the codes stay the same. The layers are
those of sdnq 0.2.8, ``layers/linear/linear_int8.py``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad, silu

#: The dtype of the computation and of scales.
DTYPE = torch.bfloat16
#: SDNQ divides the largest magnitude of a row by the largest code, and clamps codes to the range of int8.
_LEAST_CODE, _LARGEST_CODE = -128, 127
#: Rows of text are padded to a multiple of this, so that texts of similar lengths need the same kernels: the least rows
#: of a tile in SDNQ's Triton kernels (triton_scaled_mm.py).
ROW_MULTIPLE = 64


@dataclass(frozen=True)
class Int8Rows:
    """Activations as quantized layers multiply them, in place of a tensor in bfloat16.

    There may be rows of padding at the end.
    """

    codes: torch.Tensor
    """int8, ``[rows, channels]``."""
    scale: torch.Tensor
    """bfloat16, ``[rows, 1]``."""
    shape: tuple[int, int, int]
    """Of the tensor that this stands for, ``[batch, tokens, channels]``."""
    compiles: bool
    """Whether the functions here run compiled."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the tensor that this stands for."""
        return DTYPE

    def __len__(self) -> int:
        """Return the number of samples."""
        return self.shape[0]

    def linear(self, layer: Any) -> torch.Tensor:
        """Return what a layer of SDNQ makes of these activations, ``[batch, tokens, output channels]``."""
        return self._restore(_multiply(self.codes, self.scale, (layer,), layer.bias))

    def swiglu(self, gate: Any, value: Any, output: Any) -> torch.Tensor:
        """Return ``output(silu(gate(states)) * value(states))``, with one product for gate and value.

        Args:
            gate: a layer of SDNQ without bias.
            value: a layer of SDNQ without bias and with the same shapes.
            output: a layer of SDNQ without bias.
        """
        joined = _multiply(self.codes, self.scale, (gate, value), None)
        codes, scale = compiled_if(self.compiles, quantize_gated)(joined)
        return self._restore(_multiply(codes, scale, (output,), None))

    def _restore(self, product: torch.Tensor) -> torch.Tensor:
        batch, tokens = self.shape[:2]
        return product[: batch * tokens].view(batch, tokens, -1)


def apply_module(module: Any, states: torch.Tensor | Int8Rows) -> torch.Tensor:
    """Return what a linear layer, or a module that knows ``Int8Rows``, makes of activations in either form."""
    is_layer = isinstance(states, Int8Rows) and isinstance(module, torch.nn.Linear)
    result: torch.Tensor = states.linear(module) if is_layer else module(states)
    return result


def quantize_modulated(
    states: torch.Tensor, weight: torch.Tensor, epsilon: float, shift: torch.Tensor, scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Norm, modulate and quantize.

    Args:
        states: bfloat16, ``[batch, tokens, channels]``.
        weight: of diffusers' ``RMSNorm``, bfloat16, ``[channels]``.
        epsilon: of the norm.
        shift: bfloat16, ``[batch, 1, channels]``.
        scale: likewise; normed values are multiplied by it plus one.

    Returns:
        Codes and scales as in ``Int8Rows``, without padding.
    """
    # Where the operation before is in the same kernel, Inductor passes on what was not rounded.
    values = _round(states.float())
    normed = _round(values * torch.rsqrt(values.square().mean(-1, keepdim=True) + epsilon))
    normed = _round(normed * weight.float())
    modulated = _round(shift.float() + normed * _round(1 + scale.float()))
    return _quantize(modulated.flatten(0, 1))


def quantize_gated(joined: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Multiply SiLU of the first half of the channels by the second half, and quantize.

    Args:
        joined: bfloat16, ``[rows, 2 * channels]``.

    Returns:
        Codes and scales of ``[rows, channels]``, as in ``Int8Rows``.
    """
    gate, value = joined.float().chunk(2, dim=-1)
    return _quantize(_round(_round(silu(gate)) * value))


def pad_rows(codes: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad with rows of ones, whose scale is one, to a multiple of 64; zeros would have no scale after SwiGLU."""
    missing = (0, 0, 0, -len(codes) % ROW_MULTIPLE)
    return pad(codes, missing, value=1), pad(scale, missing, value=1)


def compiled_if(compiles: bool, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function, or its compiled form; what is being compiled already takes in the function itself."""
    return _compiled(function) if compiles and not torch.compiler.is_compiling() else function


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(function, fullgraph=True)
    return compiled


def _quantize(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize rows of values in float32 that bfloat16 can represent."""
    scale = _round(values.abs().amax(-1, keepdim=True) / _LARGEST_CODE)
    codes = _round(values / scale).round().clamp(_LEAST_CODE, _LARGEST_CODE)
    return codes.to(torch.int8), scale.to(DTYPE)


def _round(values: torch.Tensor) -> torch.Tensor:
    """Round float32 to what bfloat16 can represent, half to even."""
    if not torch.compiler.is_compiling():
        return values.to(DTYPE).float()
    # Inductor removes casts to bfloat16 and back (torch 2.13); it keeps operations on the bits.
    bits = values.view(torch.int32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
    return torch.where(values.isnan(), values, rounded.view(torch.float32))


def _multiply(
    codes: torch.Tensor, scale: torch.Tensor, layers: tuple[Any, ...], bias: torch.Tensor | None
) -> torch.Tensor:
    """Multiply rows by the weights of layers with the same shapes; their outputs are side by side."""
    from sdnq.kernel_wrappers import int_scaled_mm_func
    from sdnq.layers.linear.forward import check_mats

    weight, weight_scale = _requantize(layers)
    codes, weight = check_mats(codes, weight, matmul_dtype="int8")
    product: torch.Tensor = int_scaled_mm_func(codes, weight, scale, weight_scale, bias=bias, out_dtype=DTYPE)
    return product


def _requantize(layers: tuple[Any, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Unpack the weights of layers with the same shapes, one below the other, and quantize each row to int8.

    Joining what is packed is cheap, and leaves the layers as they are.
    """
    from sdnq.dequantizer import re_quantize_matmul_compiled

    how, count = layers[0].sdnq_dequantizer, len(layers)
    weight, scale, zero_point = (
        None if tensors[0] is None else torch.cat(tensors) if count > 1 else tensors[0]
        for tensors in zip(*((layer.weight, layer.scale, layer.zero_point) for layer in layers), strict=True)
    )
    rows, channels = how.result_shape
    requantized: tuple[torch.Tensor, torch.Tensor] = re_quantize_matmul_compiled(
        how.weights_dtype,
        weight,
        scale,
        zero_point=zero_point,
        group_size=how.group_size,
        matmul_dtype=how.quantized_matmul_dtype,
        result_shape=torch.Size((count * rows, channels)),
        quantized_weight_shape=torch.Size((count * rows, *how.quantized_weight_shape[1:])),
        layer_class_name=how.layer_class_name,
    )
    return requantized
