"""The tables of cards in docs/gpu.md and README.md, made from what scripts/gpu has written to benchmarks/gpu-*.json."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
#: The tables are between these lines of the pages.
BEGIN, END = "<!-- cards: begin -->", "<!-- cards: end -->"
#: What a cell shows where a figure was not measured.
_NOTHING = "-"
#: Columns with milliseconds: title, part and name of the variant in step 3.
_TIMES = (
    ("bf16", "original", "bf16"),
    ("dequantized", "eager", "dequantized"),
    ("int8, eager", "eager", "int8"),
    ("int8, compiled", "compiled", "int8"),
    ("int8 chain", "compiled", "int8 chain"),
)


def update_pages() -> None:
    """Put the tables into the pages.

    Raises:
        ValueError: a report is not what scripts/gpu writes on a card.
        OSError: a report or a page cannot be read or written.
    """
    for page, table in tables(read_reports(BENCHMARKS)).items():
        before, _, rest = page.read_text().partition(BEGIN)
        page.write_text(f"{before}{marked(table)}{rest.partition(END)[2]}")


def read_reports(folder: Path) -> list[dict[str, Any]]:
    """Read the reports of all cards in a folder, in the order of their names.

    Raises:
        ValueError: one is not what scripts/gpu writes on a card.
    """
    return [_read_report(file) for file in sorted(folder.glob("gpu-*.json"))]


def _read_report(file: Path) -> dict[str, Any]:
    try:
        report: dict[str, Any] = json.loads(file.read_text())
        if not report["device"].startswith("cuda"):
            raise ValueError(f"of the device {report['device']}, whose models are small")
        # What has another form shows in its cells.
        full_table([report])
        short_table([report])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file.name} is not a report of a card: {error!r}") from error
    return report


def tables(reports: Sequence[dict[str, Any]]) -> dict[Path, str]:
    """Return the text between the marks of each page; reports are those of the cards."""
    return {ROOT / "docs" / "gpu.md": full_table(reports), ROOT / "README.md": short_table(reports)}


def marked(table: str) -> str:
    """The table with its marks."""
    return f"{BEGIN}\n{table}{END}"


def full_table(reports: Sequence[dict[str, Any]]) -> str:
    """Everything that the documentation shows of each card."""
    if not reports:
        return "No card has been measured yet.\n"
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "card": _card,
        "date": lambda report: str(report["date"]),
        "torch": lambda report: str(_figure(report, "0", "machine", "torch") or _NOTHING),
        **{title: _time_cell(part, name) for title, part, name in _TIMES},
        "peak GB": lambda report: f"{_peak(report, 'original', 'bf16')} / {_peak(report, 'compiled', 'int8')}",
        "`convert`, GB/s": lambda report: _text(_figure(report, "1b", "device", "gb_s"), 1),
        "failed or skipped": _not_measured,
    }
    rows = [[_plain(cell(report)) for cell in columns.values()] for report in reports]
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def short_table(reports: Sequence[dict[str, Any]]) -> str:
    """What README shows of each card: milliseconds of a step as a user gets it by default, and the peaks."""
    if not reports:
        return ""
    lines = [("GPU", "original, ms", "quantized, ms", "peak, GB"), ("---",) * 4]
    for report in reports:
        times = [_text(_figure(report, "3", *keys, "ms"), 0) for keys in (("original", "bf16"), ("compiled", "int8"))]
        peaks = "/".join(_peak(report, *keys) for keys in (("original", "bf16"), ("compiled", "int8")))
        lines.append((_plain(_card(report)), times[0], times[1], peaks))
    text = "A step with guidance at 1440x1440 ([more](docs/gpu.md)):\n\n"
    # Without spaces, as a few words are left for the README.
    return text + "".join(f"|{'|'.join(line)}|\n" for line in lines)


def _card(report: dict[str, Any]) -> str:
    return str(_figure(report, "0", "card") or "unknown")


def _plain(text: str) -> str:
    """Text that Markdown shows as it is in a cell."""
    return re.sub(r"[^\w .,:+/()-]+", " ", text).strip()


def _time_cell(part: str, name: str) -> Callable[[dict[str, Any]], str]:
    """A cell with milliseconds, without and with compiled blocks."""

    def cell(report: dict[str, Any]) -> str:
        return " / ".join(_text(_figure(report, "3", part, key, "ms"), 0) for key in (name, f"{name}, blocks"))

    return cell


def _peak(report: dict[str, Any], part: str, name: str) -> str:
    return _text(_figure(report, "3", part, name, "peak_allocated_gb"), 2)


def _not_measured(report: dict[str, Any]) -> str:
    return ", ".join(name for name, step in report["steps"].items() if not step.get("ok")) or "none"


def _figure(report: dict[str, Any], step: str, *keys: str) -> Any:
    """A figure of a step; None if it was not measured."""
    found: Any = report["steps"].get(step, {}).get("figures", {})
    for key in keys:
        found = found.get(key, {})
    return found if found != {} else None


def _text(figure: float | None, digits: int) -> str:
    return _NOTHING if figure is None else f"{figure:.{digits}f}"
