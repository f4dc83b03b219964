"""Files of measurements on disk: they are read and written only if their format is known and their figures agree.

The formats are JSON Schemas of the package ``schemas``. Fields may be added to a version, but never changed or removed:
files of the first published releases, which have fewer fields, stay valid.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.checkpoint.files import read_json
from converter.checkpoint.writer import replace_file
from converter.conversion.release.manifest import SUMMARY_NAME
from converter.errors import EvidenceError, MalformedCheckpoint, MissingInput
from converter.measurement.evidence import names
from converter.measurement.evidence.agreement import disagreements
from converter.measurement.evidence.folder_agreement import disagreements_between
from converter.measurement.evidence.images import changed_ablation_images, changed_flat_fields, changed_images
from converter.schemas import load_schema

#: What to do about a folder without measurements.
MEASURE_HINT = "Run `lensconv bench ORIGINAL QUANTIZED --out DIR`."
#: What to do about a faulty summary, which `convert` writes, and about a file of a newer lensconv.
SUMMARY_HINT = "Convert again, or remove the file."
_HINTS = {
    SUMMARY_NAME: SUMMARY_HINT,
    names.ABLATION_NAME: "Measure again with `lensconv ablate`; do not edit the file.",
    names.SWEEP_NAME: "Run `lensconv bench` with all models again; do not edit the file.",
}
_NEWER_HINT = "Update lensconv, or measure again with this version."


@dataclass(frozen=True)
class Format:
    """The format of a file."""

    schema: str
    """Name of its JSON Schema."""
    versions: tuple[str, ...]
    """Values of its field ``schema``, the newest last; empty where the published format has no such field."""


def _versions(name: str, newest: int) -> tuple[str, ...]:
    return tuple(f"lensconv.{name}/{number}" for number in range(1, newest + 1))


FORMATS: dict[str, Format] = {
    names.METRICS_NAME: Format("benchmark_metrics", _versions("benchmark", 2)),
    names.MATRIX_NAME: Format("comparison_matrix", _versions("matrix", 2)),
    names.OFFLOAD_NAME: Format("model_cpu_offload_benchmark", _versions("offload", 2)),
    names.SEQUENTIAL_NAME: Format("model_cpu_offload_benchmark", _versions("offload", 2)),
    names.IMAGES_NAME: Format("image_fidelity", _versions("fidelity", 1)),
    names.WEIGHTS_NAME: Format("weight_fidelity", _versions("weights", 1)),
    names.ABLATION_NAME: Format("ablation", _versions("ablation", 1)),
    SUMMARY_NAME: Format("sdnq_quantization_summary", ()),
}
#: Files that are not of one benchmark, in a folder of their own.
_OTHERS = {names.SWEEP_NAME: Format("sweep", _versions("sweep", 1))}


def read_evidence(file: Path) -> tuple[Format, dict[str, Any]]:
    """Read one file of measurements, under any name.

    Returns:
        Its format and its content.

    Raises:
        MissingInput: it does not exist or cannot be read.
        EvidenceError: its format is unknown, it breaks its format, or its figures contradict each other.
    """
    try:
        content = read_json(file)
    except MalformedCheckpoint as error:
        # The hint of that error is about weights.
        raise _fault(file, error.message.partition(": ")[2]) from error
    form = _find_format(file, content)
    _check(file, form, content)
    return form, content


def read_evidence_folder(folder: Path, *, check_images: bool = True) -> dict[str, dict[str, Any]]:
    """Read all files of measurements in a folder, and compare them with each other.

    Args:
        folder: contains the files.
        check_images: whether images that were changed since the measurement are an error.

    Returns:
        Contents by file name, in the order of ``FORMATS``.

    Raises:
        MissingInput: the folder does not exist, or contains no measurements.
        EvidenceError: as for ``read_evidence``; or two files contradict each other.
    """
    if not folder.is_dir():
        raise MissingInput(folder, "no such folder", "Check the path; `lensconv bench` creates such a folder.")
    found = {name: read_evidence(folder / name)[1] for name in FORMATS if (folder / name).exists()}
    if not found:
        is_sweep = (folder / names.SWEEP_NAME).is_file()
        hint = f"Name one of the folders in {names.SWEEP_NAME}." if is_sweep else MEASURE_HINT
        raise MissingInput(folder, f"contains no measurements, such as {names.METRICS_NAME}", hint)
    for name, reason in disagreements_between(found):
        raise _fault(folder / name, reason)
    matrix = found.get(names.MATRIX_NAME, {"prompts": []})
    for reason in changed_images(folder, matrix) if check_images else ():
        raise EvidenceError(folder / names.MATRIX_NAME, reason)
    for reason in changed_flat_fields(folder, found.get(names.IMAGES_NAME, {})):
        raise EvidenceError(folder / names.IMAGES_NAME, reason)
    for reason in changed_ablation_images(folder, found.get(names.ABLATION_NAME, {})) if check_images else ():
        raise _fault(folder / names.ABLATION_NAME, reason)
    return found


def write_evidence(folder: Path, name: str, content: Mapping[str, Any]) -> None:
    """Write a file of measurements as a whole or not at all, if ``read_evidence`` will accept it.

    Raises:
        EvidenceError: it breaks its format, or its figures contradict each other.
        OutputError: it cannot be written.
        DiskError: the disk is full.
    """
    _check(folder / name, (FORMATS | _OTHERS)[name], content)
    replace_file(folder / name, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def _find_format(file: Path, content: Mapping[str, Any]) -> Format:
    version = content.get("schema")
    known_files = FORMATS | _OTHERS
    named = known_files.get(file.name)
    summary = FORMATS[SUMMARY_NAME]
    if version is None and named in (None, summary) and "quant_transformer_dtypes" in content:
        return summary
    by_version = {known: form for form in known_files.values() for known in form.versions}
    if isinstance(version, str) and version in by_version and named in (None, by_version[version]):
        return by_version[version]
    readable = ", ".join(named.versions if named is not None and named.versions else sorted(by_version))
    shown = "no schema" if version is None else f"schema {version}"
    newest = dict(known.split("/") for known in by_version)
    base, _, number = str(version).partition("/")
    is_newer = base in newest and bool(re.fullmatch("[0-9]{1,9}", number)) and int(number) > int(newest[base])
    raise _fault(file, f"has {shown}; this version of lensconv reads {readable}", _NEWER_HINT if is_newer else None)


def _fault(file: Path, reason: str, hint: str | None = None) -> EvidenceError:
    return EvidenceError(file, reason, hint or _HINTS.get(file.name))


def _check(file: Path, form: Format, content: Mapping[str, Any]) -> None:
    # Importing it takes a moment, and most commands do not need it.
    import jsonschema

    for path, value in _numbers(content, ""):
        if not math.isfinite(value):
            raise _fault(file, f"{path} is not a finite number")
    problem = jsonschema.exceptions.best_match(
        jsonschema.Draft202012Validator(load_schema(form.schema)).iter_errors(content)
    )
    if problem is not None:
        where = ".".join(map(str, problem.absolute_path)) or "its content"
        raise _fault(file, f"{where}: {problem.message}")
    for reason in disagreements(form.schema, content):
        raise _fault(file, reason)


def _numbers(value: Any, path: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _numbers(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _numbers(item, f"{path}.{index}")
    elif isinstance(value, float):
        yield path, value
