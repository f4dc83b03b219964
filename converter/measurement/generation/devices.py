"""Devices, by their names on the command line."""

from __future__ import annotations

import re

import torch

from converter.errors import DeviceError, UsageError


def choose_device(name: str) -> torch.device:
    """Return the device of a name; ``auto`` is a GPU if there is one.

    Raises:
        UsageError: the name is not that of a device.
        DeviceError: this machine does not have it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    match = re.fullmatch(r"cpu|cuda(?::(\d{1,3}))?", name)
    if match is None:
        raise UsageError(f"--device {name}: must be auto, cpu, cuda, or cuda:0, cuda:1 …")
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise DeviceError(
            f"--device {name}: torch {torch.__version__} sees no CUDA GPU on this machine",
            "Use --device cpu, or install a CUDA build of torch and the driver.",
        )
    number = int(match[1] or 0)
    if number >= torch.cuda.device_count():
        raise DeviceError(f"--device {name}: this machine has {torch.cuda.device_count()} GPUs, counted from 0")
    return torch.device("cuda", number)
