"""How much memory the weights of a pipeline take, by component, from headers; without torch.

What a pipeline computes while it runs takes memory in addition, which headers do not tell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from converter.checkpoint.components import PipelineComponent
from converter.checkpoint.dtypes import WEIGHT_DTYPES


@dataclass(frozen=True)
class ComponentMemory:
    """The weights of a component once they are loaded."""

    name: str
    bytes: int
    largest_module: int
    """Bytes of the most that is moved at once where each module is moved by itself."""


@dataclass(frozen=True)
class PipelineMemory:
    """The weights of a pipeline."""

    components: tuple[ComponentMemory, ...]

    @property
    def total(self) -> int:
        """Bytes of all weights."""
        return sum(component.bytes for component in self.components)

    @property
    def largest(self) -> int:
        """Bytes of the largest component."""
        return max((component.bytes for component in self.components), default=0)

    def placed(self, offload: str, *, on_cpu: bool) -> tuple[int, int]:
        """The most bytes of weights on the host and on the accelerator at the same time.

        Args:
            offload: ``none``, each component is moved to the accelerator once it is loaded; ``model``, it is moved
                when it runs; ``sequential``, so is each module.
            on_cpu: whether there is no accelerator.
        """
        if on_cpu:
            return self.total, 0
        module = max((component.largest_module for component in self.components), default=0)
        placements = {"none": (self.largest, self.total), "model": (self.total, self.largest)}
        return placements.get(offload, (self.total, module))


def pipeline_memory(components: Iterable[PipelineComponent], size: int) -> PipelineMemory:
    """Add up the weights of the components that have some.

    Args:
        components: with their headers.
        size: bytes of a number in the dtype of the computation.
    """
    return PipelineMemory(tuple(_component_memory(item, size) for item in components if item.is_model))


def _component_memory(component: PipelineComponent, size: int) -> ComponentMemory:
    modules: Counter[str] = Counter()
    for header in component.headers:
        for name, entry in header.tensors.items():
            # What is no float, such as the codes of SDNQ, is loaded as it is.
            loaded = prod(entry.shape) * size if entry.dtype in WEIGHT_DTYPES else entry.bytes
            modules[name.rpartition(".")[0]] += loaded
    sizes = tuple(modules.values())
    return ComponentMemory(component.name, sum(sizes), max(sizes, default=0))
