"""How one tensor of a model is stored: quantized with certain options, or kept in a float dtype.

Variants of a recipe share most of their storages. Two storages of a tensor with the same key have the same bytes, so
figures about it are measured once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from converter.checkpoint.layout import TensorSpec
from converter.conversion.planning.plan import Plan, PlannedModule
from converter.conversion.planning.rounding import can_search
from converter.conversion.recipe.recipe import CALIBRATED, NEAREST
from converter.errors import RecipeError


@dataclass(frozen=True)
class Storage:
    """How one tensor of the source is stored."""

    source: str
    """Name of the tensor in the source."""
    parts: Mapping[str, TensorSpec]
    """The tensors that it becomes, by SDNQ's names for them; under an empty name if it is kept."""
    quantized: PlannedModule | None
    """The module that owns it, and how SDNQ quantizes it; None if it is kept."""
    rounding: str = NEAREST
    """How codes are chosen, as a recipe names it."""

    @property
    def bytes(self) -> int:
        """Bytes of all parts."""
        return sum(spec.bytes for spec in self.parts.values())

    @property
    def is_random(self) -> bool:
        """Whether SDNQ draws random numbers for it."""
        options = self.quantized.options if self.quantized else {}
        return bool(options.get("use_svd") or options.get("use_stochastic_rounding"))

    @property
    def label(self) -> str:
        """What tables call it: the dtype of its numbers, by SDNQ's name or that of safetensors."""
        return str(self.quantized.options["weights_dtype"]) if self.quantized else self.parts[""].dtype

    @cached_property
    def key(self) -> str:
        """A digest of everything that decides its bytes, besides the numbers of the source."""
        options = dict(self.quantized.options) if self.quantized else {}
        options.pop("param_name", None)
        parts = {part: [spec.dtype, list(spec.shape)] for part, spec in self.parts.items()}
        rounding = [] if self.rounding == NEAREST else [self.rounding]
        return hashlib.sha256(json.dumps([options, parts, *rounding], sort_keys=True).encode()).hexdigest()

    def spool_file(self, folder: Path) -> Path:
        """The file of a folder that has its parts, by name, once it is quantized.

        The file also has ``column_noise``, F32: the squared error of the restored weight, added up over everything but
        the input channels (axis 1).
        """
        return folder / f"{hashlib.sha256(f'{self.source} {self.key}'.encode()).hexdigest()}.safetensors"


def storages(plan: Plan, rounding: str = NEAREST) -> dict[str, Storage]:
    """How a plan stores each tensor of the source, by its name there.

    Args:
        plan: what is quantized.
        rounding: the recipe's; modules for which it does not work have SDNQ's codes.

    Raises:
        RecipeError: the rounding needs a calibration.
    """
    if rounding == CALIBRATED:
        raise RecipeError(
            "rounding = calibrated", "needs a calibration, which is not used here", "Use nearest or scale."
        )
    parts = plan.parts
    found = {kept.source: Storage(kept.source, {"": kept.spec}, None) for kept in plan.kept}
    for source, module in plan.modules.items():
        own = rounding if can_search(module, parts[source]) else NEAREST
        found[source] = Storage(source, parts[source], module, own)
    return found
