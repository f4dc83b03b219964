"""Step 0: the device, the versions, the kernel for int8 products, and the ceilings of copies and products."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Any

import torch

from converter.errors import DeviceError
from converter.measurement.benchmark.meter import Meter
from converter.measurement.generation.devices import choose_device, use_device
from converter.models.int8_kernels import find_int8_kernel
from scripts.gpu_steps.process import StepRun

#: Bytes that are copied and sides of the products that are computed to find the ceilings, on a GPU and on a CPU.
_COPY_BYTES = (1 << 32, 1 << 26)
_SIDES = (8192, 512)
_PASSES = 5


def describe(run: StepRun) -> None:
    """Step 0; SDNQ's kernel is tried last, because that may end the process."""
    device = open_device(run)
    # Imported here: it imports more than torch, which takes seconds, and without a GPU is not needed.
    from converter.measurement.benchmark.machine import describe_machine

    run.record(card=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU", compiler=_compiler())
    if device.type == "cuda":
        run.record(free_device_gb=round(torch.cuda.mem_get_info(device)[0] / 1e9, 2))
    if not run.earlier:
        run.record(**_ceilings(device, run))
    try:
        run.record(machine=describe_machine(run.device))
    except DeviceError as error:
        # What a kernel does to this process does not keep other steps from running.
        run.check(False, error.with_hint)
        return
    kernel = find_int8_kernel(device)
    run.record(int8_kernel={"name": kernel.name, "reason": kernel.reason})
    run.check(kernel.name != "none", f"no kernel computes int8 products: {kernel.reason}")


def open_device(run: StepRun) -> torch.device:
    """Find the device of a step, and make it the one on which Triton starts kernels.

    Raises:
        ResourceError: it cannot be used, for example because another program has it to itself.
    """
    device = choose_device(run.device)
    use_device(device)
    return device


def _ceilings(device: torch.device, run: StepRun) -> dict[str, float]:
    """GB/s of a copy on the device, read and written, and TFLOP/s of a product in bf16."""
    size, side = _COPY_BYTES[run.is_small], _SIDES[run.is_small]
    if device.type == "cuda":
        size = min(size, torch.cuda.mem_get_info(device)[0] // 4)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = _fastest(device, lambda: target.copy_(source))
    matrix = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    product_seconds = _fastest(device, lambda: matrix @ matrix)
    return {
        "copy_gb_s": round(2 * size / seconds / 1e9, 1),
        "bf16_tflop_s": round(2 * side**3 / product_seconds / 1e12, 2),
    }


def _fastest(device: torch.device, function: Any) -> float:
    """The least seconds of several calls, after one to warm up."""
    meter = Meter(device)
    function()
    found = []
    for _ in range(_PASSES):
        start = meter.now()
        function()
        end = meter.now()
        meter.synchronize()
        found.append(meter.seconds(start, end))
    return min(found)


def _compiler() -> str | None:
    """The C compiler that Triton and Inductor call, as it describes itself; None if there is none."""
    for name in filter(None, (os.environ.get("CC"), "gcc", "clang", "cc")):
        if program := shutil.which(name):
            done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
            return done.stdout.partition("\n")[0] or name
    return None
