"""The Hub's records of a repo's files, believed only where they can be true."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from converter.checkpoint.source import is_plain_name
from converter.errors import HubError, printable
from converter.hub.places import HubPlace

#: Files and folders of a repo; the largest models have some hundred.
MAXIMUM_FILES = 20_000
#: Bytes of one file. The Hub takes 500 GB at most, and ext4 holds 16 TiB.
MAXIMUM_FILE_BYTES = 1 << 42
#: Bytes of a name and of a path, as most file systems take them.
MAXIMUM_NAME_BYTES = 255
MAXIMUM_PATH_BYTES = 1024


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as the Hub records it."""

    path: str
    """Inside the repo, with slashes."""
    bytes: int
    sha256: str | None
    """Of a file in LFS or Xet; None of a file that lies in git itself."""
    git_sha1: str
    """What git calls it: the id of its content, or of the pointer to it if it has a sha256."""


def parse_records(place: HubPlace, entries: Iterable[Any]) -> dict[str, RemoteFile]:
    """Read the records of a listing.

    Args:
        place: the repo, for messages.
        entries: what the Hub lists.

    Returns: the files by path, in the Hub's order; folders are left out.

    Raises:
        HubError: a record makes no sense, a path could not be one on every machine, or two could not be together.
    """
    files: dict[str, RemoteFile] = {}
    for entry in entries:
        file = _parse_record(place, entry)
        if file is not None:
            if file.path in files:
                raise _refusal(place, file.path, "is listed twice")
            files[file.path] = file
    _check_conflicts(place, files)
    return files


def _parse_record(place: HubPlace, entry: Any) -> RemoteFile | None:
    if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
        raise HubError(f"{place}: the Hub lists a file without a path")
    path = entry["path"]
    _check_path(place, path)
    if entry.get("type") != "file":
        return None
    size, git, lfs = entry.get("size"), entry.get("oid"), entry.get("lfs")
    if type(size) is not int or not 0 <= size <= MAXIMUM_FILE_BYTES:
        raise _refusal(place, path, f"is said to have {printable(str(size), 40)} bytes")
    if not isinstance(git, str) or not re.fullmatch(r"[0-9a-f]{40}", git):
        raise _refusal(place, path, "has a record without its id in git")
    if lfs is None:
        return RemoteFile(path, size, None, git)
    sha256 = lfs.get("oid") if isinstance(lfs, dict) else None
    if not isinstance(sha256, str) or not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise _refusal(place, path, "has a record of LFS without its sha256")
    if lfs.get("size", size) != size:
        raise _refusal(place, path, "has two sizes in its record")
    return RemoteFile(path, size, sha256, git)


def _check_path(place: HubPlace, path: str) -> None:
    try:
        encoded = path.encode()
    except UnicodeEncodeError as error:
        raise _refusal(place, path, "is no valid Unicode") from error
    parts = path.split("/")
    if (
        not all(map(is_plain_name, parts))
        or len(encoded) > MAXIMUM_PATH_BYTES
        or max(len(part.encode()) for part in parts) > MAXIMUM_NAME_BYTES
    ):
        raise _refusal(place, path, "is no path that a file can have")


def _check_conflicts(place: HubPlace, files: dict[str, RemoteFile]) -> None:
    """Refuse names that fall together where case does not count, and files that are folders as well."""
    known: dict[str, str] = {}
    for path in files:
        other = known.setdefault(path.casefold(), path)
        if other != path:
            raise _refusal(place, path, f"differs from {printable(other)} in nothing but case")
    for path in files:
        folder = path.casefold().rpartition("/")[0]
        while folder:
            if folder in known:
                raise _refusal(place, path, f"lies in {printable(known[folder])}, which is a file")
            folder = folder.rpartition("/")[0]


def _refusal(place: HubPlace, path: str, reason: str) -> HubError:
    return HubError(f"{place}: {path} {reason}", "Do not download this repo before you know why.")
