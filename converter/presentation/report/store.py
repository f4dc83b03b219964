"""Where the images of a page are: inside it as ``data:`` addresses, or, if they are many, in a folder beside it."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from converter.checkpoint.writer import folder_inside, replace_file, writing

#: Most bytes of all images inside a page. Base64 makes them a third longer, so that a page has some 43 MB at most,
#: which can still be sent and opened like a document; thirty images of 1440 pixels a side take about twice as much.
EMBEDDED_BYTES = 32_000_000
#: Names of the files beside a page: parts of their sha256, so that a page that is still there keeps its images until it
#: is replaced.
_FILE_NAMES = re.compile(r"[0-9a-f]{32}\.(webp|png)")


class ImageStore:
    """The images of one page.

    Args:
        page: the file of the page; the folder beside it is called after it.
        limit: most bytes of all images inside the page.

    Raises:
        OutputError: the folder beside the page is a link that leads elsewhere.
    """

    def __init__(self, page: Path, limit: int = EMBEDDED_BYTES) -> None:
        self.folder = folder_inside(page.parent, f"{page.stem}-images")
        self.bytes = 0
        """Bytes of all images, each counted once."""
        self._limit = limit
        self._names: set[str] = set()
        self._held: dict[str, bytes] = {}
        self._small: dict[str, bytes] = {}

    @property
    def is_beside(self) -> bool:
        """Whether the images are in the folder."""
        return self.bytes > self._limit

    def add(self, content: bytes) -> str:
        """Keep the content of a file, and return its name; the same content has the same name.

        Raises:
            OutputError: the folder cannot be written to.
            DiskError: the disk is full.
        """
        name = _name(content)
        if name not in self._names:
            self._names.add(name)
            self._held[name] = content
            self.bytes += len(content)
        if self.is_beside:
            self._write_held()
        return name

    def add_small(self, content: bytes) -> str:
        """Keep the content of a file that is inside the page in any case, and return its name."""
        name = _name(content)
        self._small[name] = content
        return name

    def address(self, name: str) -> str:
        """Return the address of an image in the page, once all were added. It has no character that HTML escapes."""
        content = self._small.get(name) or self._held.get(name)
        if content is None:
            return f"{quote(os.fsencode(self.folder.name))}/{name}"
        return data_address(content, "image/png" if name.endswith(".png") else "image/webp")

    def remove_others(self) -> None:
        """Remove the images of an earlier page from the folder, and the folder if nothing else is in it.

        Raises:
            OutputError: a file cannot be removed.
        """
        if not self.folder.is_dir():
            return
        kept = self._names if self.is_beside else ()
        with writing(self.folder):
            for file in sorted(self.folder.iterdir()):
                if file.name not in kept and _FILE_NAMES.fullmatch(file.name) and not file.is_dir():
                    file.unlink()
        with suppress(OSError):
            self.folder.rmdir()

    def _write_held(self) -> None:
        with writing(self.folder):
            self.folder.mkdir(exist_ok=True)
        for name, content in self._held.items():
            replace_file(self.folder / name, content)
        self._held.clear()


def data_address(content: bytes, kind: str) -> str:
    """Return a ``data:`` address of this content and MIME type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _name(content: bytes) -> str:
    ending = "png" if content.startswith(b"\x89PNG") else "webp"
    return f"{hashlib.sha256(content).hexdigest()[:32]}.{ending}"
