"""Which kernel multiplies the int8 weights of SDNQ's layers on a device."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from converter.libraries import load_library


@dataclass(frozen=True)
class Int8Kernel:
    """A kernel for products of int8 matrices."""

    name: str
    """``triton``, ``torch``, ``openvino`` or ``none``."""
    reason: str = ""
    """Why it is not the best one for such a device; empty if it is."""


def find_int8_kernel(device: torch.device) -> Int8Kernel:
    """Find the kernel that SDNQ multiplies with on a device."""
    wrappers = load_library("sdnq.kernel_wrappers")
    if device.type != "cuda":
        return Int8Kernel("torch" if wrappers.openvino_int_mm is None else "openvino")
    return Int8Kernel("torch" if wrappers.sdnq_scaled_mm is None else "triton")
