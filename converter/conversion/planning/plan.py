"""The plan: what becomes of every tensor, known from headers and config alone.

A plan is a plain value. ``planner``, beside this module, makes it by running SDNQ on the model's class without
weights; ``prediction`` derives the same one without torch, for Lens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from converter.checkpoint.layout import TensorSpec
from converter.checkpoint.source import Checkpoint
from converter.models.families import family


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor of the output."""

    spec: TensorSpec
    source: str
    """Name of the tensor in the source that it is made from."""
    part: str = ""
    """Which of SDNQ's results it is, for example ``scale``; empty when the tensor is kept."""


@dataclass(frozen=True, slots=True)
class PlannedModule:
    """A module that gets quantized."""

    name: str
    source: str
    """Name of its weight in the source."""
    shape: tuple[int, ...]
    """Of the weight."""
    options: Mapping[str, Any]
    """Arguments of ``sdnq.quantizer.sdnq_quantize_layer_weight``, with ``torch_dtype`` by its name."""


@dataclass(frozen=True)
class Plan:
    """Everything that a conversion will write, except the values of the weights."""

    class_name: str
    stem: str
    """Name of the weight file without its suffix."""
    tensors: tuple[PlannedTensor, ...]
    """In the order of the model's state dict, which decides the shards."""
    modules: Mapping[str, PlannedModule]
    """Quantized modules by the source name of their weight."""
    ignored: tuple[str, ...] = ()
    """Tensors of the source that the class does not load."""
    index_metadata: Mapping[str, int] = field(default_factory=dict)
    """What the index of the shards says beside the total size."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Content of ``config.json``."""
    quantization_config: Mapping[str, Any] = field(default_factory=dict)
    """Content of ``quantization_config.json``."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of the packages that decide the bytes."""

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """The tensors of the output, in the order of the state dict."""
        return tuple(tensor.spec for tensor in self.tensors)

    @property
    def kept(self) -> tuple[PlannedTensor, ...]:
        """The tensors that are copied, rounded to their new dtype."""
        return tuple(tensor for tensor in self.tensors if not tensor.part)

    @property
    def kept_modules(self) -> tuple[str, ...]:
        """Modules that own a weight and are not quantized, by name."""
        return tuple(
            tensor.spec.name.removesuffix(".weight") for tensor in self.kept if tensor.spec.name.endswith(".weight")
        )


@dataclass(frozen=True)
class FamilyTotals:
    """What a family takes before and after."""

    name: str
    source_bytes: int
    output_bytes: int
    quantized: bool
    """Whether any of its modules is quantized."""

    def to_dict(self) -> dict[str, Any]:
        """As the JSON of ``plan`` and ``verify`` shows it."""
        return {
            "name": self.name,
            "source_bytes": self.source_bytes,
            "output_bytes": self.output_bytes,
            "quantized": self.quantized,
        }


def family_totals(plan: Plan, checkpoint: Checkpoint) -> tuple[FamilyTotals, ...]:
    """Add the plan up by family, the largest source first."""
    source: dict[str, int] = {}
    output: dict[str, int] = {}
    quantized: set[str] = set()
    for name, tensor in checkpoint.tensors.items():
        key = family(name, plan.class_name)
        source[key] = source.get(key, 0) + tensor.entry.bytes
    for planned in plan.tensors:
        key = family(planned.source, plan.class_name)
        output[key] = output.get(key, 0) + planned.spec.bytes
        if planned.part:
            quantized.add(key)
    return tuple(
        FamilyTotals(key, size, output.get(key, 0), key in quantized)
        for key, size in sorted(source.items(), key=lambda item: (-item[1], item[0]))
    )


def parameter_count(shapes: Iterable[tuple[int, ...]]) -> int:
    """Logical parameters: the elements of the unquantized model."""
    return sum(prod(shape) for shape in shapes)
