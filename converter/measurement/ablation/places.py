"""Where an ablation has its files, in the folder of measurements."""

from __future__ import annotations

from pathlib import Path

#: Folder of the images; each model has one of its own in it.
IMAGES_FOLDER = Path("images") / "ablation"
#: Folder for what is needed until all is measured.
WORK_FOLDER = ".ablation"


def spool_folder(output: Path) -> Path:
    """The folder of quantized tensors."""
    return output / WORK_FOLDER / "tensors"


def calls_file(output: Path) -> Path:
    """The file of the denoiser's recorded calls."""
    return output / WORK_FOLDER / "calls.safetensors"
