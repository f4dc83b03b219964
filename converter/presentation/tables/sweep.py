"""The table of a sweep: the original and several quantized models side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from converter.measurement.evidence.names import PEAKS, STANDARD
from converter.presentation.tables.figures import count, counted, decimal, number, percent, signed_percent, size
from converter.presentation.tables.table import NOTHING, Figure, Table

#: Titles of columns, in their order; that of the peak names its kind.
_NAME, _MARK, _METHOD, _BYTES, _SMALLER, _TIME, _SLOWDOWN = (
    *("Model", "Mark", "Method", "Denoiser", "Smaller", "Time of an image, s", "Slowdown"),
)
_LPIPS, _RATIO, _RATE, _VELOCITY, _FAILED = ("LPIPS", "PSNR, dB", "CER", "Velocity error", "Failed")
#: Columns that are left out where no row has a figure.
_OPTIONAL = (_MARK, _SLOWDOWN, _LPIPS, _RATIO, _RATE, _VELOCITY, _FAILED)
#: A space at which no line ends.
_SPACE = "\N{NO-BREAK SPACE}"
#: Longest reason of a failure that a line repeats, in characters.
_REASON_LIMIT = 100
#: What reasons are about, by their keys.
_REASONS = {"lpips": "LPIPS", "text": "CER", "trajectory": "velocity error", "images": "images"}


def sweep_table(content: Mapping[str, Any], release: str = "") -> Table:
    """Return a row for the original, one for its second seed, and one for each quantized model, the largest first.

    Args:
        content: of ``sweep.json``.
        release: name of the folder of the release that the table is for, whose row is marked; empty if there is none.
    """
    models = sorted(content["models"], key=lambda model: (-model["denoiser_bytes"], model["folder"]))
    rows = [_original_row(content["original"])]
    if "second_seed" in content["original"]:
        rows.append({_NAME: "Original, second seed", **_similarity(content["original"]["second_seed"])})
    rows += [_model_row(model, is_release=model["folder"] == release) for model in models]
    kinds = [row["peak"]["kind"] for row in (content["original"], *models) if "peak" in row]
    peak = PEAKS[kinds[0]].capitalize().replace("vram", "VRAM").replace("gb", "GB") if kinds else ""
    titles = [_NAME, _MARK, _METHOD, _BYTES, _SMALLER, *([peak] if peak else []), _TIME, _SLOWDOWN]
    titles += [_LPIPS, _RATIO, _RATE, _VELOCITY, _FAILED]
    for row, found in zip((content["original"], *models), (rows[0], *rows[len(rows) - len(models) :]), strict=True):
        if peak and row.get("peak", {}).get("kind") == kinds[0]:
            found[peak] = number(row["peak"]["gb"])
    shown = [title for title in titles if title not in _OPTIONAL or any(title in row for row in rows)]
    cells = [[row.get(title, "" if title == _MARK else NOTHING) for title in shown] for row in rows]
    return Table(shown, cells, "".join("l" if title in (_NAME, _MARK, _METHOD) else "r" for title in shown))


def describe_sweep_table(content: Mapping[str, Any]) -> str:
    """Return what the columns of the table mean.

    Args:
        content: of ``sweep.json``.
    """
    where = "all weights on the device" if content["mode"] == STANDARD else f"--mode {content['mode']}"
    said = [f"Means over {counted(content['prompts'], 'prompt')}, with {where}; the peak is the largest."]
    slowed = [model["slowdown"] for model in content["models"] if "slowdown" in model]
    if slowed:
        said.append(
            "The slowdown is that against the original over pairs of adjacent processes, with its 95% interval. The "
            "times of an image are those of different hours, and say less."
        )
    else:
        said.append("Times were not compared; those of different models are from different hours.")
    if any("lpips" in model or "psnr_db" in model for model in content["models"]):
        said.append(
            "LPIPS and PSNR compare with the original's image of the same seed: they are no measure of quality."
        )
    if any("cer" in model for model in content["models"]):
        said.append("CER is the character error rate.")
    return " ".join(said)


def list_sweep_failures(content: Mapping[str, Any]) -> list[str]:
    """Return what failed or was not measured, and why, a line each.

    Args:
        content: of ``sweep.json``.
    """
    rows = [("Original", content["original"]), *((model["folder"], model) for model in content["models"])]
    return [line for name, row in rows for line in _failures(name, row)]


def _original_row(row: Mapping[str, Any]) -> dict[str, object]:
    return {_NAME: "Original", **_shared_cells(row)}


def _model_row(row: Mapping[str, Any], *, is_release: bool) -> dict[str, object]:
    cells = {
        _NAME: row["folder"],
        **_shared_cells(row),
        **_similarity(row),
        _SMALLER: percent(row["reduction_percent"]),
    }
    if is_release:
        cells[_MARK] = Figure("this release")
    if "slowdown" in row:
        cells[_SLOWDOWN] = _slowdown(row["slowdown"])
    if "velocity_error" in row:
        cells[_VELOCITY] = decimal(row["velocity_error"], 4)
    if "psnr_db" not in row and row.get("identical_images"):
        cells[_RATIO] = Figure("identical")
    return cells


def _shared_cells(row: Mapping[str, Any]) -> dict[str, object]:
    cells: dict[str, object] = {_METHOD: row["label"], _BYTES: size(row["denoiser_bytes"])}
    if "time_s" in row:
        cells[_TIME] = number(row["time_s"])
    elif row["failed"]:
        cells[_TIME] = Figure("failed")
    if "cer" in row:
        cells[_RATE] = decimal(row["cer"], 3)
    if row["failed"]:
        cells[_FAILED] = count(len(row["failed"]))
    return cells


def _similarity(found: Mapping[str, Any]) -> dict[str, object]:
    digits = {"lpips": (_LPIPS, 4), "psnr_db": (_RATIO, 2)}
    return {title: decimal(found[key], places) for key, (title, places) in digits.items() if key in found}


def _slowdown(found: Mapping[str, Any]) -> Figure:
    least, most = (signed_percent(end) for end in found["percent_interval"])
    return Figure(f"{signed_percent(found['percent'])}{_SPACE}({least}{_SPACE}to{_SPACE}{most})")


def _failures(name: str, row: Mapping[str, Any]) -> Iterator[str]:
    for failed in row["failed"]:
        place = f"{failed['mode']}, {failed.get('prompt', 'load')}, pair {failed.get('pair', 0) + 1}"
        yield f"{name}: {place}: failed: {_short(failed['reason'])}"
    for key, reason in row["not_measured"].items():
        yield f"{name}: {_REASONS[key]}: not measured: {_short(reason)}"


def _short(reason: str) -> str:
    return reason if len(reason) <= _REASON_LIMIT else f"{reason[: _REASON_LIMIT - 1]}…"
