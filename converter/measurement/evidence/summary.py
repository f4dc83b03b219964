"""Summaries of files of measurements, computed again from their rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.measurement.evidence.agreement import measured_times
from converter.measurement.evidence.files import FORMATS, read_evidence, read_evidence_folder
from converter.measurement.evidence.names import MODELS, SWEEP_NAME
from converter.measurement.evidence.statistics import summarise_times
from converter.measurement.evidence.sweep import read_sweep
from converter.measurement.evidence.time_comparison import compare_matrix


@dataclass(frozen=True)
class EvidenceSummary:
    """Files that were checked, and their statistics."""

    contents: Mapping[str, tuple[str, Mapping[str, Any]]]
    """Name of the schema, and content, by file name."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as ``lensconv evidence --json`` shows it."""
        files = [
            {"name": name, "schema": schema, "version": content.get("schema")}
            for name, (schema, content) in self.contents.items()
        ]
        matrices = [content for schema, content in self.contents.values() if schema == "comparison_matrix"]
        return {"files": files, "matrix": matrix_statistics(matrices[0]) if matrices else None}


def summarise(path: Path) -> EvidenceSummary:
    """Read and check one file of measurements, or all of a folder.

    Raises:
        MissingInput: the file does not exist, or what a sweep names does not.
        EvidenceError: a file has another format, or figures contradict each other.
    """
    folder = path if path.is_dir() else path.parent
    if path.name == SWEEP_NAME or (path.is_dir() and (path / SWEEP_NAME).exists() and not _has_measurements(path)):
        return EvidenceSummary({SWEEP_NAME: ("sweep", read_sweep(folder))})
    if path.is_dir():
        found = read_evidence_folder(path)
        return EvidenceSummary({name: (FORMATS[name].schema, content) for name, content in found.items()})
    form, content = read_evidence(path)
    return EvidenceSummary({path.name: (form.schema, content)})


def _has_measurements(folder: Path) -> bool:
    return any((folder / name).exists() for name in FORMATS)


def matrix_statistics(matrix: Mapping[str, Any]) -> dict[str, Any]:
    """Return the statistics of a comparison matrix.

    Args:
        matrix: content of ``comparison_matrix.json``.

    Returns:
        ``rows`` (of prompts that were measured with both models: id, ``original_s``, ``quantized_s``), ``failed`` (how
        many measurements failed), for each model its ``Spread``, and what a ``TimeComparison`` has. What cannot be
        computed is left out.
    """
    original, quantized = (measured_times(matrix, model) for model in MODELS)
    return {
        "rows": [
            {"id": key, "original_s": seconds, "quantized_s": quantized[key]}
            for key, seconds in original.items()
            if key in quantized
        ],
        "failed": 2 * len(matrix["prompts"]) - len(original) - len(quantized),
        **summarise_times(original, quantized),
        **compare_matrix(matrix).to_dict(),
    }
