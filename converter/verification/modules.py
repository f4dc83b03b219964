"""The modules of a quantized checkpoint, by the names in its headers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from converter.checkpoint.header import TensorEntry
from converter.checkpoint.source import Checkpoint
from converter.conversion.planning.rules import PARTS, WeightFormat, weight_format, weights_dtype_of

#: Parts that, together with a scale, show that a module is quantized.
_SIGNS_OF_A_MODULE = ("weight", "zero_point", "svd_up", "svd_down")


@dataclass(frozen=True)
class QuantizedModule:
    """A module and the tensors that store its weight."""

    name: str
    parts: Mapping[str, TensorEntry]
    """The tensors by part: ``weight``, ``scale`` and so on."""
    dtype: str
    """Dtype of the weight according to the configuration, by SDNQ's name."""
    format: WeightFormat | None
    """How this dtype is stored; None if SDNQ does not have it."""

    @property
    def elements(self) -> int | None:
        """Numbers in the unquantized weight; None if the tensors do not show it."""
        if self.format is None or "weight" not in self.parts:
            return None
        return self.format.elements(self.parts["weight"].shape)


def quantized_modules(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, QuantizedModule]:
    """The quantized modules by name: those that own a scale and a weight.

    A scale alone may be a parameter of the model; together with another part, it belongs to a module.

    Args:
        checkpoint: with its headers.
        config: content of its ``quantization_config.json``.
    """
    owners = {name.removesuffix(".scale") for name in checkpoint.tensors if name.endswith(".scale")}
    modules = {}
    for name in sorted(owners):
        parts = {
            part: checkpoint.tensors[f"{name}.{part}"].entry for part in PARTS if f"{name}.{part}" in checkpoint.tensors
        }
        if parts.keys().isdisjoint(_SIGNS_OF_A_MODULE):
            continue
        dtype = weights_dtype_of(f"{name}.weight", config)
        modules[name] = QuantizedModule(name, parts, dtype, weight_format(dtype))
    return modules
