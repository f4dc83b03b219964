"""How much memory each stage takes at its peak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from converter.errors import printable
from converter.measurement.evidence.names import METRICS_NAME, OFFLOAD_NAME, SEQUENTIAL_NAME
from converter.presentation.charts.bars import Bar, Group, draw_groups
from converter.presentation.charts.chart import (
    MODELS,
    MOST_BYTES,
    MOST_ROWS,
    Chart,
    Evidence,
    LeftOut,
    Unit,
    check_drawable,
    choose_unit,
    exact_size,
)
from converter.presentation.charts.chart import exact_number as exact
from converter.presentation.charts.page import Heading, Key
from converter.presentation.charts.style import Theme

NAME = "memory"
TITLE = "Peak memory by stage"
#: Kinds of peaks, what to call them, and short enough for an axis; the first that was measured is drawn.
KINDS = {
    "allocated": "Peak allocated on the GPU",
    "rss": "Peak resident memory of the process",
    "reserved": "Peak reserved on the GPU",
    "device": "Peak in use on the GPU",
}
#: Parts of a generation in their order, and their names.
STAGES = {"text_encoder": "Text encoder", "transformer": "Transformer", "vae": "VAE"}
_OFFLOADS = {OFFLOAD_NAME: "Offload", SEQUENTIAL_NAME: "Sequential"}
_PARTS = {"setup": "set-up", "cold": "cold", "warm": "warm"}
_GB = 10**9
_FAILED = "failed"
_MISSING = "not measured"

#: Bytes at the peak, or why there are none.
Peak = float | str


@dataclass(frozen=True)
class _Peaks:
    """Peaks of one kind by stage, of both models."""

    kind: str
    stages: Mapping[str, tuple[Peak, Peak]]

    def values(self, index: int) -> list[float]:
        """Of one model."""
        return [pair[index] for pair in self.stages.values() if not isinstance(pair[index], str)]  # type: ignore[misc]

    @property
    def unit(self) -> Unit:
        """In which the longest bar is at least one."""
        return choose_unit(max([*self.values(0), *self.values(1)]))


def memory_chart(evidence: Evidence) -> Chart | LeftOut:
    """Peaks of loading, of the parts of a generation, and of both with offload.

    Args:
        evidence: contents by file name.

    Raises:
        EvidenceError: a peak is beyond everything that exists.
    """
    files = (METRICS_NAME, *_OFFLOADS)
    if not any(name in evidence for name in files):
        return LeftOut(NAME, f"neither {METRICS_NAME} nor {OFFLOAD_NAME} is there")
    for kind in KINDS:
        stages = _stages(evidence, kind)
        numbers = [peak for pair in stages.values() for peak in pair if not isinstance(peak, str)]
        if numbers:
            found = _Peaks(kind, stages)
            return Chart(NAME, _describe(found), partial(_draw, found))
    return LeftOut(NAME, "no peak was measured")


def _stages(evidence: Evidence, kind: str) -> dict[str, tuple[Peak, Peak]]:
    """All stages that were measured, or failed, with either model."""
    rows: dict[str, tuple[Peak, Peak]] = {}
    if METRICS_NAME in evidence:
        models = [evidence[METRICS_NAME]["models"][model] for model in MODELS]
        rows["Load"] = _pair([_peak(model, f"load_peak_{kind}_gb") for model in models])
        rows |= _generation(models, kind)
    for file, word in _OFFLOADS.items():
        if file in evidence:
            models = [evidence[file]["models"][model] for model in MODELS]
            for part, name in _PARTS.items():
                rows[f"{word} {name}"] = _pair([_peak(model[part], f"peak_{kind}_gb") for model in models])
    return {name: pair for name, pair in rows.items() if set(pair) != {_MISSING}}


def _generation(models: Sequence[Mapping[str, Any]], kind: str) -> dict[str, tuple[Peak, Peak]]:
    stages = [model.get("stages", {}) for model in models]
    names = [name for name in STAGES if any(name in found for found in stages)]
    names += sorted({name for found in stages for name in found if name not in STAGES})
    rows = {}
    for name in names[:MOST_ROWS]:
        shown = STAGES.get(name, name)
        rows[shown] = _pair([_peak(found.get(name, {}), f"peak_{kind}_gb") for found in stages])
    if any(set(pair) != {_MISSING} for pair in rows.values()):
        return rows
    return {"Generation": _pair([_peak(model, f"generation_peak_{kind}_gb") for model in models])}


def _pair(peaks: Sequence[Peak]) -> tuple[Peak, Peak]:
    first, second = peaks
    return first, second


def _peak(figures: Mapping[str, Any], key: str) -> Peak:
    """Bytes; of several measurements the most, where the file has it."""
    if _FAILED in figures and isinstance(figures[_FAILED], str):
        return _FAILED
    value = figures.get(key)
    if isinstance(value, Mapping):
        value = value.get("max", value["mean"])
    if value is None:
        return _MISSING
    check_drawable(METRICS_NAME, key, [value], MOST_BYTES / _GB)
    return float(value) * _GB


def _draw(found: _Peaks, theme: Theme) -> Figure:
    unit = found.unit
    groups = [Group(name, _bar(pair[0], unit), _bar(pair[1], unit)) for name, pair in found.stages.items()]
    keys = (Key("Original", "original"), Key("Quantized", "quantized"))
    heading = Heading(TITLE, _summary(found), keys)
    return draw_groups(theme, heading, groups, f"{KINDS[found.kind]} ({unit.name})")


def _bar(peak: Peak, unit: Unit) -> Bar:
    return Bar((), peak) if isinstance(peak, str) else Bar((unit.of(peak),), unit.show(peak))


def _summary(found: _Peaks) -> str:
    unit = found.unit
    sides = [
        f"{exact(unit.of(max(values)))} {unit.name} {model}"
        for index, model in enumerate(MODELS)
        if (values := found.values(index))
    ]
    return f"At most {', '.join(sides)}"


def _describe(found: _Peaks) -> str:
    rows = []
    for name, pair in found.stages.items():
        sides = [
            f"{model} {peak if isinstance(peak, str) else exact_size(peak)}"
            for model, peak in zip(MODELS, pair, strict=True)
        ]
        rows.append(f"{printable(name, 40)}: {', '.join(sides)}")
    return f"{TITLE} ({KINDS[found.kind].lower().replace('gpu', 'GPU')}). {'; '.join(rows)}."
