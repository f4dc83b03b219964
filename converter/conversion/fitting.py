"""What drawing takes with a source and with what a conversion would make of it, in weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

from converter.checkpoint.components import PipelineComponent
from converter.conversion.planning.plan import Plan
from converter.models.pipeline_memory import (
    BFLOAT16_BYTES,
    FitReport,
    PipelineMemory,
    QuantizedWeight,
    in_order,
    other_memory,
    quantized_memory,
    quantized_weight,
    unquantized_memory,
)


def plan_memory(plans: Sequence[tuple[str, Plan]], others: Iterable[PipelineComponent]) -> FitReport:
    """Predict the weights of a pipeline by placement, before and after a conversion.

    Args:
        plans: names of the components that are converted, and what they become.
        others: the components that stay as they are.
    """
    kept = other_memory(others, BFLOAT16_BYTES, counts_files=True)
    source, result = [*kept], [*kept]
    for name, plan in plans:
        quantized = _quantized(plan)
        for side, measure in ((source, unquantized_memory), (result, quantized_memory)):
            side.append((plan.class_name, measure(name, plan.class_name, plan.specs, BFLOAT16_BYTES, quantized)))
    return FitReport(PipelineMemory(in_order(source)), PipelineMemory(in_order(result)))


def _quantized(plan: Plan) -> dict[str, QuantizedWeight]:
    """The quantized weights by the names that modules have in the files."""
    found = {}
    for source, parts in plan.parts.items():
        module = plan.modules[source]
        found[parts["weight"].name.removesuffix(".weight")] = quantized_weight(
            prod(module.shape), plan.stem, dequantize_fp32=bool(module.options.get("dequantize_fp32", True))
        )
    return found
