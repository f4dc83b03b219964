"""What files of measurements say in sum, recomputed from their rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.evidence.agreement import MODELS, measured_times
from converter.evidence.files import FORMATS, read_evidence, read_evidence_folder
from converter.evidence.statistics import DIGITS, percent_change, slowdown, spread


@dataclass(frozen=True)
class EvidenceSummary:
    """Files that were checked, and their statistics."""

    contents: Mapping[str, tuple[str, Mapping[str, Any]]]
    """Name of the schema, and content, by file name."""

    def to_dict(self) -> dict[str, Any]:
        """As ``lensconv evidence --json`` shows it."""
        files = [
            {"name": name, "schema": schema, "version": content.get("schema")}
            for name, (schema, content) in self.contents.items()
        ]
        matrices = [content for schema, content in self.contents.values() if schema == "comparison_matrix"]
        return {"files": files, "matrix": matrix_statistics(matrices[0]) if matrices else None}


def summarise(path: Path) -> EvidenceSummary:
    """Read and check one file of measurements, or all of a folder.

    Raises:
        MissingInput: there are none.
        EvidenceError: one is of another format, or figures contradict each other.
    """
    if path.is_dir():
        found = read_evidence_folder(path)
        return EvidenceSummary({name: (FORMATS[name].schema, content) for name, content in found.items()})
    form, content = read_evidence(path)
    return EvidenceSummary({path.name: (form.schema, content)})


def matrix_statistics(matrix: Mapping[str, Any]) -> dict[str, Any]:
    """Statistics of a comparison matrix.

    Args:
        matrix: content of ``comparison_matrix.json``.

    Returns:
        ``rows`` (of prompts that both models were measured on: id, ``delta_s``, ``delta_percent``), ``failed`` (how
        many sides were not measured), for each model its ``Spread``, and ``slowdown``; the last three only where there
        is something to compute them from.
    """
    times = {model: measured_times(matrix, model) for model in MODELS}
    original, quantized = (times[model] for model in MODELS)
    shared = [key for key in original if key in quantized]
    found: dict[str, Any] = {
        "rows": [
            {
                "id": key,
                "delta_s": round(quantized[key] - original[key], DIGITS),
                "delta_percent": percent_change(original[key], quantized[key]),
            }
            for key in shared
        ],
        "failed": sum(len(matrix["prompts"]) - len(times[model]) for model in MODELS),
        **{model: spread(list(values.values())).to_dict() for model, values in times.items() if values},
    }
    if shared:
        found["slowdown"] = slowdown([original[key] for key in shared], [quantized[key] for key in shared]).to_dict()
    return found
