"""What a file is by its first bytes, where it is not what its name says.

Downloads leave a pointer, a page or an error message in place of a file, and people rename files. Each kind has a hint
that says what to do.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from dataclasses import dataclass

#: First bytes of a file that show its kind: as many as one block of a tar archive.
KIND_BYTES = 512
#: Where the magic of a tar archive is (POSIX.1-1988).
_TAR_MAGIC = slice(257, 262)
#: Characters of a text that a message shows; and the fewest that count as a text, because fewer may be chance.
_SHOWN_CHARACTERS = 60
_LEAST_CHARACTERS = 8

_AGAIN = "Download the file again."
_CHECK_PATH = "Check the path."
_UNPACK = "Unpack it, then give the checkpoint inside it."
_TO_SAFETENSORS = "Convert it to safetensors first."


@dataclass(frozen=True)
class FileKind:
    """A kind of file that is neither a safetensors file nor JSON."""

    name: str
    """With its article, for a message in which it follows "is"."""
    hint: str
    """What to do about it."""


#: Kinds by their first bytes, as the definitions of the formats give them; the first match counts.
_MAGICS = (
    (b"GGUF", FileKind("a GGUF file", "Convert the checkpoint that it was made from.")),
    (b"\x89HDF\r\n\x1a\n", FileKind("an HDF5 file", _TO_SAFETENSORS)),
    (b"\x93NUMPY", FileKind("a NumPy array", _TO_SAFETENSORS)),
    (b"\x1f\x8b", FileKind("a gzip archive", _UNPACK)),
    (b"BZh", FileKind("a bzip2 archive", _UNPACK)),
    (b"\xfd7zXZ\x00", FileKind("an xz archive", _UNPACK)),
    (b"\x28\xb5\x2f\xfd", FileKind("a zstd archive", _UNPACK)),
    (b"7z\xbc\xaf\x27\x1c", FileKind("a 7-Zip archive", _UNPACK)),
    (b"Rar!\x1a\x07", FileKind("a RAR archive", _UNPACK)),
    (b"PK\5\6", FileKind("an empty zip archive", _AGAIN)),
    (b"\x89PNG\r\n\x1a\n", FileKind("a PNG image", _CHECK_PATH)),
    (b"\xff\xd8\xff", FileKind("a JPEG image", _CHECK_PATH)),
    (b"\x7fELF", FileKind("a program or library of Linux", _CHECK_PATH)),
)
_POINTER = FileKind(
    "a Git LFS pointer, not the file itself", "Run `git lfs pull` in the clone, or download it with `hf download`."
)
_PICKLE = FileKind("a pickle, which can run code when it is opened", _TO_SAFETENSORS)
_TORCH = FileKind("an archive of torch.save, which contains a pickle", _TO_SAFETENSORS)
_TAR = FileKind("a tar archive", _UNPACK)
#: What PyTorch writes and has written as ``.bin``: the newest form first.
TORCH_KINDS = (_TORCH, _PICKLE, _TAR)
_PAGE = FileKind("an HTML page", f"{_AGAIN} A page that came in its place may ask for a login.")
_ERROR = FileKind("an XML error message of a storage service", f"{_AGAIN} The link has expired or was refused.")


def foreign_kind(beginning: bytes) -> FileKind | None:
    """The kind of a file that is not plain text; None if its first bytes show none.

    Args:
        beginning: the first ``KIND_BYTES`` bytes, or all if it has fewer.
    """
    for magic, kind in _MAGICS:
        if beginning.startswith(magic):
            return kind
    if beginning.startswith(b"PK\x03\x04"):
        return _zip_kind(beginning)
    # Protocol 2 and later, before an opcode; older pickles have no magic.
    if beginning[:2] in (b"\x80\2", b"\x80\3", b"\x80\4", b"\x80\5") and any(beginning[2:8]):
        return _PICKLE
    if beginning[_TAR_MAGIC] == b"ustar":
        return _TAR
    if beginning and not beginning.strip(b"\0"):
        return FileKind("filled with zeros from its beginning", f"{_AGAIN} The download did not finish.")
    return _markup_kind(beginning.removeprefix(b"\xef\xbb\xbf").lstrip().lower())


def _zip_kind(beginning: bytes) -> FileKind:
    # The name of the first member follows the fixed part of its entry.
    length = int.from_bytes(beginning[26:28], "little")
    name = beginning[30 : 30 + length]
    if name.endswith((b"/data.pkl", b"/.format_version", b"/byteorder")):
        return _TORCH
    if name.endswith(b".npy"):
        return FileKind("an npz archive of NumPy", _TO_SAFETENSORS)
    return FileKind("a zip archive", _UNPACK)


def _markup_kind(beginning: bytes) -> FileKind | None:
    """The kind of a text that has a fixed beginning, given without space in front of it and in lower case."""
    if beginning.startswith(b"version https://git-lfs.github.com/spec/"):
        return _POINTER
    if beginning.startswith((b"<!doctype html", b"<html", b"<head")):
        return _PAGE
    if beginning.startswith((b"<?xml", b"<error>")):
        if b"<html" in beginning:
            return _PAGE
        return _ERROR if b"<error>" in beginning else FileKind("an XML file", _AGAIN)
    return None


def weights_kind(beginning: bytes) -> FileKind | None:
    """The kind of a file that should be a safetensors file and is not; None if its first bytes show none.

    Args:
        beginning: the first ``KIND_BYTES`` bytes, or all if it has fewer.
    """
    if not beginning:
        return FileKind("empty", _AGAIN)
    # A header of less than 4 GB, whose length may look like a magic.
    if not any(beginning[4:8]) and beginning[8:].lstrip()[:1] == b"{":
        return None
    return foreign_kind(beginning) or _text_kind(beginning)


def _text_kind(beginning: bytes) -> FileKind | None:
    try:
        # The last character of a longer text may be cut.
        text = getincrementaldecoder("utf-8")().decode(beginning, len(beginning) < KIND_BYTES)
    except UnicodeDecodeError:
        return None
    text = text.strip()
    if len(text) < _LEAST_CHARACTERS or not all(character.isprintable() or character.isspace() for character in text):
        return None
    if text.startswith(("{", "[")):
        if '"weight_map"' in text:
            return FileKind("an index of shards", "Give the folder, or name the index *.safetensors.index.json.")
        return FileKind("JSON text", _AGAIN)
    shown = text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
    return FileKind(f"a text file that says {shown!r}", _AGAIN)
