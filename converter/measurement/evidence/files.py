"""Files of measurements on disk: read only if they are of a known format and their figures agree, written likewise.

The formats are JSON Schemas of the package ``schemas``. Fields may be added to a version, never changed or removed:
files of the first published releases, which have fewer, are valid.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.checkpoint.source import read_json
from converter.checkpoint.writer import replace_file
from converter.conversion.release.manifest import SUMMARY_NAME
from converter.errors import EvidenceError, MalformedCheckpoint, MissingInput, printable
from converter.measurement.evidence.agreement import disagreements
from converter.measurement.evidence.folder_agreement import disagreements_between
from converter.measurement.evidence.images import changed_images
from converter.measurement.evidence.names import (
    IMAGES_NAME,
    MATRIX_NAME,
    METRICS_NAME,
    OFFLOAD_NAME,
    SEQUENTIAL_NAME,
    WEIGHTS_NAME,
)
from converter.schemas import load_schema


@dataclass(frozen=True)
class Format:
    """What a file of a certain name holds."""

    schema: str
    """Name of its JSON Schema."""
    version: str | None
    """What its field ``schema`` says; None where the published format has no such field."""


FORMATS: dict[str, Format] = {
    METRICS_NAME: Format("benchmark_metrics", "lensconv.benchmark/1"),
    MATRIX_NAME: Format("comparison_matrix", "lensconv.matrix/1"),
    OFFLOAD_NAME: Format("model_cpu_offload_benchmark", "lensconv.offload/1"),
    SEQUENTIAL_NAME: Format("model_cpu_offload_benchmark", "lensconv.offload/1"),
    IMAGES_NAME: Format("image_fidelity", "lensconv.fidelity/1"),
    WEIGHTS_NAME: Format("weight_fidelity", "lensconv.weights/1"),
    SUMMARY_NAME: Format("sdnq_quantization_summary", None),
}


def read_evidence(file: Path) -> tuple[Format, dict[str, Any]]:
    """Read one file of measurements, whatever its name.

    Returns:
        Its format and its content.

    Raises:
        MissingInput: it is not there or cannot be read.
        EvidenceError: it is of no format that is known, breaks its format, or its figures contradict each other.
    """
    try:
        content = read_json(file)
    except MalformedCheckpoint as error:
        # Its hint speaks of weights.
        raise EvidenceError(file, error.message.partition(": ")[2]) from error
    form = _find_format(file, content)
    _check(file, form, content)
    return form, content


def read_evidence_folder(folder: Path) -> dict[str, dict[str, Any]]:
    """Read all files of measurements in a folder, and compare them with each other.

    Returns:
        Contents by file name, in the order of ``FORMATS``.

    Raises:
        MissingInput: there is no such folder, or no such file in it.
        EvidenceError: as for ``read_evidence``; or two files contradict each other.
    """
    where = printable(str(folder))
    if not folder.is_dir():
        raise MissingInput(where, "no such folder", "Check the path; `lensconv bench` makes one.")
    found = {name: read_evidence(folder / name)[1] for name in FORMATS if (folder / name).exists()}
    if not found:
        raise MissingInput(
            where, f"holds no measurements, such as {METRICS_NAME}", "Make them with `lensconv bench --out`."
        )
    for name, other, reason in disagreements_between(found):
        raise EvidenceError(folder / name, f"{reason}, by {other}")
    for reason in changed_images(folder, found.get(MATRIX_NAME, {"prompts": []})):
        raise EvidenceError(folder / MATRIX_NAME, reason)
    return found


def write_evidence(folder: Path, name: str, content: Mapping[str, Any]) -> None:
    """Write a file of measurements, whole or not at all, if it is what readers will accept.

    Raises:
        EvidenceError: it breaks its format, or its figures contradict each other.
        OutputError: it cannot be written.
        DiskError: there is no space.
    """
    _check(folder / name, FORMATS[name], content)
    replace_file(folder / name, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def _find_format(file: Path, content: Mapping[str, Any]) -> Format:
    version = content.get("schema")
    named = FORMATS.get(file.name)
    summary = FORMATS[SUMMARY_NAME]
    if version is None and named in (None, summary) and "quant_transformer_dtypes" in content:
        return summary
    by_version = {form.version: form for form in FORMATS.values() if form.version is not None}
    if isinstance(version, str) and version in by_version and named in (None, by_version[version]):
        return by_version[version]
    readable = named.version if named is not None and named.version else ", ".join(sorted(by_version))
    shown = f"of schema {printable(str(version))}" if version is not None else "of no schema"
    raise EvidenceError(file, f"is {shown}; this version of lensconv reads {readable}")


def _check(file: Path, form: Format, content: Mapping[str, Any]) -> None:
    # Importing it takes a moment, and most commands do without.
    import jsonschema

    for path, value in _numbers(content, ""):
        if not math.isfinite(value):
            raise EvidenceError(file, f"{path} is no finite number")
    problem = jsonschema.exceptions.best_match(
        jsonschema.Draft202012Validator(load_schema(form.schema)).iter_errors(content)
    )
    if problem is not None:
        place = ".".join(map(str, problem.absolute_path)) or "its content"
        raise EvidenceError(file, f"{place}: {problem.message}")
    for reason in disagreements(form.schema, content):
        raise EvidenceError(file, reason)


def _numbers(value: Any, path: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _numbers(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _numbers(item, f"{path}.{index}")
    elif isinstance(value, float):
        yield path, value
