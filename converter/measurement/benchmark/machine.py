"""The machine and the versions of packages that figures depend on."""

from __future__ import annotations

import os
import platform
import re
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from converter._version import __version__
from converter.errors import printable
from converter.libraries import load_library, sdnq_compiles, user_environment, waiting_environment
from converter.measurement.benchmark.meter import load_nvml
from converter.measurement.generation.devices import blaming_device, choose_device, use_device
from converter.models.int8_kernels import find_int8_kernel
from converter.models.lens.mxfp4 import unpacking_reason

#: Packages whose versions a figure depends on.
_PACKAGES = ("torch", "sdnq", "diffusers", "transformers", "safetensors", "accelerate")
_PROCESSORS = Path("/proc/cpuinfo")
#: What a path contains, and no other value of a variable of SDNQ.
_PATH = re.compile(r"[/\\~]")
_DRIVER = Path("/proc/driver/nvidia/version")


def describe_machine(device_name: str) -> dict[str, Any]:
    """Describe the device, the versions, and how SDNQ works on the device, without names or paths of the machine.

    SDNQ is imported, and tries its kernels on an accelerator, whose memory it keeps until the process ends.

    Args:
        device_name: as in ``GenerateOptions``.

    Raises:
        UsageError: the name is not that of a device.
        DeviceError: this machine does not have it, or it cannot be used.
        MemoryLimitError: its memory is used up.
    """
    device = choose_device(device_name)
    is_cuda = device.type == "cuda"
    use_device(device)
    with blaming_device(device):
        load_library("sdnq", compiles=is_cuda)
        kernel = find_int8_kernel(device)
        stays_packed = is_cuda and not unpacking_reason()
    return {
        "hardware": torch.cuda.get_device_name(device) if is_cuda else _processor(),
        "device": str(device),
        **_describe_gpu(device),
        "int8_kernel": kernel.name,
        "sdnq_compiles": sdnq_compiles(),
        "sdnq_environment": _sdnq_environment(),
        "mxfp4": "packed" if stays_packed else "unpacked",
        "cpu_cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "threads": torch.get_num_threads(),
        "waiting_threads": printable(" ".join(f"{name}={value}" for name, value in waiting_environment().items())),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "lensconv": __version__,
        **{name: version(name) for name in _PACKAGES},
    }


def _describe_gpu(device: torch.device) -> dict[str, Any]:
    """What is only known of a GPU; without one, the values are None."""
    names = ("cuda", "driver", "cudnn", "triton", "compute_capability", "gpu_memory_gb")
    if device.type != "cuda":
        return dict.fromkeys(names)
    properties = torch.cuda.get_device_properties(device)
    found = (
        torch.version.cuda,
        _driver(),
        _cudnn(torch.backends.cudnn.version()),
        _triton(),
        f"{properties.major}.{properties.minor}",
        round(properties.total_memory / 1e9, 1),
    )
    return dict(zip(names, found, strict=True))


def _cudnn(number: int | None) -> str | None:
    """The version of cuDNN, such as 9.10.2, from its number, 91002 (``CUDNN_VERSION``; before 9.0, 8902 is 8.9.2)."""
    if number is None:
        return None
    major, rest = divmod(number, 10_000 if number >= 10_000 else 1_000)
    return f"{major}.{rest // 100}.{rest % 100}"


def _triton() -> str | None:
    with suppress(PackageNotFoundError):
        return version("triton")
    return None


def _sdnq_environment() -> dict[str, str]:
    """Variables of SDNQ that the user has set, without paths, and not longer than can be shown."""
    return {name: "(a path)" if _PATH.search(value) else printable(value) for name, value in user_environment().items()}


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
