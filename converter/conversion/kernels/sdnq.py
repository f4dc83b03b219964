"""SDNQ's own functions on raw bytes: for every recipe that lensconv's kernel does not cover."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from converter.conversion.kernels.devices import device_failure
from converter.errors import UnsupportedCheckpoint
from converter.libraries import QUANTIZING_ERRORS, load_library
from converter.models.classes import TORCH_DTYPES

#: Options that ``sdnq_quantize_layer_weight`` does not take: they choose between it and its dynamic form.
_DYNAMIC_OPTIONS = ("use_dynamic_quantization", "dynamic_loss_threshold")
#: The lists of SDNQ's configuration that a weight can add to where it decides about its dtype.
DECIDED_LISTS = ("modules_dtype_dict", "modules_to_not_convert", "modules_to_not_use_matmul")


@dataclass(frozen=True)
class QuantizedParts:
    """What SDNQ made of a weight."""

    parts: Mapping[str, torch.Tensor]
    """Contiguous tensors on the CPU, by their names in SDNQ; empty when SDNQ decided to keep the weight."""
    decisions: Mapping[str, Any] = field(default_factory=dict)
    """What the weight decided, as entries for SDNQ's configuration; empty unless dtypes depend on weights."""
    dequantizer: Any = None
    """SDNQ's, which knows the layout of the parts and restores the weight; None when SDNQ decided to keep it."""

    def bytes_of(self, part: str) -> NDArray[np.uint8]:
        """The bytes of one part."""
        return as_bytes(self.parts[part])


def as_tensor(data: NDArray[np.uint8], dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """View bytes as a tensor of a safetensors dtype; the memory is shared."""
    return torch.from_numpy(data).view(TORCH_DTYPES[dtype]).reshape(shape)


def as_bytes(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """The bytes of a tensor in memory order."""
    data: NDArray[np.uint8] = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return data


def quantize_with_sdnq(
    data: NDArray[np.uint8],
    dtype: str,
    shape: tuple[int, ...],
    options: Mapping[str, Any],
    *,
    from_float32: bool,
    device: torch.device,
) -> QuantizedParts:
    """Quantize a weight, or a run of its rows.

    Args:
        data: its bytes.
        dtype: its safetensors dtype.
        shape: its shape.
        options: arguments of ``sdnq_quantize_layer_weight``.
        from_float32: whether SDNQ sees the weight in float32 instead of the dtype that a loader would give it.
        device: where to compute.

    Raises:
        MemoryLimitError: the device does not have enough memory.
        DeviceError: the device failed.
        UnsupportedCheckpoint: SDNQ cannot quantize this weight with these options.
    """
    with _blaming(options, device):
        quantizer = load_library("sdnq.quantizer")
        result_dtype: torch.dtype = getattr(torch, options["torch_dtype"])
        weight = as_tensor(data, dtype, shape).to(torch.float32 if from_float32 else result_dtype).to(device)
        arguments = {name: value for name, value in options.items() if name not in _DYNAMIC_OPTIONS}
        arguments["torch_dtype"] = result_dtype
        decisions = {}
        if options["use_dynamic_quantization"]:
            config = quantizer.SDNQConfig(weights_dtype=options["weights_dtype"])
            result, config = quantizer.sdnq_quantize_layer_weight_dynamic(
                weight,
                dynamic_loss_threshold=options["dynamic_loss_threshold"],
                quantization_config=config,
                **arguments,
            )
            decisions = {name: getattr(config, name) for name in DECIDED_LISTS}
            if result is None:
                return QuantizedParts({}, decisions)
        else:
            result = quantizer.sdnq_quantize_layer_weight(weight, **arguments)
        dequantizer, values = result
        # SDNQ notes this where it puts the parts into the module.
        if decisions and options["use_quantized_matmul"] and not dequantizer.use_quantized_matmul:
            decisions["modules_to_not_use_matmul"] = [options["param_name"]]
        parts = {name: value.cpu().contiguous() for name, value in values.items() if value is not None}
        return QuantizedParts(parts, decisions, dequantizer)


@contextmanager
def _blaming(options: Mapping[str, Any], device: torch.device) -> Iterator[None]:
    """Raise an error that names the weight for what SDNQ raises in the block."""
    where = options.get("param_name", "")
    try:
        yield
    except QUANTIZING_ERRORS as error:
        failure = device_failure(error, where, device)
        if failure is not None:
            raise failure from error
        raise UnsupportedCheckpoint(
            f"{where}: SDNQ cannot quantize it with this recipe: {str(error) or repr(error)}",
            "Keep this module (--set 'NAME=keep'), or choose another dtype or other options.",
        ) from error


def count_nonfinite(data: NDArray[np.uint8], dtype: str, *, as_bfloat16: bool) -> int:
    """Count NaN and infinity, and numbers that overflow bfloat16 if they are to be rounded to it."""
    numbers = torch.from_numpy(data).view(TORCH_DTYPES[dtype])
    if as_bfloat16:
        numbers = numbers.to(torch.bfloat16)
    return int(numbers.numel() - torch.isfinite(numbers).sum())


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Let torch compute with one thread in each of this process's threads while the block runs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def seeded_generator(seed: int, device: torch.device, state: str | None) -> Iterator[Callable[[], str]]:
    """Seed torch's generator on a device for the block, and restore it afterwards.

    Args:
        seed: for a run from the beginning.
        device: whose generator; with its index, if it is a CUDA device.
        state: where an interrupted run left the generator, as text; None for a run from the beginning.

    Yields:
        What returns the present state, as text.
    """
    generator = torch.default_generator
    if device.type == "cuda":
        generator = torch.cuda.default_generators[device.index]
    found = generator.get_state()
    if state is None:
        generator.manual_seed(seed)
    else:
        generator.set_state(torch.frombuffer(bytearray(base64.b64decode(state)), dtype=torch.uint8))
    try:
        yield partial(_encode_state, generator)
    finally:
        generator.set_state(found)


def _encode_state(generator: torch.Generator) -> str:
    return base64.b64encode(generator.get_state().numpy().tobytes()).decode()
