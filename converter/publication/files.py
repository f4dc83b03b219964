"""The files of a release that are published, their checksums, and how they differ from the files of a repo.

The manifest lists what is published, so that nothing is published by accident. Hashing gigabytes takes seconds.
Checksums are therefore noted inside the release together with the state of the file, and a file is only read again
after it has changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from converter.checkpoint.files import read_json
from converter.checkpoint.writer import replace_file
from converter.console import SILENT, Progress, Reporter
from converter.conversion.release.manifest import STATE_FOLDER
from converter.errors import InputError, LensconvError, ReleaseError, unreadable
from converter.hub.records import RemoteFile
from converter.threads import run_in_threads

#: The Hub stores longer files outside of git (hub-docs, repositories-recommendations). It knows only shorter ones by
#: the hash that git gives them.
MAXIMUM_REGULAR_BYTES = 10 << 20
CHECKSUMS_NAME = "checksums.json"
#: Files that the Hub makes itself. A publication leaves them as they are.
_HUB_FILES = (".gitattributes",)
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
    """Hash that git gives this content; empty for files that are too long for git."""
    stamp: tuple[int, ...]
    """State of the file when it was examined: bytes, times of change in nanoseconds, inode."""
    is_hashed: bool = True
    """Whether the checksums were computed from the file. If not, they come from the manifest and must be confirmed
    before the commit: a long file is read once, while it is uploaded."""

    def has_changed(self) -> bool:
        """Return whether the file was changed, replaced or removed since it was examined."""
        return file_stamp(self.file) != self.stamp

    def is_same(self, record: RemoteFile | None) -> bool:
        """Return whether the Hub's record, if there is one, describes this content."""
        if record is None or record.bytes != self.bytes:
            return False
        return record.sha256 == self.sha256 if record.sha256 is not None else record.git_sha1 == self.git_sha1


@dataclass(frozen=True)
class Difference:
    """What a commit must change to make a repo equal to a release."""

    added: tuple[PublishedFile, ...]
    """Files that the repo does not have, or has with another content."""
    deleted: tuple[str, ...]
    """Files that the repo must not have."""
    kept: tuple[str, ...] = ()
    """Files of the repo that the release does not contain, and that stay as they are."""

    def __bool__(self) -> bool:
        """Return whether there is anything to change."""
        return bool(self.added or self.deleted)

    @property
    def added_bytes(self) -> int:
        """Bytes of the files to add."""
        return sum(file.bytes for file in self.added)


def compare(
    files: Iterable[PublishedFile], remote: Mapping[str, RemoteFile], unwanted: Collection[str] = ()
) -> Difference:
    """Compare a release with the Hub's records of a commit.

    Args:
        files: the files of the release.
        remote: the records of the commit, by path.
        unwanted: names of files that the repo must not have, unless they are of the release.
    """
    files = tuple(files)
    others = other_files(files, remote)
    return Difference(
        added=tuple(file for file in files if not file.is_same(remote.get(file.name))),
        deleted=tuple(name for name in others if name in unwanted),
        kept=tuple(name for name in others if name not in unwanted),
    )


def other_files(files: Iterable[PublishedFile], remote: Mapping[str, RemoteFile]) -> list[str]:
    """Return the names of a repo's files that neither a release contains nor the Hub makes itself."""
    expected = {*_HUB_FILES, *(file.name for file in files)}
    return [name for name in remote if name not in expected]


def describe(difference: Difference, remote: Mapping[str, RemoteFile]) -> Iterator[str]:
    """Describe in words how each file differs."""
    for file in difference.added:
        record = remote.get(file.name)
        if record is None:
            yield f"{file.name} is missing on the Hub"
        elif record.bytes != file.bytes:
            yield f"{file.name} has {record.bytes} bytes on the Hub, and {file.bytes} here"
        else:
            yield f"{file.name} has another checksum on the Hub"
    for name in difference.deleted:
        yield f"{name} should not be on the Hub"


def changed_error(file: PublishedFile, consequence: str = "nothing was published") -> ReleaseError:
    """Return the error for a file that was changed by another program during the publication."""
    return ReleaseError(
        f"{file.file}: has changed since it was examined; {consequence}",
        "Wait until no program writes to it, then publish again.",
    )


def refuse_changed(files: Iterable[PublishedFile]) -> None:
    """Make sure that files are still as they were examined.

    Raises:
        ReleaseError: one has changed.
    """
    for file in files:
        if file.has_changed():
            raise changed_error(file)


