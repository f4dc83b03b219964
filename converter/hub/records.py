"""The Hub's records of the files in a repo; impossible records are refused."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from converter.checkpoint.files import is_plain_name
from converter.errors import HubError, printable
from converter.hub.addresses import HubAddress

#: Most files and folders of a repo; the largest models have some hundred.
MAXIMUM_FILES = 20_000
#: Most bytes of one file. The Hub takes 500 GB, and ext4 16 TiB.
MAXIMUM_FILE_BYTES = 1 << 42
#: Most bytes of a name and of a path in most file systems.
MAXIMUM_NAME_BYTES = 255
MAXIMUM_PATH_BYTES = 1024


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as the Hub records it."""

    path: str
    """Path inside the repo, with slashes."""
    bytes: int
    sha256: str | None
    """Checksum of a file in LFS or Xet; None for a file in git itself."""
    git_sha1: str
    """Its id in git: of the content, or of the pointer to it if it has a sha256."""


def parse_records(address: HubAddress, entries: Iterable[Any]) -> dict[str, RemoteFile]:
    """Parse the records of a listing.

    Args:
        address: the repo, for messages.
        entries: the records.

    Returns: the files by path, in the Hub's order; folders are left out.

    Raises:
        HubError: a record is malformed, a path is not possible on every machine, or two paths exclude each other.
    """
    files: dict[str, RemoteFile] = {}
    for entry in entries:
        file = _parse_record(address, entry)
        if file is not None:
            if file.path in files:
                raise _refusal(address, file.path, "is listed twice")
            files[file.path] = file
    _check_conflicts(address, files)
    return files


def _parse_record(address: HubAddress, entry: Any) -> RemoteFile | None:
    if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
        raise HubError(f"{address}: the Hub lists a file without a path")
    path = entry["path"]
    _check_path(address, path)
    if entry.get("type") != "file":
        return None
    size, git, lfs = entry.get("size"), entry.get("oid"), entry.get("lfs")
    if type(size) is not int or not 0 <= size <= MAXIMUM_FILE_BYTES:
        raise _refusal(address, path, f"has an impossible size: {size!s:.40} bytes")
    if not isinstance(git, str) or not re.fullmatch(r"[0-9a-f]{40}", git):
        raise _refusal(address, path, "has a record without an id in git")
    if lfs is None:
        return RemoteFile(path, size, None, git)
    sha256 = lfs.get("oid") if isinstance(lfs, dict) else None
    if not isinstance(sha256, str) or not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise _refusal(address, path, "has an LFS record without a sha256")
    if lfs.get("size", size) != size:
        raise _refusal(address, path, "has two sizes in its record")
    return RemoteFile(path, size, sha256, git)


def _check_path(address: HubAddress, path: str) -> None:
    try:
        encoded = path.encode()
    except UnicodeEncodeError as error:
        raise _refusal(address, path, "is not valid Unicode") from error
    parts = path.split("/")
    if (
        not all(map(is_plain_name, parts))
        or len(encoded) > MAXIMUM_PATH_BYTES
        or max(len(part.encode()) for part in parts) > MAXIMUM_NAME_BYTES
    ):
        raise _refusal(address, path, "is not a valid path of a file")


def _check_conflicts(address: HubAddress, files: dict[str, RemoteFile]) -> None:
    """Refuse names that differ in case only, and files that are folders, too."""
    known: dict[str, str] = {}
    for path in files:
        other = known.setdefault(path.casefold(), path)
        if other != path:
            raise _refusal(address, path, f"differs from {printable(other)} in case only")
    for path in files:
        folder = path.casefold().rpartition("/")[0]
        while folder:
            if folder in known:
                raise _refusal(address, path, f"is in {printable(known[folder])}, which is a file")
            folder = folder.rpartition("/")[0]


def _refusal(address: HubAddress, path: str, reason: str) -> HubError:
    return HubError(f"{address}: {path} {reason}", "Do not download this repo before you know the reason.")
