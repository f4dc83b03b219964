"""LoRA adapters in measurements: which model had them, and what that means for the figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from converter.conversion.adapters.described import DescribedAdapters, ManifestAdapter
from converter.measurement.evidence.names import MODEL_TITLES, MODELS, ORIGINAL, QUANTIZED
from converter.presentation.tables.table import Code, Table


def describe_original(sources: Mapping[str, Any], contained: DescribedAdapters | None = None) -> str:
    """Return a sentence that says which original a quantized model with adapters was compared with.

    Args:
        sources: ``sources`` in a file of measurements; empty where it has none.
        contained: the adapters in the quantized model; by default those that the sources name.

    Returns:
        The sentence; empty if the quantized model has no adapters, as far as is known.
    """
    found = sources.get(QUANTIZED, {}).get("adapters") if contained is None else contained
    if not found:
        return ""
    if not sources:
        return (
            "The quantized model contains LoRA. Whether the original had it when it was measured was not recorded: the "
            "differences may include the effect of LoRA."
        )
    if sources[ORIGINAL].get("adapters"):
        return (
            "The quantized model contains LoRA. The original was measured with the same LoRA added to its weights, so "
            "the differences do not include the effect of LoRA."
        )
    return (
        "The quantized model contains LoRA. The original was measured without adding it: unless its files contain the "
        "same LoRA already, all differences include the effect of LoRA, not only that of quantization."
    )


def adapters_table(sources: Mapping[str, Any]) -> Table | None:
    """Return the adapters of both models, in the order in which they are added; None without any.

    Args:
        sources: ``sources`` in a file of measurements.
    """
    rows: list[list[object]] = [
        [title, Code(component), adapter["name"], ManifestAdapter(**adapter).shown_scale, Code(adapter["sha256"])]
        for model, title in zip(MODELS, MODEL_TITLES, strict=True)
        for component, adapters in sources.get(model, {}).get("adapters", {}).items()
        for adapter in adapters
    ]
    return Table(["Model", "Component", "LoRA", "Scale", "sha256"], rows, "lllrl") if rows else None
