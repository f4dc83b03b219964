"""Where an ablation has its files, in the folder of measurements."""

from __future__ import annotations

from pathlib import Path

from converter.measurement.sensitivity.work_folder import WorkFolder

#: Folder of the images; each model has one of its own in it.
IMAGES_FOLDER = Path("images") / "ablation"
#: Name of the folder for what is needed until all is measured.
WORK_NAME = ".ablation"


def work_folder(output: Path) -> WorkFolder:
    """The folder for what is needed until all is measured, in that of the measurements."""
    return WorkFolder(output / WORK_NAME)
