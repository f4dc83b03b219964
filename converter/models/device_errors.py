"""What errors of devices have in common, whatever is done on the device."""

from __future__ import annotations

import os

import torch

from converter.errors import printable

#: The variable with which users choose the GPUs that a process sees.
_VISIBLE = "CUDA_VISIBLE_DEVICES"
#: What torch raises for a device that it cannot set up or use: without CUDA an AssertionError, and a class of its own
#: for calls that waited for the set-up.
DEVICE_ERRORS = (RuntimeError, AssertionError, torch.cuda.DeferredCudaCallError)
#: What errors say that are not of torch's class for this: those of the CPU's memory, of pinned memory, and of a GPU
#: that is being set up.
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def lacks_memory(error: BaseException) -> bool:
    """Return whether torch raised an error because memory was used up, on a device or the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in _NO_MEMORY)


def hidden_gpus() -> str:
    """Return the end of a sentence that says which GPUs this process sees; empty if the user has not chosen them."""
    value = os.environ.get(_VISIBLE)
    return "" if value is None else f"; only GPUs in {_VISIBLE}={printable(value, 80)!r} are visible"
