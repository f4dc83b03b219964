"""Where a search has its files, beside the recipe that it finds."""

from __future__ import annotations

from pathlib import Path

from converter.measurement.sensitivity.work_folder import WorkFolder

#: Name of the folder for what is needed until all is measured.
WORK_NAME = ".search"


def evidence_folder(recipe: Path) -> Path:
    """The folder of what was measured, of a recipe's file."""
    return recipe.with_name(f"{recipe.stem}-evidence")


def recipe_files(recipe: Path, count: int | None) -> list[Path]:
    """The files of the recipes: one, or those of a front, which are numbered from the smallest recipe.

    Args:
        recipe: the file that the user named.
        count: number of recipes of a front; None where there is one recipe.
    """
    if count is None:
        return [recipe]
    digits = len(str(count))
    return [recipe.with_name(f"{recipe.stem}-{number:0{digits}}{recipe.suffix}") for number in range(1, count + 1)]


def work_folder(folder: Path) -> WorkFolder:
    """The folder for what is needed until all is measured, in that of the evidence."""
    return WorkFolder(folder / WORK_NAME)


def release_folder(folder: Path) -> Path:
    """Where a recipe is converted to be checked, in the folder of the evidence."""
    return work_folder(folder).path / "release"
