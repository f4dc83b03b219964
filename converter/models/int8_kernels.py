"""Which kernel multiplies the int8 weights of SDNQ's layers on a device, found by trying one small product.

SDNQ's Triton kernels need memory that Triton asks an allocator for, and by default there is none: the kernels then fail
on GPUs of the Hopper generation. An allocator is set here. If the kernel fails all the same, SDNQ multiplies with
``torch._int_mm``; if that fails, too, layers multiply dequantized weights.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import Any, Literal

import torch

from converter.errors import DeviceError, first_line
from converter.libraries import QUANTIZING_ERRORS
from converter.models.sdnq_layers import (
    dequantized_forward,
    has_integer_products,
    multiplies_integers,
    quantized_layers,
)

#: Rows, columns and depth of the product that is tried. SDNQ's autotuner has one configuration for it, so that one
#: kernel is compiled (sdnq 0.2.8, kernels/triton_scaled_mm.py); ``torch._int_mm`` needs more than 16 rows on a GPU.
_ROWS, _COLUMNS, _DEPTH = 64, 64, 32
#: Greatest error, as a part of the sum of the terms' magnitudes: each is rounded to bfloat16, whose unit is 1/256, at
#: most four times.
_TOLERANCE = 1 / 64

logger = logging.getLogger(__name__)
_lock = threading.Lock()
_found: dict[torch.device, Int8Kernel] = {}


@dataclass(frozen=True)
class Int8Kernel:
    """A kernel for products of int8 matrices."""

    name: Literal["triton", "torch", "openvino", "none"]
    """``none`` if there is none that works, so that layers multiply dequantized weights."""
    reason: str = ""
    """Why it is not the best one for such a device; empty if it is."""


def find_int8_kernel(device: torch.device) -> Int8Kernel:
    """Find the kernel that SDNQ multiplies with on a device; on a GPU the kernels are tried, once per process.

    SDNQ is imported if it is not yet.

    Args:
        device: ``cuda`` means the current GPU. For a CPU, nothing of CUDA is touched.

    Raises: as ``try_int8_kernels``.
    """
    if device.type != "cuda":
        from sdnq.kernel_wrappers import openvino_int_mm

        return Int8Kernel("openvino" if device.type == "cpu" and openvino_int_mm is not None else "torch")
    if device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    with _lock:
        if device not in _found:
            _found[device] = kernel = try_int8_kernels(device)
            if kernel.name != "triton":
                logger.warning("%s: %s: %s", device, kernel_text(kernel.name), kernel.reason)
        return _found[device]


def try_int8_kernels(device: torch.device) -> Int8Kernel:
    """Compute a small product with each of SDNQ's kernels until one is right.

    Triton's kernels are turned off in SDNQ, for the whole process, if they fail.

    Args:
        device: a GPU.

    Raises:
        DeviceError: the GPU does not work any more after a failed kernel.
        torch.OutOfMemoryError: the GPU's memory is used up.
    """
    from sdnq import kernel_wrappers

    reason = "SDNQ has no Triton kernel in this process"
    if kernel_wrappers.sdnq_scaled_mm is not None or kernel_wrappers.sdnq_triton_mm is not None:
        failure = _failure(device)
        if not failure:
            return Int8Kernel("triton")
        reason = f"SDNQ's Triton kernel does not work ({failure})"
        kernel_wrappers.sdnq_scaled_mm = kernel_wrappers.sdnq_triton_mm = None
    failure = _failure(device)
    if not failure:
        return Int8Kernel("torch", reason)
    return Int8Kernel("none", f"{reason}, and torch._int_mm does not, either ({failure})")


def kernel_text(name: str) -> str:
    """Return a clause that says how layers multiply with a kernel, by its name."""
    return f"quantized layers multiply {'dequantized weights' if name == 'none' else f'with {name}'}"


def use_int8_kernel(model: Any, kernel: Int8Kernel) -> None:
    """Let the layers of a model multiply with a kernel that ``find_int8_kernel`` has found.

    Only where none works, something has to be done: the layers' forward functions are replaced. Their weights and their
    configuration stay as they are.
    """
    if kernel.name == "none":
        for layer in filter(multiplies_integers, quantized_layers(model)):
            layer.forward_func = dequantized_forward
    model.int8_kernel = kernel


def int8_kernel_of(model: Any) -> Int8Kernel | None:
    """Return the kernel that a model's layers multiply with; None before it is known, and for models without any."""
    kernel: Int8Kernel | None = getattr(model, "int8_kernel", None)
    return kernel


