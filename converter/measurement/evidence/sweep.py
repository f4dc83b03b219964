"""The file of a sweep, ``sweep.json``: what the folders of several benchmarks of one original say, side by side.

Nothing in it is measured or typed: every figure comes from a file of measurements in a folder next to ``sweep.json``,
whose sha256 it gives. So it can be made again from these folders, and reading it does so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from converter.checkpoint.checksum import file_sha256
from converter.errors import EvidenceError, InputError
from converter.measurement.evidence import names
from converter.measurement.evidence.files import read_evidence, read_evidence_folder
from converter.measurement.evidence.weights import measured_weights

SCHEMA_ID = "lensconv.sweep/1"
#: Files from which the figures of a row are taken, where they exist.
_FILES = (names.METRICS_NAME, names.MATRIX_NAME, names.IMAGES_NAME, *names.OFFLOAD_FILES.values())
_REDUCTION = "transformer_storage_reduction_percent"
#: Settings in which the benchmarks of a sweep may differ, after a later run of one of them.
_OWN_SETTINGS = ("pairs", "modes")
_AGAIN = "Run `lensconv bench` with the original and all quantized models again; do not edit the file."


def describe_sweep(folder: Path, members: Sequence[str]) -> dict[str, Any]:
    """Return the content of ``sweep.json``.

    Args:
        folder: the folder of the sweep.
        members: names of its folders of measurements, in the order of the rows.

    Raises:
        MissingInput: a folder does not exist, or contains no measurements.
        EvidenceError: files contradict each other, or are of different originals, prompts or settings.
    """
    contents = {name: read_evidence_folder(folder / name) for name in members}
    shared = {name: _shared(folder / name, found) for name, found in contents.items()}
    first = members[0]
    for name, found in shared.items():
        for key, value in found.items():
            if value != shared[first][key]:
                raise EvidenceError(folder / name / names.MATRIX_NAME, f"{key} are not those of {first}", _AGAIN)
    matrix = contents[first][names.MATRIX_NAME]
    return {
        "schema": SCHEMA_ID,
        "mode": matrix["mode"],
        "prompts": len(matrix["prompts"]),
        "original": _row(folder, first, contents[first], names.ORIGINAL),
        "models": [_row(folder, name, found, names.QUANTIZED) for name, found in contents.items()],
    }


def read_sweep(folder: Path) -> dict[str, Any]:
    """Read ``sweep.json``, and compare it with the folders of measurements that it names.

    Args:
        folder: the folder of the sweep.

    Raises:
        MissingInput: it does not exist, or a folder of measurements does not.
        EvidenceError: it breaks its format, or it is not what the measurements in the folders say.
    """
    file = folder / names.SWEEP_NAME
    _, content = read_evidence(file)
    found = describe_sweep(folder, [model["folder"] for model in content["models"]])
    # As it is after writing: tuples are lists.
    if json.loads(json.dumps(found)) != content:
        raise EvidenceError(file, f"is not what the measurements say: {_difference(content, found)}", _AGAIN)
    return content


def find_sweep(folder: Path) -> tuple[Path | None, str]:
    """Find the sweep in which the measurements in a folder were made.

    Args:
        folder: with files of measurements; the sweep is next to it, or was added to a release with them.

    Returns:
        The file, if its row has the sha256 of these measurements; else None, and why a file that exists does not count.
    """
    reason = ""
    for place in (folder.resolve().parent, folder):
        file = place / names.SWEEP_NAME
        if not file.is_file():
            continue
        try:
            # A release has the file without the measurements of other models.
            content = read_evidence(file)[1] if place is folder else read_sweep(place)
        except InputError as error:
            reason = reason or error.message
            continue
        if find_row(content, folder) is not None:
            return file, ""
        reason = reason or f"{file}: does not have the sha256 of the measurements in {folder}"
    return None, reason


def find_row(content: Mapping[str, Any], folder: Path) -> Mapping[str, Any] | None:
    """Return the row of the model whose measurements are in a folder, by the sha256 of the files; None without one.

    Args:
        content: of ``sweep.json``.
        folder: with files of measurements.
    """
    rows: Sequence[Mapping[str, Any]] = content["models"]
    return next((row for row in rows if _checksums(folder, row["files"]) == row["files"]), None)


def _shared(folder: Path, contents: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What the benchmarks of a sweep have in common, by how a message calls it."""
    missing = [name for name in (names.METRICS_NAME, names.MATRIX_NAME) if name not in contents]
    if missing:
        raise EvidenceError(folder / missing[0], "is missing", _AGAIN)
    metrics, matrix = contents[names.METRICS_NAME], contents[names.MATRIX_NAME]
    models = [metrics["models"][name] for name in names.MODELS]
    is_complete = {"sources", "settings", "mode", "summary"} <= matrix.keys() and _REDUCTION in metrics
    if not (is_complete and all({"transformer", "repo_id"} <= model.keys() for model in models)):
        raise EvidenceError(folder / names.MATRIX_NAME, "was written by an earlier version of lensconv", _AGAIN)
    settings = {key: value for key, value in matrix["settings"].items() if key not in _OWN_SETTINGS}
    return {
        "the weights of the original": measured_weights(matrix["sources"][names.ORIGINAL]),
        "the settings": settings,
        "the images of the mode": matrix["mode"],
    }


