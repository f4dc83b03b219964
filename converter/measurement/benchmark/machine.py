"""The machine and the versions of packages that figures depend on."""

from __future__ import annotations

import os
import platform
import re
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from converter._version import __version__
from converter.measurement.benchmark.meter import load_nvml
from converter.measurement.generation.devices import choose_device

#: Packages whose versions a figure depends on.
_PACKAGES = ("torch", "sdnq", "diffusers", "transformers", "safetensors", "accelerate")
_PROCESSORS = Path("/proc/cpuinfo")
_DRIVER = Path("/proc/driver/nvidia/version")


def describe_machine(device_name: str) -> dict[str, Any]:
    """Describe the device and the versions, without names or paths of the machine.

    Args:
        device_name: as in ``GenerateOptions``.

    Raises:
        UsageError: the name is not that of a device.
        DeviceError: this machine does not have it.
    """
    device = choose_device(device_name)
    is_cuda = device.type == "cuda"
    return {
        "hardware": torch.cuda.get_device_name(device) if is_cuda else _processor(),
        "device": str(device),
        "cuda": torch.version.cuda if is_cuda else None,
        "driver": _driver() if is_cuda else None,
        "cpu_cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "threads": torch.get_num_threads(),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "lensconv": __version__,
        **{name: version(name) for name in _PACKAGES},
    }


def _processor() -> str:
    with suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", _PROCESSORS.read_text(), flags=re.MULTILINE)
        if found:
            return f"CPU {found[1].strip()}"
    return f"CPU {platform.machine()}"


def _driver() -> str | None:
    nvml = load_nvml()
    if nvml is not None:
        with suppress(nvml.NVMLError):
            return str(nvml.nvmlSystemGetDriverVersion())
    with suppress(OSError):
        found = re.search(r"Kernel Module\D*?(\d+(?:\.\d+)+)", _DRIVER.read_text())
        return found[1] if found else None
    return None
