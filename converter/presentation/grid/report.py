"""What a grid is made of, as ``lensconv grid --json`` shows it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from converter.measurement.evidence.names import MODELS


@dataclass(frozen=True)
class PlacedCell:
    """Where a cell stands in a picture, in pixels of the picture; x and y are of its upper left corner."""

    id: str
    model: str
    x: int
    y: int
    width: int
    height: int
    missing: bool


@dataclass(frozen=True)
class Sheet:
    """A file with cells in their own pixels."""

    file: str
    """Relative to the output folder, with slashes."""
    width: int
    height: int
    bytes: int
    cells: tuple[PlacedCell, ...]


@dataclass(frozen=True)
class Preview:
    """A file with all cells, or as many rows as fit, reduced so that the whole is not too wide."""

    file: str
    """Relative to the output folder, with slashes."""
    width: int
    height: int
    bytes: int
    scale: int
    """By which whole number cells are reduced; 1 where they are not."""
    lossless: bool
    """Whether the cells hold the very pixels of the images."""
    cells: tuple[PlacedCell, ...]


@dataclass(frozen=True)
class GridReport:
    """What was drawn."""

    output: Path
    """The folder that the files' names are relative to."""
    sheets: tuple[Sheet, ...]
    preview: Preview

    @property
    def cells(self) -> tuple[PlacedCell, ...]:
        """Of all sheets."""
        return tuple(cell for sheet in self.sheets for cell in sheet.cells)

    @property
    def missing(self) -> tuple[PlacedCell, ...]:
        """Boxes without an image."""
        return tuple(cell for cell in self.cells if cell.missing)

    @property
    def rows(self) -> int:
        """How many prompts there are."""
        return len(self.cells) // len(MODELS)

    @property
    def preview_rows(self) -> int:
        """How many of them the preview shows."""
        return len(self.preview.cells) // len(MODELS)

    def to_dict(self) -> dict[str, Any]:
        """As ``lensconv grid --json`` shows it."""
        images = Counter(cell.model for cell in self.cells if not cell.missing)
        return {
            "sheets": [_plain(sheet) for sheet in self.sheets],
            "preview": _plain(self.preview),
            "rows": self.rows,
            "missing_cells": len(self.missing),
            "images": {model: images[model] for model in MODELS},
        }


def _plain(picture: Sheet | Preview) -> dict[str, Any]:
    return {**asdict(picture), "cells": [asdict(cell) for cell in picture.cells]}
