"""Whether lensconv's kernel gives SDNQ's bytes with the installed versions.

The tests compare the kernel with SDNQ, in the versions that the tests run with. A user may have others, so for each
plan that uses the kernel the two are compared again, in milliseconds, on groups of every kind.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from converter.conversion.kernels import fused
from converter.conversion.planning.methods import Kind, Method, plan_methods
from converter.conversion.planning.plan import Plan, PlannedModule

if TYPE_CHECKING:
    from converter.conversion.kernels.devices import Device

#: Rows of the sample, of four groups each.
SAMPLE_ROWS = 256


def sample_weights() -> fused.Bits32:
    """Bits of float32 weights: plain, constant, tiny, huge and mixed groups, the same in every run."""
    generator = np.random.default_rng(0)
    shape = SAMPLE_ROWS, 4 * fused.GROUP
    numbers = generator.standard_normal(shape, dtype=np.float32)
    numbers[1::8] = numbers[1::8, :1]
    numbers[2::8] *= np.float32(1e-39)
    numbers[3::8] *= np.float32(1e37)
    numbers[4::8] = np.float32(1) + numbers[4::8] * np.float32(1e-6)
    numbers[5::8] = np.where(numbers[5::8] > 0, np.abs(numbers[6::8]), np.copysign(np.float32(0), numbers[6::8]))
    numbers[7::8] = np.round(numbers[7::8] * 4) / 2
    # A scale between two bfloat16, (4384 + 11) / 15, which a product with 1/15 misses.
    numbers[7::32, :2] = 4384, -11
    return numbers.view(np.uint32)


def kernel_agrees(plan: Plan) -> bool:
    """Compare the kernel with SDNQ, for every set of options with which the plan would use it."""
    return methods_agree((plan.modules[source], method) for source, method in plan_methods(plan).items())


def methods_agree(chosen: Iterable[tuple[PlannedModule, Method]]) -> bool:
    """Compare the kernel with SDNQ, for every set of options with which it would be used.

    Args:
        chosen: modules, and the method of each.
    """
    checked: dict[str, tuple[PlannedModule, Method]] = {}
    for module, method in chosen:
        if method.kind is Kind.FUSED:
            options = {name: value for name, value in module.options.items() if name != "param_name"}
            checked.setdefault(repr(sorted(options.items())), (module, method))
    return all(
        _agrees(module, method, from_float32=from_float32)
        for module, method in checked.values()
        for from_float32 in (False, True)
    )


def device_agrees(device: Device, *, round_weights: bool) -> bool:
    """Compare the kernel on a device with the one on the CPU, which ``kernel_agrees`` compares with SDNQ.

    Args:
        device: where the kernel will be used.
        round_weights: as it will be called.

    Raises:
        MemoryLimitError: the device does not have enough memory.
        DeviceError: the device failed.
    """
    from converter.conversion.kernels.on_device import quantize_bytes

    bits = sample_weights().reshape(-1)
    for round_scales in (True, False):
        expected, _ = fused.quantize_uint4(bits, round_weights=round_weights, round_scales=round_scales)
        found = quantize_bytes(
            bits.view(np.uint8),
            "F32",
            round_weights=round_weights,
            round_scales=round_scales,
            device=device,
            where="the comparison of the kernels",
            buffer=lambda _, size: device.buffer(size),
        )
        if found is None or any(not np.array_equal(found[part], expected[part].view(np.uint8)) for part in expected):
            return False
    return True


def _agrees(module: PlannedModule, method: Method, *, from_float32: bool) -> bool:
    import torch

    from converter.conversion.kernels.sdnq import quantize_with_sdnq

    bits = sample_weights()
    expected = quantize_with_sdnq(
        bits.reshape(-1).view(np.uint8),
        "F32",
        bits.shape,
        module.options,
        from_float32=from_float32,
        device=torch.device("cpu"),
    )
    found, _ = fused.quantize_uint4(bits.reshape(-1), round_weights=not from_float32, round_scales=method.round_scales)
    return expected.parts.keys() == found.keys() and all(
        np.array_equal(expected.bytes_of(part), array.view(np.uint8)) for part, array in found.items()
    )