def read_unchanged(file: PublishedFile) -> bytes:
    """Read a file whose content must still be what was examined.

    Raises:
        ReleaseError: it has another content, or cannot be read any more.
    """
    try:
        content = file.file.read_bytes()
    except OSError as error:
        raise changed_error(file) from error
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise changed_error(file)
    return content


def file_stamp(file: Path) -> tuple[int, ...]:
    """Return values that change when a file does; empty if the file does not exist."""
    try:
        status = file.stat()
    except (OSError, ValueError):
        # Names in damaged notes may be impossible.
        return ()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _size(stamp: tuple[int, ...]) -> int:
    return stamp[0] if stamp else 0


def noted_files(root: Path) -> dict[str, PublishedFile]:
    """Return the files, by name, whose checksums were noted and which have not changed since.

    Notes that are missing, damaged or of another format are ignored.
    """
    try:
        notes = read_json(root / STATE_FOLDER / CHECKSUMS_NAME)
    except InputError:
        return {}
    found = {}
    for name, note in notes.items():
        stamp = file_stamp(root / name)
        match note:
            case {"stamp": noted, "sha256": str(sha256), "git_sha1": str(git_sha1)} if stamp and noted == list(stamp):
                found[name] = PublishedFile(name, root / name, stamp[0], sha256, git_sha1, stamp)
    return found


def note_hashed(root: Path, files: Iterable[PublishedFile]) -> None:
    """Note that the checksums of files were found true, so that they are not read again."""
    known = noted_files(root) | {file.name: file for file in files}
    notes = {
        name: {"stamp": list(file.stamp), "sha256": file.sha256, "git_sha1": file.git_sha1}
        for name, file in known.items()
    }
    # A release in a read-only folder is hashed again each time.
    with suppress(OSError, LensconvError):
        (root / STATE_FOLDER).mkdir(exist_ok=True)
        replace_file(root / STATE_FOLDER / CHECKSUMS_NAME, (json.dumps(notes, indent=1) + "\n").encode())


def hash_files(
    root: Path,
    names: Sequence[str],
    reporter: Reporter = SILENT,
    known: Mapping[str, PublishedFile] | None = None,
) -> list[PublishedFile]:
    """Hash files of a release, except those whose checksums are known.

    Args:
        root: the release.
        names: names of its files.
        reporter: shows progress.
        known: files that need not be read, by name; by default those of ``noted_files``.

    Returns:
        The files, in the order of their names.

    Raises:
        MissingInput: a file cannot be read.
        ReleaseError: another program is changing a file.
    """
    found = dict(noted_files(root) if known is None else known)
    sizes = {name: _size(file_stamp(root / name)) for name in names if name not in found}
    if sizes:
        stopped = threading.Event()
        with reporter.progress("hashing", sum(sizes.values())) as shown:
            hashed = run_in_threads(
                lambda name: _hash(root / name, name, shown, stopped),
                # The longest first, so that no thread begins a long file when the others are done.
                sorted(sizes, key=sizes.__getitem__, reverse=True),
                workers=len(os.sched_getaffinity(0)),
                name="hash",
                refresh=shown.refresh,
                stop=stopped.set,
            )
        note_hashed(root, hashed)
        found |= {file.name: file for file in hashed}
    return [found[name] for name in names]


def _hash(file: Path, name: str, progress: Progress, stopped: threading.Event) -> PublishedFile:
    """Compute the sha256 of a file and, if it is short, the hash that git gives it."""
    stamp = file_stamp(file)
    size = _size(stamp)
    sha256 = hashlib.sha256()
    git_sha1 = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    is_short = size <= MAXIMUM_REGULAR_BYTES
    buffer = memoryview(bytearray(_READ_BYTES))
    try:
        with file.open("rb", buffering=0) as stream:
            while not stopped.is_set() and (count := stream.readinto(buffer)):
                sha256.update(buffer[:count])
                if is_short:
                    git_sha1.update(buffer[:count])
                progress.advance(count)
    except OSError as error:
        raise unreadable(file, error, "Check its permissions.") from error
    if not stamp or file_stamp(file) != stamp:
        raise ReleaseError(
            f"{file}: another program is changing it", "Wait until no program writes to it, then publish again."
        )
    return PublishedFile(name, file, size, sha256.hexdigest(), git_sha1.hexdigest() if is_short else "", stamp)