def _row(folder: Path, name: str, contents: Mapping[str, Mapping[str, Any]], model: str) -> dict[str, Any]:
    """The row of a model, from the files in one folder."""
    metrics, matrix = contents[names.METRICS_NAME], contents[names.MATRIX_NAME]
    described, source = metrics["models"][model], matrix["sources"][model]
    found = {
        "folder": name,
        "label": described["label"],
        "repo_id": described["repo_id"],
        "revision": source.get("revision"),
        "weights": measured_weights(source),
        "denoiser_bytes": described["transformer"]["bytes"],
        **_times(matrix, model),
        **_images(contents.get(names.IMAGES_NAME), model),
        "failed": list(_failures(contents, model)),
        "files": _checksums(folder / name, [file for file in _FILES if file in contents]),
    }
    if model == names.QUANTIZED:
        found["reduction_percent"] = metrics[_REDUCTION]
        if "slowdown" in matrix["summary"]:
            found["slowdown"] = matrix["summary"]["slowdown"]
    return found


def _times(matrix: Mapping[str, Any], model: str) -> dict[str, Any]:
    """Mean time of an image and the largest peak of memory; what was not measured is left out."""
    found: dict[str, Any] = {}
    if model in matrix["summary"]:
        found |= {"time_s": matrix["summary"][model]["mean"], "time_prompts": matrix["summary"][model]["count"]}
    sides = [row[model] for row in matrix["prompts"]]
    for kind in names.PEAKS:
        peaks = [side[names.peak_key(kind)] for side in sides if names.peak_key(kind) in side]
        if peaks:
            return {**found, "peak": {"kind": kind, "gb": max(peaks)}}
    return found


def _images(images: Mapping[str, Any] | None, model: str) -> dict[str, Any]:
    """Figures of the images; what was not measured has a reason instead."""
    if images is None:
        return {"not_measured": {"images": "no prompt has images of both models"}}
    summary, text, reasons = images["summary"], images["summary"]["text"], images["not_measured"]
    found: dict[str, Any] = {} if text is None else {"cer": text[f"{model}_cer_mean"]}
    if model == names.ORIGINAL:
        if summary["baseline"] is not None:
            found["second_seed"] = _similarity(summary["baseline"])
        return {**found, "not_measured": {key: reasons[key] for key in ("text",) if key in reasons}}
    found |= _similarity(summary)
    found["identical_images"] = sum(pair["identical"] for pair in images["pairs"])
    if "trajectory" in images:
        found["velocity_error"] = images["trajectory"]["mean_error"]
    return {**found, "not_measured": {key: reasons[key] for key in ("lpips", "text", "trajectory") if key in reasons}}


def _similarity(summary: Mapping[str, Any]) -> dict[str, float]:
    """Means over prompts; PSNR is that of the images that differ."""
    return {key: summary[key]["mean"] for key in ("lpips", "psnr_db") if summary[key] is not None}


def _failures(contents: Mapping[str, Mapping[str, Any]], model: str) -> Iterator[dict[str, Any]]:
    """What failed in any mode and was not measured later."""
    for mode, file in {names.STANDARD: names.METRICS_NAME, **names.OFFLOAD_FILES}.items():
        for failed in contents.get(file, {"models": {model: {}}})["models"][model].get("failed", ()):
            yield {"mode": mode, **failed}


def _checksums(folder: Path, files: Sequence[str] | Mapping[str, str]) -> dict[str, str | None]:
    return {name: file_sha256(folder / name) for name in files}


def _difference(before: Any, now: Any, where: str = "") -> str:
    """The first value that is another one now."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in {**before, **now}:
            if before.get(key) != now.get(key):
                return _difference(before.get(key), now.get(key), f"{where}.{key}".removeprefix("."))
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for number, pair in enumerate(zip(before, now, strict=True)):
            if pair[0] != pair[1]:
                return _difference(*pair, f"{where}.{number}")
    return f"{where} is {json.dumps(before):.80}, and the folders have {json.dumps(now):.80}"
