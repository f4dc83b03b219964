"""The table of a sweep: the original and several quantized models side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from converter.measurement.evidence.names import PEAKS, STANDARD
from converter.presentation.tables.figures import count, counted, decimal, number, percent, signed_percent, size
from converter.presentation.tables.table import NOTHING, Figure, Table

#: Titles of columns, in their order; that of the peak also says what kind it is.
_COLUMNS = (
    _NAME,
    _MARK,
    _METHOD,
    _BYTES,
    _SMALLER,
    _PEAK,
    _TIME,
    _SLOWDOWN,
    _LPIPS,
    _RATIO,
    _RATE,
    _VELOCITY,
    _FAILED,
) = (
    *("Model", "Mark", "Method", "Denoiser", "Smaller", "Peak", "Time, s", "Slowdown"),
    *("LPIPS", "PSNR, dB", "CER", "Velocity error", "Failed"),
)
#: Columns of words.
_WORDS = (_NAME, _MARK, _METHOD)
#: Columns that are left out where no row has a figure.
_OPTIONAL = (_MARK, _PEAK, _SLOWDOWN, _LPIPS, _RATIO, _RATE, _VELOCITY, _FAILED)
#: Columns that are too many for a terminal.
_WIDE = (_METHOD, _SMALLER)
#: Longest reason of a failure that a line repeats, in characters.
_REASON_LIMIT = 100
#: What reasons are about, by their keys.
_REASONS = {"lpips": "LPIPS", "text": "CER", "trajectory": "velocity error", "images": "images"}


def sweep_table(content: Mapping[str, Any], release: str = "", *, is_narrow: bool = False) -> Table:
    """Return a row for the original, one for its second seed, and one for each quantized model, the largest first.

    Args:
        content: of ``sweep.json``.
        release: name of the folder of the release that the table is for, whose row is marked; empty if there is none.
        is_narrow: whether it must fit into a terminal, without methods, reductions and memory.
    """
    original = content["original"]
    models = sorted(content["models"], key=lambda model: (-model["denoiser_bytes"], model["folder"]))
    kind = next((row["peak"]["kind"] for row in (original, *models) if "peak" in row), "")
    rows = [{_NAME: "Original", **_shared_cells(original, kind)}]
    if "second_seed" in original:
        rows.append({_NAME: "Original, second seed", **_similarity(original["second_seed"])})
    rows += [_model_row(model, kind, is_release=model["folder"] == release) for model in models]
    left_out = {title for title in _OPTIONAL if not any(title in row for row in rows)}
    left_out |= {*_WIDE, _PEAK} if is_narrow else set()
    titles = [title for title in _COLUMNS if title not in left_out]
    cells = [[row.get(title, "" if title == _MARK else NOTHING) for title in titles] for row in rows]
    shown = [_peak_title(kind) if title == _PEAK else title for title in titles]
    return Table(shown, cells, "".join("l" if title in _WORDS else "r" for title in titles))


def describe_sweep_table(content: Mapping[str, Any]) -> str:
    """Return what the columns of the table mean.

    Args:
        content: of ``sweep.json``.
    """
    where = "all weights on the device" if content["mode"] == STANDARD else f"--mode {content['mode']}"
    # On a cluster, only images of the timed prompts have times; of the original, others may be taken over.
    counts = sorted({row["time_prompts"] for row in (content["original"], *content["models"]) if "time_prompts" in row})
    said = []
    if counts:
        over = " or ".join(map(str, [*counts[:-1], counted(counts[-1], "prompt")]))
        said.append(f"Time is that of an image, the mean over {over}, with {where}.")
    if any("slowdown" in model for model in content["models"]):
        said.append(
            "The slowdown is the 95% interval of how much more time a model takes than the original, over pairs of "
            "adjacent processes. Times of different models were not measured side by side."
        )
    else:
        said.append("Times were not measured side by side, so they are not compared.")
    if any("lpips" in model or "psnr_db" in model for model in content["models"]):
        said.append("LPIPS and PSNR compare images of the same seed: they show drift, not quality.")
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


def _model_row(row: Mapping[str, Any], kind: str, *, is_release: bool) -> dict[str, object]:
    cells = {_NAME: row["folder"], **_shared_cells(row, kind), **_similarity(row)}
    cells[_SMALLER] = percent(row["reduction_percent"])
    if is_release:
        cells[_MARK] = Figure("this release")
    if "slowdown" in row:
        cells[_SLOWDOWN] = _slowdown(row["slowdown"])
    if "velocity_error" in row:
        cells[_VELOCITY] = decimal(row["velocity_error"], 4)
    if "psnr_db" not in row and row.get("identical_images"):
        cells[_RATIO] = Figure("identical")
    return cells


def _shared_cells(row: Mapping[str, Any], kind: str) -> dict[str, object]:
    """Cells that the original has, too, with the peak of this kind."""
    cells: dict[str, object] = {_METHOD: row["label"], _BYTES: size(row["denoiser_bytes"])}
    if "peak" in row and row["peak"]["kind"] == kind:
        cells[_PEAK] = number(row["peak"]["gb"])
    if "time_s" in row:
        cells[_TIME] = number(row["time_s"])
    elif row["failed"]:
        cells[_TIME] = Figure("failed")
    if "cer" in row:
        cells[_RATE] = decimal(row["cer"], 3)
    if row["failed"]:
        cells[_FAILED] = count(len(row["failed"]))
    return cells


def _peak_title(kind: str) -> str:
    title = PEAKS[kind]
    return title[:1].upper() + title[1:]


def _similarity(found: Mapping[str, Any]) -> dict[str, object]:
    digits = {"lpips": (_LPIPS, 4), "psnr_db": (_RATIO, 2)}
    return {title: decimal(found[key], places) for key, (title, places) in digits.items() if key in found}


def _slowdown(found: Mapping[str, Any]) -> Figure:
    least, most = (signed_percent(end) for end in found["percent_interval"])
    return Figure(f"{least} to {most}")


def _failures(name: str, row: Mapping[str, Any]) -> Iterator[str]:
    for failed in row["failed"]:
        place = f"{failed['mode']}, {failed.get('prompt', 'load')}, pair {failed.get('pair', 0) + 1}"
        yield f"{name}: {place}: failed: {_short(failed['reason'])}"
    for key, reason in row["not_measured"].items():
        yield f"{name}: {_REASONS[key]}: not measured: {_short(reason)}"


def _short(reason: str) -> str:
    return reason if len(reason) <= _REASON_LIMIT else f"{reason[: _REASON_LIMIT - 1]}…"
