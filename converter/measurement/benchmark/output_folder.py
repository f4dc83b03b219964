"""Whether measurements can be written to a folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from converter.errors import OutputError


def refuse_output_folder(output: Path, original: Path, folders: Iterable[str]) -> None:
    """Refuse an output folder that is inside the original, is a file, or contains links.

    Args:
        output: the folder of the measurements.
        original: what is measured.
        folders: in the output folder, that will be written to; a parent before its folders.

    Raises:
        OutputError: it is refused.
    """
    if output.resolve().is_relative_to(original.resolve()):
        raise OutputError(f"{output}: is inside the original", "Choose another folder with --out.")
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output}: is not a folder", "Choose another name.")
    for name in folders:
        if (output / name).is_symlink():
            raise OutputError(f"{output / name}: is a link, which may lead elsewhere", "Remove it.")
