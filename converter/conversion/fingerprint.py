"""What decides, besides the source and the recipe, what SDNQ plans and what both kernels compute."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from converter.libraries import DECISIVE_PACKAGES, quantization_environment

#: Packages that plans and kernels use, besides those that decide the bytes. PEFT changes what diffusers imports.
_OTHER_PACKAGES = ("accelerate", "huggingface_hub", "llvmlite", "numba", "numpy", "peft")
#: Beginnings of the names of variables that change what torch, numba and their libraries compute, or on which device.
_VARIABLES = (
    *("ATEN_", "CUDA_", "DNNL_", "HIP_", "HSA_", "MKL_", "NUMBA_", "ONEAPI_", "ONEDNN_"),
    *("PYTORCH_", "ROCR_", "SYCL_", "TORCHINDUCTOR_", "TORCH_", "ZE_"),
)
#: Files that describe GPUs. SDNQ asks which one there is when it chooses how it multiplies matrices in FP8.
_GPU_FILES = (
    "proc/driver/nvidia/version",
    "proc/driver/nvidia/gpus/*/information",
    "sys/class/kfd/kfd/topology/nodes/*/properties",
)
_GPU_DEVICES = ("dev/nvidia*", "dev/kfd", "dev/dri/*", "dev/dxg")


def fingerprint() -> str | None:
    """A digest of packages, source code, processor, GPUs and environment, in hexadecimal digits.

    Returns:
        None if it cannot be known which files a package consists of.
    """
    installed = _installed()
    if installed is None:
        return None
    variables = {name: value for name, value in os.environ.items() if name.startswith(_VARIABLES)}
    content = {**installed, "environment": {**variables, **quantization_environment()}}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@cache
def _installed() -> dict[str, Any] | None:
    """What does not change while a process runs; None if it cannot be known."""
    packages = {name: _package(name) for name in (*DECISIVE_PACKAGES, *_OTHER_PACKAGES)}
    if any(found is None for found in packages.values()):
        return None
    # Imported here: it is a part of numba, which takes a moment.
    from llvmlite import binding

    try:
        return {
            "python": sys.version,
            "packages": packages,
            "source": [_source_digest(Path(__file__).parents[1]), _source_digest(_folder("sdnq"))],
            "processor": [binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()],
            "gpus": list(_gpus()),
        }
    except OSError:
        return None


def _package(name: str) -> list[str] | None:
    """Version of a package and a digest of its files; None if they may change without a trace."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        found = distribution(name)
    except PackageNotFoundError:
        return [""]
    files, origin = found.read_text("RECORD"), found.read_text("direct_url.json")
    is_editable = origin is not None and json.loads(origin).get("dir_info", {}).get("editable", False)
    # A package of this name may be in front of the installed one on the module path.
    is_installed = found.locate_file(name) == _folder(name)
    if files is None or is_editable or not is_installed:
        return None
    return [found.version, hashlib.sha256(files.encode()).hexdigest()]


def _folder(package: str) -> Path | None:
    """Where a package would be imported from."""
    found = importlib.util.find_spec(package)
    return Path(found.origin).parent if found and found.origin else None


def _source_digest(folder: Path | None) -> str:
    """A digest of all Python files below a folder."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py") if folder else ()):
        content = file.read_bytes()
        digest.update(f"{file} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _gpus() -> Iterator[str]:
    root = Path("/")
    for pattern in _GPU_FILES:
        for file in sorted(root.glob(pattern)):
            yield file.read_text(errors="replace")
    for pattern in _GPU_DEVICES:
        yield from sorted(map(str, root.glob(pattern)))
