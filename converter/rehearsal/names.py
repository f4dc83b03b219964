"""Names that come over the network: repos, revisions, paths and object ids. Whatever is odd is refused."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote_to_bytes

from converter.rehearsal.replies import Refusal

#: Kinds of repos, by the way their routes begin.
KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}
#: How the pages of a kind begin.
PREFIXES = {"model": "", "dataset": "datasets/", "space": "spaces/"}
#: Bytes of a path in a repo.
MAXIMUM_PATH_BYTES = 1024

_REPO_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+@-]{0,254}")
COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")


def decode(raw: str) -> str:
    """A percent-encoded part of an address.

    Raises:
        Refusal: it is not UTF-8.
    """
    try:
        return unquote_to_bytes(raw).decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refusal(400, "The address is not UTF-8") from error


def check_repo_part(text: object) -> str:
    """The owner or the name of a repo.

    Raises:
        Refusal: it is none.
    """
    if (
        not isinstance(text, str)
        or not _REPO_PART.fullmatch(text)
        or any(odd in text for odd in ("..", "--"))
        or text.endswith(".git")
    ):
        raise Refusal(400, "Repo names use letters, digits, '-', '_' and '.', and at most 96 of them")
    return text


def check_revision(text: object) -> str:
    """The name of a branch, a tag, a full ref or a commit.

    Raises:
        Refusal: it is none.
    """
    if (
        not isinstance(text, str)
        or not _REVISION.fullmatch(text)
        or any(odd in text for odd in ("..", "//", "/.", "@{"))
        or text.endswith(("/", ".lock", "."))
    ):
        raise Refusal(404, "Invalid rev id", code="RevisionNotFound")
    return text


def check_path(text: object) -> str:
    """The path of a file in a repo.

    Raises:
        Refusal: it is none, leaves the repo, or lies where git keeps its own files.
    """
    if not isinstance(text, str) or not 0 < len(text.encode("utf-8", "surrogatepass")) <= MAXIMUM_PATH_BYTES:
        raise Refusal(400, "Invalid path")
    parts = text.split("/")
    if (
        any(part in ("", ".", "..") or part.lower() == ".git" or len(part) > 255 for part in parts)
        or not text.isprintable()
        or "\\" in text
    ):
        raise Refusal(400, "Invalid path")
    return text


def check_sha256(text: object) -> str:
    """The id of an LFS object.

    Raises:
        Refusal: it is none.
    """
    if not isinstance(text, str) or not SHA256.fullmatch(text):
        raise Refusal(400, "Invalid LFS oid")
    return text


def check_size(value: object) -> int:
    """A number of bytes.

    Raises:
        Refusal: it is none.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**50:
        raise Refusal(400, "Invalid size")
    return value


def quoted(path: str) -> str:
    """A path as a part of an address, slashes kept."""
    return quote(path, safe="/")
