"""What drawing takes with a source and with what a conversion would make of it, in weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

from converter.checkpoint.components import PipelineComponent
from converter.conversion.planning.plan import Plan
from converter.models.pipeline_fit import ConvertedWeights, FitReport, compare_memory
from converter.models.pipeline_memory import QuantizedWeight, quantized_weight


def plan_memory(plans: Sequence[tuple[str, Plan]], others: Iterable[PipelineComponent]) -> FitReport:
    """Predict the weights of a pipeline by placement, before and after a conversion.

    Args:
        plans: names of the components that are converted, and what they become.
        others: the components that stay as they are.
    """
    converted = (ConvertedWeights(name, plan.class_name, plan.specs, _quantized(plan)) for name, plan in plans)
    return compare_memory(converted, others)


def _quantized(plan: Plan) -> dict[str, QuantizedWeight]:
    """The quantized weights by the names that modules have in the files."""
    found = {}
    for source, parts in plan.parts.items():
        module = plan.modules[source]
        found[parts["weight"].name.removesuffix(".weight")] = quantized_weight(
            prod(module.shape), plan.stem, dequantize_fp32=bool(module.options.get("dequantize_fp32", True))
        )
    return found
