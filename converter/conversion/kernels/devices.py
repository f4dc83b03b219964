"""A device other than the CPU: opened once for a conversion, with a queue of work and buffers for each thread.

Everything that only CUDA has is in this module. On other devices copies wait until they are done, in plain memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from converter.errors import DeviceError, MemoryLimitError, ResourceError, first_line
from converter.models.device_errors import DEVICE_ERRORS, hidden_gpus, lacks_memory

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Device:
    """A device that works."""

    torch_device: torch.device
    """With its index, if it is a CUDA device."""
    name: str
    """What the bytes depend on where SDNQ's own functions run there: the card's name, or else the name in torch."""

    @property
    def is_cuda(self) -> bool:
        """Whether it has streams, and copies from and to pinned memory while it computes."""
        return bool(self.torch_device.type == "cuda")

    @contextmanager
    def used(self) -> Iterator[None]:
        """Compute on this device in this thread while the block runs, beside what other threads compute there.

        Raises:
            MemoryLimitError: the device, or main memory for copies from and to it, is full.
            DeviceError: the device failed.
        """
        with blaming_device("the conversion", self.torch_device):
            if not self.is_cuda:
                yield
                return
            with torch.cuda.device(self.torch_device), torch.cuda.stream(torch.cuda.Stream(self.torch_device)):
                yield

    def buffer(self, size: int) -> Bytes:
        """Memory of so many bytes for copies from and to the device."""
        data: Bytes = torch.empty(size, dtype=torch.uint8, pin_memory=self.is_cuda).numpy()
        return data

    def upload(self, source: torch.Tensor) -> torch.Tensor:
        """Copy a tensor to the device; the source must not change before ``finish``."""
        return source.to(self.torch_device, non_blocking=self.is_cuda)

    def download(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copy a tensor from the device; the target is filled after ``finish``."""
        target.copy_(source, non_blocking=self.is_cuda)

    def finish(self) -> None:
        """Wait for all that this thread has asked for."""
        if self.is_cuda:
            torch.cuda.current_stream(self.torch_device).synchronize()


@contextmanager
def opened_device(name: str) -> Iterator[Device]:
    """Open a device for the block, and make it the one that this thread uses.

    Args:
        name: its name in torch.

    Raises:
        DeviceError: torch does not know it, or the machine does not have it.
    """
    device = _open(name)
    with device.used():
        yield device


def _open(name: str) -> Device:
    try:
        found = torch.device(name)
        if found.type == "cuda":
            found = torch.device("cuda", torch.cuda.current_device() if found.index is None else found.index)
        torch.empty(1, device=found).cpu()
        return Device(found, torch.cuda.get_device_name(found) if found.type == "cuda" else name)
    except (ImportError, NotImplementedError) as error:
        raise DeviceError(f"device {name}: this build of torch cannot use it", "Use --device cpu.") from error
    except DEVICE_ERRORS as error:
        hidden = hidden_gpus() if name.startswith("cuda") else ""
        raise DeviceError(f"device {name}: {first_line(error)}{hidden}", "Use --device cpu.") from error


@contextmanager
def blaming_device(where: str, device: torch.device) -> Iterator[None]:
    """Raise ``device_failure`` for what torch raises in the block; arguments as there."""
    try:
        yield
    except RuntimeError as error:
        failure = device_failure(error, where, device)
        if failure is None:
            raise
        raise failure from error


def device_failure(error: Exception, where: str, device: torch.device) -> ResourceError | None:
    """Return the error for a device, or the CPU, that has too little memory or has failed.

    Args:
        error: what torch raised.
        where: the tensor that was converted, if it is known.
        device: where.

    Returns:
        None when the device is not the reason.
    """
    if lacks_memory(error):
        reason = f"{where}: device {device} does not have enough memory for it"
        return MemoryLimitError(reason, "Free some memory, or use another device.")
    if isinstance(error, torch.AcceleratorError):
        reason = f"{where}: device {device} failed: {first_line(error)}"
        return DeviceError(reason, "Run the command again; if the device fails again, use --device cpu.")
    return None
