"""Where a search has its files, beside the recipe that it finds."""

from __future__ import annotations

import shutil
from pathlib import Path

#: Folder for what is needed until all is measured.
WORK_FOLDER = ".search"


def evidence_folder(recipe: Path) -> Path:
    """The folder of what was measured, of a recipe's file."""
    return recipe.with_name(f"{recipe.stem}-evidence")


def recipe_files(recipe: Path, count: int | None) -> list[Path]:
    """The files of the recipes of a front: numbered from the smallest, or the one file where there is no front."""
    if count is None:
        return [recipe]
    digits = len(str(count))
    return [recipe.with_name(f"{recipe.stem}-{number:0{digits}}{recipe.suffix}") for number in range(1, count + 1)]


def spool_folder(folder: Path) -> Path:
    """The folder of quantized tensors, in that of the evidence."""
    return folder / WORK_FOLDER / "tensors"


def calls_file(folder: Path) -> Path:
    """The file of the denoiser's recorded calls, in the folder of the evidence."""
    return folder / WORK_FOLDER / "calls.safetensors"


def release_folder(folder: Path) -> Path:
    """Where a recipe is converted to be checked, in the folder of the evidence."""
    return folder / WORK_FOLDER / "release"


def remove_work(folder: Path) -> None:
    """Delete what is needed no more; what cannot be deleted does no harm."""
    shutil.rmtree(folder / WORK_FOLDER, ignore_errors=True)
