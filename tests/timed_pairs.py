"""Pairs of processes, and slowdowns of both versions, for files of measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from converter.measurement.evidence.names import MODELS
from converter.measurement.evidence.pairs import TimedPair, used_log_ratios
from converter.measurement.evidence.statistics import compare_prompts, paired_slowdown


def pair(number: int, original_s: float | None, quantized_s: float | None, **changes: Any) -> TimedPair:
    """A pair that nothing disturbed, unless it is changed."""
    nothing: dict[str, Any] = {"attempt": 0, "interrupted": False, "used": True, "disturbed": {}, "conditions": {}}
    values = nothing | {"first": MODELS[number % 2]} | changes
    values["disturbed"] = dict.fromkeys(MODELS, ()) | values["disturbed"]
    return TimedPair(pair=number, original_s=original_s, quantized_s=quantized_s, **values)


def over_pairs(prompts: Sequence[str], pairs: Sequence[TimedPair]) -> dict[str, Any]:
    """Fields of a file that compares times over these pairs, and its slowdown, which is None for too few."""
    found = paired_slowdown(used_log_ratios(pairs))
    fields = {"timed_prompts": list(prompts), "timed_pairs": [one.to_dict() for one in pairs]}
    return {**fields, "slowdown": found and found.to_dict()}


def matrix_over_pairs(matrix: Mapping[str, Any], pairs: Sequence[TimedPair], prompts: Sequence[str]) -> dict[str, Any]:
    """A comparison matrix of the second version."""
    fields = over_pairs(prompts, pairs)
    slowdown = fields.pop("slowdown")
    rows = [{key: value for key, value in row.items() if key != "delta_percent"} for row in matrix["prompts"]]
    summary = {**matrix.get("summary", {})}
    summary.pop("slowdown", None)
    summary |= {"slowdown": slowdown} if slowdown else {}
    return {**matrix, "schema": "lensconv.matrix/2", "prompts": rows, "summary": summary, **fields}


def over_prompts(original: Mapping[str, float], quantized: Mapping[str, float], *ends: float) -> dict[str, Any]:
    """A slowdown of the first version; its intervals have these ends, in percent and in seconds."""
    intervals = {"ratio_of_means_percent_interval": list(ends[:2]), "mean_difference_s_interval": list(ends[2:])}
    method = {"method": "paired percentile bootstrap over prompts", "confidence": 0.95, "resamples": 10000, "seed": 0}
    return {**(compare_prompts(original, quantized) or {}), **intervals, **method}
