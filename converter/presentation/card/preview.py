"""The preview of a card: one HTML file that shows it as the Hub would, and that any browser opens."""

from __future__ import annotations

import base64
import mimetypes
from pathlib import Path
from urllib.parse import unquote

from converter.checkpoint.files import is_plain_name
from converter.checkpoint.writer import refuse_taken_place, replace_file
from converter.conversion.release.manifest import CARD_NAME
from converter.presentation.card.page import render_page

#: Larger pictures are not embedded; the Hub's own limit for a picture of a card is 20 MB.
_EMBEDDED_BYTES = 20_000_000


def write_preview(root: Path, page: Path) -> None:
    """Write the page of a release's card.

    Args:
        root: the release, with a card.
        page: the file to write; an existing one is replaced.

    Raises:
        OutputError: it cannot be written.
    """
    refuse_taken_place(page, overwrite=True)
    text = (root / CARD_NAME).read_text("utf-8")
    replace_file(page, render_page(text, lambda path: _embed(root, path)).encode())


def _embed(root: Path, address: str) -> str:
    """A picture of the release as a data: address; any other address as it is."""
    path = unquote(address)
    file = root / path
    kind = mimetypes.guess_type(file.name)[0] or ""
    if (
        not all(is_plain_name(part) for part in path.split("/"))
        or not kind.startswith("image/")
        or not file.is_file()
        or file.stat().st_size > _EMBEDDED_BYTES
        or not file.resolve().is_relative_to(root.resolve())
    ):
        return address
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"
