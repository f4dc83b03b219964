"""How one weight is stored: quantized with certain options, or kept in a float dtype.

Variants of a recipe share most of their storages. Two storages of a weight with the same key have the same bytes, so
figures about it are measured once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from converter.checkpoint.layout import TensorSpec
from converter.conversion.planning.plan import Plan, PlannedModule


@dataclass(frozen=True)
class Storage:
    """How one weight is stored."""

    module: str
    """Name of the module that owns the weight."""
    source: str
    """Name of the weight in the source."""
    parts: Mapping[str, TensorSpec]
    """The tensors that it becomes, by SDNQ's names for them; under an empty name if it is kept."""
    quantized: PlannedModule | None
    """How SDNQ quantizes it; None if it is kept."""

    @property
    def bytes(self) -> int:
        """Bytes of all parts."""
        return sum(spec.bytes for spec in self.parts.values())

    @property
    def label(self) -> str:
        """What tables call it: the dtype of its weight, by SDNQ's name or that of safetensors."""
        return str(self.quantized.options["weights_dtype"]) if self.quantized else self.parts[""].dtype

    @cached_property
    def key(self) -> str:
        """A digest of everything that decides its bytes, besides the numbers of the source."""
        options = dict(self.quantized.options) if self.quantized else {}
        options.pop("param_name", None)
        parts = {part: [spec.dtype, list(spec.shape)] for part, spec in self.parts.items()}
        return hashlib.sha256(json.dumps([options, parts], sort_keys=True).encode()).hexdigest()[:16]


def storages(plan: Plan) -> dict[str, Storage]:
    """How a plan stores the weight of each module, by the module's name; tensors that are not weights are left out."""
    parts = plan.parts
    found = {
        module.name: Storage(module.name, source, parts[source], module) for source, module in plan.modules.items()
    }
    for kept in plan.kept:
        name = kept.spec.name
        if name.endswith(".weight"):
            module = name.removesuffix(".weight")
            found[module] = Storage(module, kept.source, {"": kept.spec}, None)
    return found
