"""The files that a card adds to a release: measurements, and the pictures that it shows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from converter.checkpoint.files import is_plain_name
from converter.conversion.release.manifest import SUMMARY_NAME
from converter.errors import OutputError
from converter.measurement.evidence.names import MATRIX_NAME, QUANTIZED, SWEEP_NAME
from converter.presentation.card.evidence import CardEvidence, read_beside
from converter.presentation.card.pictures import CardPictures
from converter.presentation.card.release import CardRelease

_IMAGES_FOLDER = f"images/{QUANTIZED}"


def collect_additions(release: CardRelease, evidence: CardEvidence, pictures: CardPictures) -> dict[str, bytes]:
    """Return the contents of the files to add, by path in the release: measurements, and what the card shows.

    Raises:
        MissingInput: a file cannot be read.
        EvidenceError: a file is outside of the folder.
        OutputError: ``convert`` wrote another file of that name.
    """
    names = [name for name in evidence.files if name != SUMMARY_NAME]
    names += sorted(_images(evidence))
    contents = {**{name: read_beside(evidence.folder, name) for name in names}, **pictures.contents}
    if evidence.sweep_file is not None:
        contents[SWEEP_NAME] = read_beside(evidence.sweep_file.parent, SWEEP_NAME)
    found = {}
    for name, content in contents.items():
        if name not in release.written:
            found[name] = content
        elif hashlib.sha256(content).hexdigest() != release.written[name]:
            raise OutputError(f"{name}: `convert` wrote another file of that name", "Remove it from the measurements.")
    return found


def quantized_images(matrix: Mapping[str, Any], folder: Path) -> Iterator[tuple[Mapping[str, str], str]]:
    """Yield the rows of a matrix with the path of the quantized model's image, where it exists."""
    for row in matrix["prompts"]:
        name = row[QUANTIZED].get("image", "")
        plain = all(is_plain_name(part) for part in name.split("/"))
        if plain and name.startswith(f"{_IMAGES_FOLDER}/") and (folder / name).is_file():
            yield row, name


def _images(evidence: CardEvidence) -> Iterator[str]:
    matrix = evidence.files.get(MATRIX_NAME)
    if matrix is not None:
        yield from (name for _, name in quantized_images(matrix, evidence.folder))
