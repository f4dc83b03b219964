"""Tables of a single prompt: its figures with both models, and the texts that its images must show."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from converter.measurement.evidence.names import MODEL_TITLES, MODELS, PEAKS, peak_key
from converter.presentation.tables.fidelity import ADDED_PATTERN, MEASURES, TRAJECTORY, psnr
from converter.presentation.tables.figures import decimal, number
from converter.presentation.tables.table import NOTHING, Table, keep_measured

#: Names of the periodic pattern's own scores; the added one is among the measures of a pair.
_PATTERN = "Periodic pattern, grey levels"


def prompt_table(
    row: Mapping[str, Any], pair: Mapping[str, Any] | None, trajectory: Mapping[str, Any] | None = None
) -> Table | None:
    """Return the figures of a prompt: of the original, the quantized model, and the original with a second seed.

    Args:
        row: a row of ``comparison_matrix.json``.
        pair: the entry of ``image_fidelity.json`` for this prompt; None where there is none.
        trajectory: what that file has of the original's trajectory of this prompt; None where there is none.

    Returns:
        The table; None if nothing was measured.
    """
    rows = [*_measured(row), *(_compared(pair) if pair else ())]
    if trajectory is not None:
        error = fmean(step["error"] for step in trajectory["steps"])
        rows.append([f"{TRAJECTORY}, mean", NOTHING, decimal(error, 4), NOTHING])
    rows = keep_measured(rows)
    return Table(["", *MODEL_TITLES, "Second seed"], rows) if rows else None


def flat_field_table(flat_field: Mapping[str, Any]) -> Table:
    """Return the periodic patterns in both models' images of an empty prompt."""
    pattern = flat_field["periodic_grid"]
    rows = [
        [_PATTERN, *(decimal(pattern[model], 2) for model in MODELS)],
        [ADDED_PATTERN, NOTHING, decimal(pattern["added"], 2)],
    ]
    return Table(["", *MODEL_TITLES], rows)


def required_table(pair: Mapping[str, Any] | None) -> Table | None:
    """Return what was read of each text that a prompt requires, and its error rate; None where nothing was read."""
    if pair is None or not pair["text"]:
        return None
    with_texts = any(f"{model}_read" in text for text in pair["text"] for model in MODELS)
    with_reader = any("reader" in text for text in pair["text"])
    columns, align = ["Required text"], "l"
    for title in MODEL_TITLES:
        columns += [f"{title}: read", "errors"] if with_texts else [f"{title}: errors"]
        align += "lr" if with_texts else "r"
    rows = []
    for text in pair["text"]:
        cells: list[object] = [text["required"]]
        for model in MODELS:
            cells += [text.get(f"{model}_read") or NOTHING] if with_texts else []
            cells.append(decimal(text[f"{model}_cer"], 3))
        rows.append([*cells, text.get("reader") or NOTHING] if with_reader else cells)
    return Table([*columns, "Read by"] if with_reader else columns, rows, f"{align}l" if with_reader else align)


def _measured(row: Mapping[str, Any]) -> list[list[object]]:
    """Return time and memory of both models."""
    sides = [row[model] for model in MODELS]
    rows: list[list[object]] = [["Time, seconds", *(number(side.get("time_s")) for side in sides), NOTHING]]
    for kind, title in PEAKS.items():
        figures = [number(side.get(peak_key(kind))) for side in sides]
        rows.append([f"{title[:1].upper()}{title[1:]}", *figures, NOTHING])
    return rows


def _compared(pair: Mapping[str, Any]) -> list[list[object]]:
    """Return the similarity of the quantized image to the original, and that of a second seed to it."""
    other = pair["baseline"]
    rows: list[list[object]] = []
    for key, title, digits in MEASURES:
        shown = [
            NOTHING if found is None else psnr(found) if key == "psnr_db" else decimal(_value(found, key), digits)
            for found in (pair, other)
        ]
        rows.append([title, NOTHING, *shown])
    pattern = pair["periodic_grid"]
    figures = [pattern["original"], pattern["quantized"], other and other["periodic_grid"]["baseline"]]
    return [*rows, [_PATTERN, *(decimal(value, 2) for value in figures)]]


def _value(found: Mapping[str, Any], key: str) -> float | None:
    value: float | None = found["periodic_grid"]["added"] if key == "periodic_grid_added" else found[key]
    return value
