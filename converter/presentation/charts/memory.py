"""The chart of memory: how much each stage takes at its peak."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from converter.measurement.evidence import names
from converter.measurement.evidence.units import GB
from converter.measurement.evidence.weights import TRANSFORMER, denoiser_title
from converter.presentation.charts.bars import Bar, Group, draw_groups
from converter.presentation.charts.chart import MOST_BYTES, MOST_ROWS, Chart, Evidence, LeftOut, check_drawable
from converter.presentation.charts.figures import Unit, choose_unit, describe_rows, exact_size
from converter.presentation.charts.page import Heading, Key

NAME = "memory"
TITLE = "Peak memory by stage"
_PARTS = dict(zip(names.OFFLOAD_PARTS, ("set-up", "cold", "warm"), strict=True))
_FAILED = "failed"
_MISSING = "not measured"

#: Bytes at the peak, or why there are none.
Peak = float | str
#: Peaks of both models by stage.
Stages = dict[str, list[Peak]]


def memory_chart(evidence: Evidence) -> Chart | LeftOut:
    """Return peaks of loading, of the parts of a generation, and of both with offload.

    Args:
        evidence: contents by file name.

    Raises:
        EvidenceError: a peak is larger than anything that can be measured.
    """
    files = (names.METRICS_NAME, *names.OFFLOAD_FILES.values())
    if not any(name in evidence for name in files):
        return LeftOut(NAME, f"none of {', '.join(files)} exists")
    for kind, label in names.CHART_PEAKS.items():
        stages = _stages(evidence, kind)
        by_model = [
            [peak for peak in peaks if not isinstance(peak, str)] for peaks in zip(*stages.values(), strict=True)
        ]
        if any(by_model):
            return _chart(stages, by_model, label)
    return LeftOut(NAME, "no peak was measured")


def _chart(stages: Stages, by_model: Sequence[Sequence[float]], label: str) -> Chart:
    unit = choose_unit(max(max(peaks) for peaks in by_model if peaks))
    sides = (
        f"{exact_size(max(peaks), unit)} {model}" for model, peaks in zip(names.MODELS, by_model, strict=True) if peaks
    )
    keys = tuple(Key(title, model) for title, model in zip(names.MODEL_TITLES, names.MODELS, strict=True))
    heading = Heading(TITLE, f"At most {', '.join(sides)}", keys)
    groups = [Group(name, [_bar(peak, unit) for peak in pair]) for name, pair in stages.items()]
    rows = {
        name: [peak if isinstance(peak, str) else exact_size(peak) for peak in pair] for name, pair in stages.items()
    }
    description = f"{TITLE} ({label.lower().replace('gpu', 'GPU')}). {describe_rows(rows)}"
    return Chart(
        NAME, description, partial(draw_groups, heading=heading, groups=groups, label=f"{label} ({unit.name})")
    )


def _bar(peak: Peak, unit: Unit) -> Bar:
    return Bar((), peak) if isinstance(peak, str) else Bar((unit.of(peak),), unit.show(peak))


def _stages(evidence: Evidence, kind: str) -> Stages:
    """Return all stages that were measured, or failed, with either model."""
    rows: Stages = {}
    key = names.peak_key(kind)
    if names.METRICS_NAME in evidence:
        models = [evidence[names.METRICS_NAME]["models"][model] for model in names.MODELS]
        rows["Load"] = _peaks(names.METRICS_NAME, models, f"load_{key}")
        rows |= _generation(models, key, denoiser_title(evidence[names.METRICS_NAME]))
    for mode, file in names.OFFLOAD_FILES.items():
        if file in evidence:
            models = [evidence[file]["models"][model] for model in names.MODELS]
            for part, name in _PARTS.items():
                rows[f"{mode.capitalize()} {name}"] = _peaks(file, (model[part] for model in models), key)
    return {name: pair for name, pair in rows.items() if set(pair) != {_MISSING}}


def _generation(models: Sequence[Mapping[str, Any]], key: str, denoiser: str) -> Stages:
    titles = {**names.STAGES, TRANSFORMER: denoiser}
    stages = [model.get("stages", {}) for model in models]
    known = [name for name in names.STAGES if any(name in found for found in stages)]
    others = sorted({name for found in stages for name in found if name not in names.STAGES})
    rows = {
        titles.get(name, name): _peaks(names.METRICS_NAME, (found.get(name, {}) for found in stages), key)
        for name in [*known, *others][:MOST_ROWS]
    }
    if any(set(pair) != {_MISSING} for pair in rows.values()):
        return rows
    return {"Generation": _peaks(names.METRICS_NAME, models, f"generation_{key}")}


def _peaks(file: str, figures: Iterable[Mapping[str, Any]], key: str) -> list[Peak]:
    return [_peak(file, model, key) for model in figures]


def _peak(file: str, figures: Mapping[str, Any], key: str) -> Peak:
    """Return bytes; of several measurements the most, where the file has it."""
    if isinstance(figures.get(_FAILED), str):
        return _FAILED
    value = figures.get(key)
    if isinstance(value, Mapping):
        value = value.get("max", value["mean"])
    if value is None:
        return _MISSING
    check_drawable(file, key, [value], MOST_BYTES / GB)
    return float(value) * GB
