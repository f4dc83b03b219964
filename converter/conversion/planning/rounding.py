"""How the codes of each module are chosen: as the recipe says where that works, or else as the next best way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from converter.checkpoint.layout import TensorSpec
from converter.checkpoint.source import SourceTensor
from converter.conversion.planning.plan import Plan, PlannedModule
from converter.conversion.planning.rules import weight_format
from converter.conversion.recipe.recipe import CALIBRATED, NEAREST, SCALE
from converter.conversion.request import Target
from converter.errors import CalibrationError, RecipeError

#: Options of SDNQ that couple the rows of a weight, or make its codes more than multiples of a scale.
COUPLES = ("use_svd", "use_hadamard", "use_codebook", "use_stochastic_rounding", "use_dynamic_quantization")
QUANTIZED_SCALES = ("scale_dtype", "zero_point_dtype")
#: The widest codes whose scales are searched; more bits leave next to no error.
_MOST_BITS = 8
#: The largest rms error of a group that calibration may leave, in steps of its scale, or of SDNQ's if that is larger:
#: then a damaged weight can still be told from a calibrated one. On trained weights, errors came to 1.3 steps.
MOST_STEPS = 2.0


@dataclass(frozen=True)
class Roundings:
    """How the codes of a component are chosen."""

    method: str
    """The recipe's rounding."""
    by_source: Mapping[str, str]
    """The rounding of each quantized module, by the source name of its weight."""
    names: Mapping[str, str]
    """Names of these modules, by the same."""
    calibration_sha256: str = ""
    """Of the file of the calibration; empty without one."""
    moments: Mapping[str, SourceTensor] = field(default_factory=dict)
    """Second moments of the inputs of calibrated modules, by the source name of their weight."""

    def modules(self, rounding: str) -> tuple[str, ...]:
        """Names of the modules whose codes are chosen like this."""
        return tuple(sorted(self.names[source] for source, found in self.by_source.items() if found == rounding))

    def to_dict(self) -> dict[str, Any]:
        """Return an entry for JSON objects, with the modules for which the recipe's rounding does not work; empty if
        all codes are SDNQ's."""
        if self.method == NEAREST:
            return {}
        content: dict[str, Any] = {"method": self.method, "nearest": list(self.modules(NEAREST))}
        if self.method == CALIBRATED:
            content |= {"scale": list(self.modules(SCALE)), "calibration_sha256": self.calibration_sha256}
        return {"rounding": content}


def choose_roundings(plan: Plan, target: Target) -> Roundings:
    """Choose how the codes of each module are chosen.

    Args:
        plan: what is quantized.
        target: its recipe and its calibration count.

    Raises:
        CalibrationError: second moments do not have the shape of a module's inputs.
    """
    method, calibration, parts = target.recipe.rounding, target.calibration, plan.parts
    chosen, moments = {}, {}
    for source, module in plan.modules.items():
        rounding = NEAREST if method == NEAREST or not can_search(module, parts[source]) else SCALE
        found = calibration.moments.get(module.name) if calibration is not None else None
        if method == CALIBRATED and rounding == SCALE and found is not None and _is_calibrated(module):
            _refuse_shape(module, found)
            rounding, moments[source] = CALIBRATED, found
        chosen[source] = rounding
    names = {source: module.name for source, module in plan.modules.items()}
    return Roundings(method, chosen, names, calibration.sha256 if calibration else "", moments)


def can_search(module: PlannedModule, parts: Mapping[str, TensorSpec]) -> bool:
    """Whether scales of a module can be searched: its numbers are restored as multiples of a scale, from a zero point.

    Args:
        module: what to quantize and how.
        parts: the tensors that it becomes, by part.
    """
    fmt = weight_format(module.options["weights_dtype"])
    return (
        fmt is not None
        and fmt.is_integer
        and fmt.bits <= _MOST_BITS
        and not any(module.options.get(name) for name in (*COUPLES, *QUANTIZED_SCALES))
        and parts["scale"].dtype in ("BF16", "F32")
    )


def _is_calibrated(module: PlannedModule) -> bool:
    """Whether errors can be fed forward in it: a linear whose rows have scales of their own."""
    return module.options["layer_class_name"] == "Linear" and module.options.get("group_size") != -2


def _refuse_shape(module: PlannedModule, moments: SourceTensor) -> None:
    channels, entry = module.shape[1], moments.entry
    *blocks, size, _ = entry.shape
    if prod(blocks) * size != channels:
        reason = f"has shape {list(entry.shape)}, but {module.name} has {channels} input channels"
        raise CalibrationError(moments.file, reason, "Gather it again, with this model.", tensor=entry.name)


def refuse_useless_rounding(targets: Sequence[Target], plans: Sequence[Plan]) -> None:
    """Refuse a rounding that works for no module.

    Args:
        targets: what to convert.
        plans: of each.

    Raises:
        RecipeError: there is such a one.
        CalibrationError: as for ``choose_roundings``.
    """
    found = [choose_roundings(plan, target) for target, plan in zip(targets, plans, strict=True)]
    for method in dict.fromkeys(roundings.method for roundings in found):
        own = [roundings for roundings in found if roundings.method == method]
        if method == NEAREST or any(method in roundings.by_source.values() for roundings in own):
            continue
        recipe = targets[found.index(own[0])].recipe
        wanted = "linear layers that the calibration knows, and " if method == CALIBRATED else ""
        raise RecipeError(
            f"recipe {recipe.name}",
            f"rounding = {method} works for none of the modules that it quantizes",
            f"It needs {wanted}integers of at most 8 bits, without SVD, rotation, codebook, stochastic rounding, "
            "dynamic dtypes and quantized scales. For other options, use --rounding nearest.",
        )
