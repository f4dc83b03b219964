"""How much memory each component of a loaded pipeline takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from converter.measurement.evidence.units import DIGITS
from converter.measurement.generation.repo import WEIGHTS
from converter.models.lens.mxfp4 import packed_tensors


class Allocations:
    """What torch's allocator gave to each component while it was loaded on a GPU, one after the other.

    Args:
        device: where they are loaded; elsewhere than on a GPU nothing is counted.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = self._allocated()
        self.sizes: dict[str, int] = {}
        """Bytes by component."""

    def note(self, name: str) -> None:
        """Count what was allocated since the last call for this component."""
        now = self._allocated()
        self.sizes[name] = now - self._before
        self._before = now

    def _allocated(self) -> int:
        return torch.cuda.memory_allocated(self._device) if self._device.type == "cuda" else 0


def component_sizes(
    pipeline: Any, offload: str, allocations: Allocations, names: Iterable[str] = WEIGHTS
) -> dict[str, dict[str, float]]:
    """Return the memory of each component in GB, and how much of it is on an accelerator.

    Where everything is on a GPU, that is what torch's allocator gave. Elsewhere it is the size of the tensors.

    Args:
        pipeline: loaded.
        offload: as in ``GenerateOptions``.
        allocations: of its loading.
        names: of its components with weights.
    """
    if offload == "none" and any(allocations.sizes.values()):
        return {name: _in_gb(size, size) for name, size in allocations.sizes.items()}
    components = {name: getattr(pipeline, name) for name in names}
    # With sequential offloading, the weights of the models are on the meta device.
    return {name: _in_gb(*_tensor_bytes(model)) for name, model in components.items() if model.device.type != "meta"}


def _tensor_bytes(model: torch.nn.Module) -> tuple[int, int]:
    """Bytes of a model's parameters, buffers and packed experts, and how many of them are on an accelerator."""
    sizes = {
        tensor.untyped_storage().data_ptr(): (tensor.untyped_storage().nbytes(), tensor.device.type)
        for tensor in (*model.parameters(), *model.buffers(), *packed_tensors(model))
    }
    return sum(size for size, _ in sizes.values()), sum(size for size, kind in sizes.values() if kind != "cpu")


def _in_gb(memory: int, device: int) -> dict[str, float]:
    return {"memory_gb": round(memory / 1e9, DIGITS), "device_gb": round(device / 1e9, DIGITS)}
