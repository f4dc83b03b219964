"""What drawing with a release takes, in weights: predicted from its headers, beside what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from converter.conversion.planning.rules import option_of
from converter.measurement.evidence.names import METRICS_NAME, MODELS, OFFLOAD_FILES, QUANTIZED, STANDARD, peak_key
from converter.measurement.evidence.units import GB
from converter.models.pipeline_fit import ConvertedWeights, FitReport, compare_memory
from converter.models.pipeline_memory import PLACEMENTS, Placement, QuantizedWeight, quantized_weight
from converter.presentation.card.component import CardComponent
from converter.presentation.card.evidence import CardEvidence
from converter.presentation.card.release import CardRelease
from converter.presentation.card.table_markdown import to_markdown
from converter.presentation.tables.figures import number, size
from converter.presentation.tables.table import NOTHING, Table

#: Memory of graphics cards that people have, in GB; of a card of 12 GiB, programs get a little more than 12 GB.
_CARDS = (8, 12, 16, 24)
#: Bytes that must be left for a placement to be named: a context of CUDA takes about half of it, and no image takes
#: nothing. How much one takes depends on the model and the size of the image, and is not known from headers.
_ROOM = GB
_MEASURED = "measured peak, GB"
#: The mode of a benchmark that measures a placement.
_MODES: dict[Placement, str] = {"none": STANDARD, "model": "offload", "sequential": "sequential"}


def release_memory(release: CardRelease) -> FitReport | None:
    """Predict the weights of a release and of its source, by placement; None outside of a pipeline."""
    if not release.components:
        return None
    converted = (
        ConvertedWeights(
            component.name,
            component.class_name,
            [tensor.entry for tensor in component.audit.checkpoint.tensors.values()],
            dict(_quantized(component)),
        )
        for component in release.converted
    )
    return compare_memory(converted, release.other_components)


def _quantized(component: CardComponent) -> Iterator[tuple[str, QuantizedWeight]]:
    """Yield the quantized weights of a component by module."""
    shapes, config = component.described.shapes, component.audit.config
    for name, module in component.audit.modules.items():
        elements = prod(shapes[name]) if name in shapes else module.elements or 0
        in_float32 = bool(option_of(f"{name}.weight", "dequantize_fp32", config, default=True))
        yield name, quantized_weight(elements, component.audit.checkpoint.stem, dequantize_fp32=in_float32)


def memory_table(fit: FitReport, files: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return a row for each placement, with peaks where they were measured.

    Args:
        fit: what is predicted.
        files: measurements by name.
    """
    sides = (fit.source, fit.result)
    rows: list[list[object]] = []
    for placement, words in PLACEMENTS.items():
        placed = [memory.placed(placement, on_cpu=False) for memory in sides]
        row: list[object] = [words]
        for model, (ram, device) in zip(MODELS, placed, strict=True):
            row += [size(device), number(_measured_peak(files, placement, model)), size(ram)]
        rows.append(row)
    titles = ["device", _MEASURED, "RAM"]
    columns = ["Placement", *(f"{side}: {title}" for side in ("Source", "Release") for title in titles)]
    shown = [column for column in range(len(columns)) if any(row[column] != NOTHING for row in rows)]
    return Table([columns[column] for column in shown], [[row[column] for column in shown] for row in rows])


def _measured_peak(files: Mapping[str, Mapping[str, Any]], placement: Placement, model: str) -> float | None:
    """The most that torch allocated on a device in a mode of the benchmark, in GB; None if it was not measured."""
    mode, key = _MODES[placement], peak_key("allocated")
    if mode == STANDARD:
        found = files.get(METRICS_NAME, {}).get("models", {}).get(model, {})
        peaks = [_most(found.get(f"generation_{key}"))]
    else:
        found = files.get(OFFLOAD_FILES[mode], {}).get("models", {}).get(model, {})
        peaks = [_most(found.get(part, {}).get(key)) for part in ("cold", "warm")]
    return max((peak for peak in peaks if peak is not None), default=None)


def _most(value: Any) -> float | None:
    """A figure, or the largest of several."""
    value = value.get("max") if isinstance(value, Mapping) else value
    return float(value) if isinstance(value, int | float) else None


def describe_cards(fit: FitReport, files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each size of a graphics card: the fastest placement whose weights leave room on it.

    Args:
        fit: what is predicted.
        files: measurements by name; a placement whose measured peak is larger than the card is left out.
    """
    device = {placement: fit.result.placed(placement, on_cpu=False)[1] for placement in PLACEMENTS}
    peaks = {placement: _measured_peak(files, placement, QUANTIZED) for placement in PLACEMENTS}
    found = []
    for card in _CARDS:
        having_room = (name for name, taken in device.items() if taken + _ROOM <= card * GB)
        fitting = next((name for name in having_room if (peaks[name] or 0) <= card), None)
        if fitting is None:
            found.append(f"{card} GB: no placement leaves room.")
            continue
        left, peak = (card * GB - device[fitting]) / GB, peaks[fitting]
        measured = "" if peak is None else f"; the measured peak is {peak:.1f} GB"
        found.append(
            f"{card} GB: {PLACEMENTS[fitting]}; weights take {size(device[fitting])}, which leaves {left:.1f} GB for "
            f"activations{measured}."
        )
    return found


def describe_memory(release: CardRelease, evidence: CardEvidence) -> dict[str, Any] | None:
    """Return what a template shows; None outside of a pipeline."""
    fit = release_memory(release)
    if fit is None:
        return None
    # What was measured on other weights does not belong beside these.
    files = {} if evidence.contradictions else evidence.files
    table = memory_table(fit, files)
    return {
        "table": to_markdown(table),
        "is_measured": any(_MEASURED in column for column in table.columns),
        "cards": describe_cards(fit, files),
        "words": fit.describe(),
    }
