"""The files of a release that get published, with the checksums that the Hub will be held against.

The manifest is the list of what is published, so that nothing gets out by chance. Hashing gigabytes takes seconds, so
what was hashed is noted inside the release with the state that the file had, and read again only when that changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from converter.checkpoint.source import read_json
from converter.checkpoint.writer import replace_file
from converter.console import SILENT, Progress, Reporter
from converter.conversion.release.manifest import STATE_FOLDER
from converter.errors import InputError, LensconvError, ReleaseError, printable, unreadable
from converter.threads import run_in_threads

#: The Hub stores longer files outside of git (hub-docs, repositories-recommendations), so that only shorter ones are
#: known to it by the hash that git gives them.
MAXIMUM_REGULAR_BYTES = 10 << 20
CHECKSUMS_NAME = "checksums.json"
_READ_BYTES = 1 << 22


@dataclass(frozen=True)
class PublishedFile:
    """A file as it will be on the Hub."""

    name: str
    """Path inside the repo, with slashes."""
    file: Path
    bytes: int
    sha256: str
    git_sha1: str
    """What git calls a file of this content; empty for files that are too long for git."""
    stamp: tuple[int, ...]
    """State of the file when it was examined: bytes, times of change in nanoseconds, inode."""
    is_hashed: bool = True
    """Whether the checksums are those of the file. Else they are the manifest's, and to be found true before a commit:
    a long file is read once, by what uploads it."""

    def has_changed(self) -> bool:
        """Whether the file was changed, replaced or removed since it was hashed."""
        return file_stamp(self.file) != self.stamp


def file_stamp(file: Path) -> tuple[int, ...]:
    """What changes when a file does; empty when there is none."""
    try:
        status = file.stat()
    except OSError:
        return ()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def noted_files(root: Path) -> set[str]:
    """Names of the files that were hashed before and have not changed since."""
    return {name for name, entry in _read_checksums(root).items() if entry[0] == file_stamp(root / name)}


def note_hashed(root: Path, files: Iterable[PublishedFile]) -> None:
    """Note that the checksums of files were found true, so that they are not read again."""
    entries = {name: entry for name, entry in _read_checksums(root).items() if entry[0] == file_stamp(root / name)}
    entries |= {file.name: (file.stamp, (file.sha256, file.git_sha1)) for file in files}
    content = {
        name: {"stamp": list(stamp), "sha256": sha256, "git_sha1": git_sha1}
        for name, (stamp, (sha256, git_sha1)) in entries.items()
    }
    # A release that cannot be written to is hashed anew each time.
    with suppress(OSError, LensconvError):
        (root / STATE_FOLDER).mkdir(exist_ok=True)
        replace_file(root / STATE_FOLDER / CHECKSUMS_NAME, (json.dumps(content, indent=1) + "\n").encode())


def hash_files(root: Path, names: Sequence[str], reporter: Reporter = SILENT) -> list[PublishedFile]:
    """Hash files of a release; those that were hashed before and have not changed since are not read again.

    Args:
        root: the release.
        names: of its files.
        reporter: shows progress.

    Raises:
        MissingInput: a file cannot be read.
        ReleaseError: a file is being changed.
    """
    if not names:
        return []
    known = _read_checksums(root)
    found: dict[str, PublishedFile] = {}
    unknown: list[str] = []
    for name in names:
        stamp = file_stamp(root / name)
        entry = known.get(name)
        if stamp and entry is not None and entry[0] == stamp:
            found[name] = PublishedFile(name, root / name, stamp[0], *entry[1], stamp)
        else:
            unknown.append(name)
    # The longest first, so that no thread is left with one at the end.
    unknown.sort(key=lambda name: file_stamp(root / name)[:1], reverse=True)
    stopped = threading.Event()
    with reporter.progress("hashing", sum(sum(file_stamp(root / name)[:1]) for name in unknown)) as shown:
        hashed = run_in_threads(
            lambda name: _hash(root / name, name, shown, stopped),
            unknown,
            workers=len(os.sched_getaffinity(0)),
            name="hash",
            refresh=shown.refresh,
            stop=stopped.set,
        )
    found |= {file.name: file for file in hashed}
    if unknown:
        note_hashed(root, found.values())
    return [found[name] for name in names]


def _hash(file: Path, name: str, progress: Progress, stopped: threading.Event) -> PublishedFile:
    """Hash a file as sha256 and, if it is short, as git does."""
    where = printable(str(file))
    before = file_stamp(file)
    digest = hashlib.sha256()
    git_digest = hashlib.sha1(f"blob {sum(before[:1])}\0".encode(), usedforsecurity=False)
    is_short = sum(before[:1]) <= MAXIMUM_REGULAR_BYTES
    buffer = memoryview(bytearray(_READ_BYTES))
    try:
        with file.open("rb", buffering=0) as stream:
            while not stopped.is_set() and (count := stream.readinto(buffer)):
                digest.update(buffer[:count])
                if is_short:
                    git_digest.update(buffer[:count])
                progress.advance(count)
    except OSError as error:
        raise unreadable(where, error, "Check its permissions.") from error
    if not before or file_stamp(file) != before:
        raise ReleaseError(f"{where}: is being changed", "Wait until nothing writes to it, then publish again.")
    return PublishedFile(name, file, before[0], digest.hexdigest(), git_digest.hexdigest() if is_short else "", before)


def _read_checksums(root: Path) -> dict[str, tuple[tuple[int, ...], tuple[str, str]]]:
    """What was noted of files: stamps, sha256 and git's hash. What makes no sense counts for nothing."""
    try:
        content = read_json(root / STATE_FOLDER / CHECKSUMS_NAME)
    except InputError:
        return {}
    found = {}
    for name, entry in content.items():
        if isinstance(entry, dict) and isinstance(entry.get("stamp"), list):
            hashes = entry.get("sha256"), entry.get("git_sha1")
            if all(isinstance(digest, str) for digest in hashes):
                found[name] = tuple(entry["stamp"]), (str(hashes[0]), str(hashes[1]))
    return found
