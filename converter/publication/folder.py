"""What a release folder contains, and which of it must not be there when the release is published.

Only files that the manifest lists are published. A file that it does not list is refused, not left out: either it was
meant to be published, or it does not belong in the folder.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from converter.checkpoint.ignored import DOWNLOAD_RECORDS, is_litter
from converter.checkpoint.weights import WEIGHTS_SUFFIX
from converter.conversion.release.manifest import CARD_NAME, MANIFEST_NAME, STATE_FOLDER, ReleaseFile
from converter.errors import unreadable
from converter.hub.records import MAXIMUM_FILES

#: Hidden folders that are never published: lensconv's notes, git's own folder, and the download records of the Hub.
_IGNORED_FOLDERS = (STATE_FOLDER, ".git", DOWNLOAD_RECORDS)
_LINK = "is a link"
#: From the Hub's table of storage limits: it refuses larger files, and advises to split those above the second size.
MAXIMUM_FILE_BYTES = 200 * 10**9
ADVISED_FILE_BYTES = 50 * 10**9
#: What to do about a file that should not be there, about a link, and about one that is not what the manifest says.
_MOVE, _UNLINK = "Move such files out of the release folder.", "Replace links with what they lead to."
_REPLACE = "Convert again, or download the release again."
#: Earlier versions of lensconv brought hidden files along and listed them.
_RENEW = "Convert again; lensconv leaves such files behind now."
_ADOPT = f"If you edited {CARD_NAME} on purpose, run `lensconv card RELEASE --adopt`; otherwise make the card again."


def find_faults(root: Path, listed: Mapping[str, ReleaseFile]) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with a release folder, and what to do about it, judging by names and sizes only.

    Args:
        root: the release.
        listed: files in its manifest, by path inside the release.

    Raises:
        MissingInput: a folder cannot be read.
    """
    found: dict[str, int] = {}
    refused: list[str] = []
    for name, status in _walk(root, ""):
        if isinstance(status, int):
            if name in listed or not is_litter(name):
                found[name] = status
            continue
        is_listed = any(_is_within(other, name) for other in listed)
        if is_listed or not is_litter(name):
            refused.append(name)
            yield f"{name} {status}", _UNLINK if status == _LINK else _RENEW if is_listed else _MOVE
    missing = {*listed, MANIFEST_NAME} - found.keys()
    for name in sorted(name for name in missing if not any(_is_within(name, other) for other in refused)):
        yield f"{name} is missing, or is not a regular file", _REPLACE
    yield from _name_faults(found, listed)
    yield from _size_faults(found, listed)


def _is_within(name: str, other: str) -> bool:
    """Whether a path is another path, or below it."""
    return f"{name}/".startswith(f"{other}/")


def replace_hint(name: str) -> str:
    """What to do about a file that is not what the manifest says."""
    return _ADOPT if name == CARD_NAME else _REPLACE


def advice(listed: Mapping[str, ReleaseFile]) -> Iterator[str]:
    """Describe what the publisher should know about files that may be published."""
    for name, file in listed.items():
        if file.bytes > ADVISED_FILE_BYTES:
            yield f"{name} has {file.bytes / 1e9:.1f} GB; the Hub advises shards of at most 50 GB"


def _walk(root: Path, prefix: str) -> Iterator[tuple[str, int | str]]:
    """Yield the files below a folder with their bytes, or with a description of what is wrong with them."""
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
        return "would make the Hub's client skip files silently"
    if name.encode(errors="ignore").decode() != name:
        return "has a name that is not UTF-8"
    if entry.is_symlink():
        return _LINK
    # The folder with the Hub's download records is skipped, but other files next to it are refused.
    if entry.name.startswith(".") and name not in (".gitattributes", ".cache"):
        return "is hidden; hidden files are not published"
    if not is_folder and not stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
        return "is not a regular file"
    return ""


def _name_faults(found: Mapping[str, int], listed: Mapping[str, ReleaseFile]) -> Iterator[tuple[str, str]]:
    expected = {*listed, MANIFEST_NAME}
    # The Hub writes this file into each new repo, so downloaded folders contain it.
    for name in sorted(found.keys() - expected - {".gitattributes"}):
        yield f"{name} is not in the manifest", _MOVE
    if CARD_NAME not in expected:
        yield f"{CARD_NAME} is not in the manifest: the release has no card", "Make a card with `lensconv card`."
    if len(expected) > MAXIMUM_FILES:
        yield f"the release has {len(expected)} files, which is more than {MAXIMUM_FILES}", ""


def _size_faults(found: Mapping[str, int], listed: Mapping[str, ReleaseFile]) -> Iterator[tuple[str, str]]:
    for name, file in listed.items():
        size = found.get(name)
        if size is None:
            continue
        if size > MAXIMUM_FILE_BYTES:
            reason = f"{name} has {size / 1e9:.1f} GB, but the Hub accepts files of up to 200 GB"
            yield reason, "Convert again with a smaller --max-shard-size."
        elif size == 0 and name.endswith(WEIGHTS_SUFFIX):
            yield f"{name} is empty", _REPLACE
        elif size != file.bytes:
            yield f"{name} has {size} bytes, but {file.bytes} in the manifest", replace_hint(name)
