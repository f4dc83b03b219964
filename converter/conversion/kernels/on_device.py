"""uint4 in groups of 64 on a device, by plain operations of torch: the bytes that SDNQ gives on the CPU.

SDNQ's own functions give other bytes on CUDA, for two reasons. CUDA divides by a Python number by multiplying with its
reciprocal, which is not exact; here all divisors are tensors. And a minimum of 0.0 and -0.0 has either sign there;
here the sign is looked up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import NDArray

from converter.conversion.kernels.devices import Bytes, Device, blaming_device
from converter.conversion.kernels.fused import GROUP
from converter.conversion.kernels.sdnq import as_tensor


def quantize_uint4(
    source: torch.Tensor, *, round_weights: bool, round_scales: bool
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Quantize numbers to uint4 in groups of 64, as SDNQ does on the CPU.

    Args:
        source: 64·n numbers of any float dtype; they stay as they are.
        round_weights: whether to round the numbers to bfloat16 first.
        round_scales: whether scales and zero points become bfloat16; if not, they are float32.

    Returns:
        SDNQ's parts by name: ``weight``, 32·n bytes with the first code of each pair in the low half, n values of
        ``scale`` and n of ``zero_point``; and whether all numbers were finite, as a tensor of one bool. If they were
        not, the parts have no meaning.
    """
    # float64 goes through float32 on its way to bfloat16, as on the CPU.
    numbers = source.to(torch.float32, copy=True).view(-1, GROUP)
    if round_weights:
        numbers.copy_(numbers.bfloat16())
    low, high = torch.aminmax(numbers, dim=-1, keepdim=True)
    # Minimum and maximum of a group with a NaN are NaN.
    is_finite = (torch.isfinite(low) & torch.isfinite(high)).all()
    # The CPU's minimum is the first of equal numbers, and 0.0 equals -0.0.
    first_zero = (numbers == 0).view(torch.uint8).argmax(dim=-1, keepdim=True)
    zero_point = torch.where(low == 0, numbers.gather(-1, first_zero), low)
    span = high.sub_(zero_point).abs_()
    scale = span.div_(torch.full_like(span, 15))
    if round_scales:
        scale, zero_point = scale.bfloat16(), zero_point.bfloat16()
    codes = numbers.sub_(zero_point.float()).div_(scale.float())
    # 0/0, in a constant group, becomes 0.
    codes = codes.nan_to_num_(nan=0.0).clamp_(0, 15).round_().to(torch.uint8).view(-1, 2)
    packed = codes[:, 1].bitwise_left_shift(4).bitwise_or_(codes[:, 0])
    return {"weight": packed, "scale": scale, "zero_point": zero_point}, is_finite


def quantize_bytes(
    data: Bytes,
    dtype: str,
    *,
    round_weights: bool,
    round_scales: bool,
    device: Device,
    where: str,
    buffer: Callable[[str, int], Bytes],
) -> dict[str, NDArray[Any]] | None:
    """Quantize numbers on a device, by ``quantize_uint4``.

    Args:
        data: their bytes.
        dtype: their safetensors dtype.
        round_weights: as for ``quantize_uint4``.
        round_scales: as for ``quantize_uint4``.
        device: where to compute.
        where: the tensor, for messages.
        buffer: returns memory of so many bytes for a part.

    Returns:
        The bytes of SDNQ's parts, by name; None if a number is not finite after rounding.

    Raises:
        MemoryLimitError: the device does not have enough memory.
        DeviceError: the device failed.
    """
    with blaming_device(where, device.torch_device):
        source = device.upload(as_tensor(data, dtype, (-1,)))
        parts, is_finite = quantize_uint4(source, round_weights=round_weights, round_scales=round_scales)
        results = {}
        for part, tensor in {**parts, "is_finite": is_finite}.items():
            results[part] = buffer(part, tensor.numel() * tensor.itemsize)
            device.download(tensor, torch.from_numpy(results[part]).view(tensor.dtype).view(tensor.shape))
        device.finish()
    return results if results.pop("is_finite")[0] else None
