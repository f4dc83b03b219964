"""The section of a sweep: on the card of a release that was measured in one, and as a file of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converter.checkpoint.writer import replace_file
from converter.measurement.evidence.names import SWEEP_TABLE_NAME
from converter.measurement.evidence.sweep import find_row, read_sweep
from converter.presentation.card.environment import render_section
from converter.presentation.card.table_markdown import to_markdown
from converter.presentation.tables.sweep import describe_sweep_table, list_sweep_failures, sweep_table

_SECTION = "card_sweep.md.jinja"


def describe_sweep_section(content: Mapping[str, Any] | None, folder: Path | None = None) -> dict[str, Any] | None:
    """Return what templates may use of a sweep; None if there is none.

    Args:
        content: of ``sweep.json``.
        folder: of the measurements of the release that the card is about; None without one.
    """
    if content is None:
        return None
    row = None if folder is None else find_row(content, folder)
    release = "" if row is None else str(row["folder"])
    return {
        "release": release,
        "table": to_markdown(sweep_table(content, release)),
        "legend": describe_sweep_table(content),
        "failures": list_sweep_failures(content),
    }


def write_sweep_table(folder: Path) -> Path:
    """Write the table of a sweep as Markdown next to its file, ready for a card.

    Args:
        folder: the folder of the sweep.

    Raises:
        InputError: ``sweep.json`` is missing, breaks its format, or is not what the measurements say.
        OutputError: the file cannot be written.
        DiskError: the disk is full.
    """
    text = render_section(_SECTION, {"sweep": describe_sweep_section(read_sweep(folder))})
    replace_file(folder / SWEEP_TABLE_NAME, text.encode())
    return folder / SWEEP_TABLE_NAME
