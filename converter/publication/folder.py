"""What lies in a release folder, and what of it must not be there when it is published.

Nothing is published but what the manifest lists. A file that it does not list is refused all the same: either it was
meant to be published, or it was not meant to lie there.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from converter.checkpoint.source import WEIGHTS_SUFFIX
from converter.conversion.release.manifest import CARD_NAME, MANIFEST_NAME, STATE_FOLDER, ReleaseFile
from converter.errors import printable, unreadable
from converter.hub.records import MAXIMUM_FILES

#: Hidden folders that tools keep, which nothing publishes: what lensconv noted, git's own, and downloads of the Hub.
_IGNORED_FOLDERS = (STATE_FOLDER, ".git", ".cache/huggingface")
#: The Hub's table of storage limits: files above are refused, or should be split.
MAXIMUM_FILE_BYTES = 200 * 10**9
ADVISED_FILE_BYTES = 50 * 10**9


def find_faults(root: Path, listed: Mapping[str, ReleaseFile]) -> Iterator[str]:
    """What is wrong with a release folder, by names and sizes alone.

    Args:
        root: the release.
        listed: files in its manifest, by path inside the release.

    Raises:
        MissingInput: a folder cannot be read.
    """
    found: dict[str, int] = {}
    for name, status in _walk(root, ""):
        if isinstance(status, str):
            yield f"{printable(name)} {status}"
        else:
            found[name] = status
    yield from _name_faults(found, listed)
    yield from _size_faults(found, listed)


def advice(listed: Mapping[str, ReleaseFile]) -> Iterator[str]:
    """What the publisher should know of files that may be published."""
    for name, file in listed.items():
        if file.bytes > ADVISED_FILE_BYTES:
            yield f"{printable(name)} has {file.bytes / 1e9:.1f} GB; the Hub advises shards of at most 50 GB"


def _walk(root: Path, prefix: str) -> Iterator[tuple[str, int | str]]:
    """Files below a folder and their bytes; or what is wrong with an entry, in words."""
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError as error:
        raise unreadable(root, error, "Check its permissions.") from error
    for entry in entries:
        name = prefix + entry.name
        is_folder = entry.is_dir(follow_symlinks=False)
        if is_folder and name in _IGNORED_FOLDERS:
            continue
        fault = _entry_fault(entry, name, is_folder=is_folder)
        if fault:
            yield name, fault
        elif is_folder:
            yield from _walk(Path(entry.path), f"{name}/")
        else:
            yield name, entry.stat(follow_symlinks=False).st_size


def _entry_fault(entry: os.DirEntry[str], name: str, *, is_folder: bool) -> str:
    if entry.name == ".gitignore":
        return "would make the Hub's client leave files out without a word"
    if not _is_unicode(name):
        return "has a name that is not UTF-8"
    if entry.is_symlink():
        return "is a link; publish the file itself"
    # The folder of the Hub's own cache is hidden, and what lies beside it is not known.
    if entry.name.startswith(".") and name not in (".gitattributes", ".cache"):
        return "is hidden, and nobody has said that it is to be published"
    if not is_folder and not stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
        return "is no regular file"
    return ""


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _name_faults(found: Mapping[str, int], listed: Mapping[str, ReleaseFile]) -> Iterator[str]:
    expected = {*listed, MANIFEST_NAME}
    # Written to by the Hub when it makes a repo, and so found in folders that were downloaded.
    for name in sorted(found.keys() - expected - {".gitattributes"}):
        yield f"{printable(name)} is not in the manifest"
    for name in sorted(expected - found.keys()):
        yield f"{printable(name)} is missing, or is no plain file"
    if CARD_NAME not in expected:
        yield f"{CARD_NAME} is not in the manifest: there is no card"
    if len(expected) > MAXIMUM_FILES:
        yield f"there are {len(expected)} files, which is more than {MAXIMUM_FILES}"


def _size_faults(found: Mapping[str, int], listed: Mapping[str, ReleaseFile]) -> Iterator[str]:
    for name, file in listed.items():
        size = found.get(name)
        if size is None:
            continue
        if size > MAXIMUM_FILE_BYTES:
            yield f"{printable(name)} has {size / 1e9:.1f} GB, and the Hub takes files of up to 200 GB"
        elif size == 0 and name.endswith(WEIGHTS_SUFFIX):
            yield f"{printable(name)} is empty"
        elif size != file.bytes:
            yield f"{printable(name)} has {size} bytes, and {file.bytes} by the manifest"
