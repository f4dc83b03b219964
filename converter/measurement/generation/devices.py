"""Devices, by their names on the command line."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from converter.errors import DeviceError, MemoryLimitError, UsageError, first_line
from converter.models.device_errors import DEVICE_ERRORS, hidden_gpus, lacks_memory

#: What torch says where there is a driver, but no GPU that this process sees.
_NO_GPU = "No CUDA GPUs are available"


def choose_device(name: str) -> torch.device:
    """Return the device of a name; ``auto`` is a GPU if there is one.

    Raises:
        UsageError: the name is not that of a device.
        DeviceError: this machine does not have it.
    """
    with warnings.catch_warnings():
        if name != "auto":
            # The error below says what torch warns of.
            warnings.simplefilter("ignore")
        has_gpu = torch.cuda.is_available()
    if name == "auto":
        name = "cuda" if has_gpu else "cpu"
    match = re.fullmatch(r"cpu|cuda(?::(\d{1,3}))?", name)
    if match is None:
        raise UsageError(f"--device {name}: must be auto, cpu, cuda, or cuda:0, cuda:1 …")
    if name == "cpu":
        return torch.device("cpu")
    if not has_gpu:
        reason = f"torch {torch.__version__} sees no CUDA GPU on this machine: {_initialization_error()}{hidden_gpus()}"
        hides = hidden_gpus() and _NO_GPU in reason
        advice = "set CUDA_VISIBLE_DEVICES to others" if hides else "install a CUDA build of torch and a driver for it"
        raise DeviceError(f"--device {name}: {reason}", f"Use --device cpu, or {advice}.")
    number, count = int(match[1] or 0), torch.cuda.device_count()
    if number >= count:
        seen = f"{count} GPU{'s' if count > 1 else ''}"
        raise DeviceError(f"--device {name}: this machine has {seen}, counted from 0{hidden_gpus()}")
    return torch.device("cuda", number)


def use_device(device: torch.device) -> None:
    """Set up a device, and make it torch's current one in the calling thread; nothing is done for a CPU.

    Triton launches its kernels on the current device, whatever the device of their arguments, and SDNQ looks at its
    abilities when it is imported.

    Raises:
        DeviceError: it cannot be used, for example because another process has it to itself.
        MemoryLimitError: its memory is used up.
    """
    if device.type == "cpu":
        return
    with blaming_device(device):
        torch.cuda.set_device(device)
        torch.zeros(1, device=device).item()


@contextmanager
def blaming_device(device: torch.device) -> Iterator[None]:
    """Turn errors of torch about a device, inside the block, into one line that names it.

    Raises:
        DeviceError: it cannot be used.
        MemoryLimitError: its memory is used up.
    """
    try:
        yield
    except DEVICE_ERRORS as error:
        reason = _first_sentence(error)
        if lacks_memory(error):
            raise MemoryLimitError(
                f"--device {device}: its memory is used up: {reason}", "End other programs that use it."
            ) from error
        raise DeviceError(
            f"--device {device}: cannot be used: {reason}", "End other programs that use it, or use another device."
        ) from error


def _initialization_error() -> str:
    """What torch says when it sets up CUDA, such as that the driver is too old."""
    try:
        torch.cuda.init()
    except DEVICE_ERRORS as error:
        return _first_sentence(error)
    return "no GPU is available"


def _first_sentence(error: Exception) -> str:
    # Not at abbreviations, which torch uses, too.
    return re.split(r"\. (?=[A-Z])", first_line(error))[0].rstrip(".")
