"""Checks of what comes over the network: names of repos, revisions, paths, object ids and numbers."""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

from converter.rehearsal.replies import Refusal

#: Bytes of a path in a repo.
MAXIMUM_PATH_BYTES = 1024

_REPO_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+@-]{0,254}")
COMMIT = re.compile(r"[0-9a-f]{40}")
#: What git takes for the beginning of the id of a commit. That huggingface.co takes four digits, too, is a guess.
SHORT_COMMIT = re.compile(r"[0-9a-f]{4,40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def decode(raw: str) -> str:
    """Decode a percent-encoded part of an address; raise Refusal if it is not UTF-8."""
    try:
        return unquote_to_bytes(raw).decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refusal(400, "The address is not UTF-8") from error


def check_repo_part(text: str) -> str:
    """Check the owner or the name of a repo; raise Refusal if it is not a valid one."""
    if not _REPO_PART.fullmatch(text) or any(odd in text for odd in ("..", "--")) or text.endswith(".git"):
        raise Refusal(400, "Repo names use letters, digits, '-', '_' and '.', and at most 96 of them")
    return text


def check_revision(text: str) -> str:
    """Check the name of a branch, a tag, a full ref or a commit; raise Refusal if it is not a valid one."""
    if (
        not _REVISION.fullmatch(text)
        or any(odd in text for odd in ("..", "//", "/.", "@{"))
        or text.endswith(("/", ".lock", "."))
    ):
        raise Refusal(404, "Invalid rev id", code="RevisionNotFound")
    return text


def check_path(text: str) -> str:
    """Check the path of a file in a repo.

    Raises:
        Refusal: it is not a valid one, leads out of the repo, or into the folder of git.
    """
    parts = text.split("/")
    if (
        len(text.encode("utf-8", "surrogatepass")) > MAXIMUM_PATH_BYTES
        or any(part in ("", ".", "..") or part.lower() == ".git" or len(part) > 255 for part in parts)
        or not text.isprintable()
        or "\\" in text
    ):
        # The status is that of huggingface.co, the words are not known.
        raise Refusal(422, "Invalid path")
    return text


def check_sha256(text: str) -> str:
    """Check the id of an LFS object; raise Refusal if it is not a sha256."""
    if not _SHA256.fullmatch(text):
        raise Refusal(400, "Invalid LFS oid")
    return text


def check_size(value: object) -> int:
    """Check a number of bytes; raise Refusal if it is not a valid one."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**50:
        raise Refusal(400, "Invalid size")
    return value


def check_number(text: str) -> int:
    """Read a number in an address; raise Refusal if it is not a number of at most 15 digits."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 15):
        raise Refusal(400, "Invalid number in the address")
    return int(text)
