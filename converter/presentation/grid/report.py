"""The report of a grid, as ``lensconv grid --json`` shows it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from converter.measurement.evidence.names import MODELS


@dataclass(frozen=True)
class PlacedCell:
    """Position of a cell in a picture, in pixels; x and y are those of its upper left corner."""

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
    """Path relative to the output folder, with slashes."""
    width: int
    height: int
    bytes: int
    cells: tuple[PlacedCell, ...]


@dataclass(frozen=True)
class Preview:
    """A file with all cells, or as many rows as fit, reduced to the width of a preview."""

    file: str
    """Path relative to the output folder, with slashes."""
    width: int
    height: int
    bytes: int
    scale: int
    """Whole number by which cells are scaled down; 1 if they are not."""
    lossless: bool
    """Whether the cells have exactly the pixels of the images."""
    cells: tuple[PlacedCell, ...]


@dataclass(frozen=True)
class AblationSheet:
    """A file with the images of all variants of an ablation."""

    file: str
    """Path relative to the output folder, with slashes."""
    width: int
    height: int
    bytes: int
    scale: int
    """Whole number by which images are scaled down; 1 if they are not."""
    lossless: bool
    """Whether the cells have exactly the pixels of the images."""
    rows: tuple[str, ...]
    """The original, its second seed if there is one, and names of variants."""
    prompts: tuple[str, ...]
    """Ids, in the order of the columns."""
    missing_cells: int


@dataclass(frozen=True)
class GridReport:
    """The files of a grid."""

    output: Path
    """The folder to which the names of the files are relative."""
    sheets: tuple[Sheet, ...]
    preview: Preview | None
    """None without a comparison matrix."""
    ablation: AblationSheet | None = None

    @property
    def cells(self) -> tuple[PlacedCell, ...]:
        """Cells of all sheets."""
        return tuple(cell for sheet in self.sheets for cell in sheet.cells)

    @property
    def missing(self) -> tuple[PlacedCell, ...]:
        """Cells without an image."""
        return tuple(cell for cell in self.cells if cell.missing)

    @property
    def rows(self) -> int:
        """Number of prompts."""
        return len(self.cells) // len(MODELS)

    @property
    def preview_rows(self) -> int:
        """Number of prompts in the preview."""
        return len(self.preview.cells) // len(MODELS) if self.preview is not None else 0

    def to_dict(self) -> dict[str, Any]:
        """Return it as ``lensconv grid --json`` prints it."""
        images = Counter(cell.model for cell in self.cells if not cell.missing)
        return {
            "sheets": [_plain(sheet) for sheet in self.sheets],
            "preview": None if self.preview is None else _plain(self.preview),
            "rows": self.rows,
            "missing_cells": len(self.missing),
            "images": {model: images[model] for model in MODELS},
            "ablation": None if self.ablation is None else {**asdict(self.ablation), **_lists(self.ablation)},
        }


def _plain(picture: Sheet | Preview) -> dict[str, Any]:
    return {**asdict(picture), "cells": [asdict(cell) for cell in picture.cells]}


def _lists(sheet: AblationSheet) -> dict[str, list[str]]:
    return {"rows": list(sheet.rows), "prompts": list(sheet.prompts)}