def prepare_int8_kernel(model: Any, device: torch.device) -> None:
    """Prepare a quantized model for a forward pass on a GPU, in the thread that calls it.

    Args:
        model: with SDNQ's layers, or without; it may have been loaded by any loader.
        device: of its input.

    Raises: as ``try_int8_kernels``.
    """
    if device.type != "cuda" or getattr(model, "quantization_config", None) is None:
        return
    set_triton_allocator()
    kernel = _found.get(device)
    is_ready = kernel is not None and kernel.name != "none" and kernel == int8_kernel_of(model)
    if not is_ready and has_integer_products(model):
        use_int8_kernel(model, find_int8_kernel(device))


def set_triton_allocator() -> None:
    """Give Triton's kernels an allocator, if Triton is imported.

    Triton keeps it in a context variable: it holds for the thread or task that calls this.
    """
    triton: Any = sys.modules.get("triton")
    if hasattr(triton, "set_allocator"):
        triton.set_allocator(allocate_scratch)


def allocate_scratch(size: int, _alignment: int, _stream: int | None) -> torch.Tensor:
    """Allocate bytes for a kernel, which Triton starts in torch's current stream on the current GPU.

    Torch gives 512-byte alignment, and does not reuse the memory before the stream is past the kernel.
    """
    return torch.empty(size, dtype=torch.int8, device="cuda")


def _failure(device: torch.device) -> str:
    """Why products are not computed, or not right; empty if they are."""
    set_triton_allocator()
    try:
        return "" if all(_is_right(device, centred) for centred in (True, False)) else "its results are wrong"
    except torch.OutOfMemoryError:
        raise
    except kernel_errors() as error:
        _require_working(device, error)
        return describe_kernel_error(error)


def kernel_errors() -> tuple[type[Exception], ...]:
    """Return what Triton, torch and SDNQ raise, and running compilers and loading what they compiled."""
    triton_error = getattr(sys.modules.get("triton.errors"), "TritonError", RuntimeError)
    return (*QUANTIZING_ERRORS, ImportError, OSError, subprocess.SubprocessError, triton_error)


def describe_kernel_error(error: BaseException) -> str:
    """Return the class of such an error and what it says first."""
    name, said = type(error).__name__, first_line(error)
    return name if said == name else f"{name}: {said}"


def _require_working(device: torch.device, cause: Exception) -> None:
    """Refuse to continue on a GPU whose context is lost: after an illegal access all that follows fails.

    Raises:
        DeviceError: it is lost.
    """
    try:
        torch.ones(1, device=device).add(1).item()
    except RuntimeError as error:
        raise DeviceError(
            f"{device} does not work any more after a product of int8 matrices failed: {cause}",
            "Start again with SDNQ_USE_TRITON_MM=0 in the environment.",
        ) from error


def _is_right(device: torch.device, centred: bool) -> bool:
    """Whether SDNQ's product of activations and int8 weights is right, within the rounding of bfloat16.

    The operands have the shapes and strides of SDNQ's layers: the weight's rows are the columns of the matrix.

    Args:
        device: where it is computed.
        centred: without zero points, so that the bias is a row; with them, SDNQ makes a matrix of the two.
    """
    from sdnq.layers.linear.linear_int8 import int8_matmul

    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-127, 128, (_ROWS, _DEPTH), generator=generator)
    codes[:, 0] = 127  # The scale of each row is one.
    weight = torch.randint(-127, 128, (_COLUMNS, _DEPTH), generator=generator)
    scale = 2.0 ** torch.randint(-8, -4, (1, _COLUMNS), generator=generator)
    zero_point = None if centred else scale * torch.randint(-64, 65, (1, _COLUMNS), generator=generator)
    bias = torch.randint(-64, 65, (_COLUMNS,), generator=generator)
    states = codes.to(device, torch.bfloat16)
    with torch.cuda.device_of(states):
        result = int8_matmul(
            states,
            weight.to(device, torch.int8).t(),
            scale.to(device, torch.bfloat16),
            bias=bias.to(device, torch.bfloat16),
            zero_point=None if zero_point is None else zero_point.to(device, torch.bfloat16),
        )
    terms = [(codes @ weight.t()).double() * scale, bias.double().expand(_ROWS, -1)]
    if zero_point is not None:
        terms.append(codes.sum(1, keepdim=True).double() * zero_point)
    magnitudes = torch.stack(terms).abs().sum(0)
    return bool(((result.double().cpu() - sum(terms)).abs() <= _TOLERANCE * magnitudes).all())
