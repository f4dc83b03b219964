"""What drawing takes with a source and with its release, in weights: one comparison for plans and for cards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from converter.checkpoint.components import PipelineComponent
from converter.models.pipeline_memory import (
    BFLOAT16_BYTES,
    PipelineMemory,
    QuantizedWeight,
    StoredTensor,
    in_order,
    other_memory,
    quantized_memory,
    unquantized_memory,
)


@dataclass(frozen=True)
class ConvertedWeights:
    """A component that is quantized, or will be."""

    name: str
    class_name: str
    tensors: Sequence[StoredTensor]
    """Those of its files."""
    quantized: Mapping[str, QuantizedWeight]
    """Its quantized weights, by the name of the module."""


@dataclass(frozen=True)
class FitReport:
    """What drawing takes with a source and with its release, in weights."""

    source: PipelineMemory
    result: PipelineMemory

    @property
    def is_exact(self) -> bool:
        """Whether all headers are known."""
        return not any(component.from_files for component in self.result.components)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "dtype": "bfloat16",
            "exact": self.is_exact,
            "source": self.source.to_dict(),
            "result": self.result.to_dict(),
        }

    def describe(self) -> str:
        """Return what the figures do not contain, in sentences."""
        lines = ["Weights only, loaded in bfloat16; activations come in addition."]
        if not self.is_exact:
            names = ", ".join(component.name for component in self.result.components if component.from_files)
            lines.append(f"Of {names}, only the sizes of files are known, and count.")
        lines += [
            f"Sequential offload unpacks MXFP4, and so does a device that cannot use it: {item.name} then takes "
            f"{item.without_mxfp4 / 1e9:.1f} GB instead of {item.bytes / 1e9:.1f} GB."
            for item in self.result.components
            if item.mxfp4
        ]
        return " ".join(lines)


def compare_memory(converted: Iterable[ConvertedWeights], others: Iterable[PipelineComponent]) -> FitReport:
    """Predict the weights of a pipeline by placement, before and after a conversion.

    Args:
        converted: the components that are quantized, or will be.
        others: the components that stay as they are.
    """
    kept = other_memory(others, BFLOAT16_BYTES, counts_files=True)
    source, result = [*kept], [*kept]
    for item in converted:
        for side, measure in ((source, unquantized_memory), (result, quantized_memory)):
            memory = measure(item.name, item.class_name, item.tensors, BFLOAT16_BYTES, item.quantized)
            side.append((item.class_name, memory))
    return FitReport(PipelineMemory(in_order(source)), PipelineMemory(in_order(result)))
