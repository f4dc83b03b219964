"""Copy files of the source into a release: other components of the pipeline, tokenizers, settings, terms, code."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from converter.checkpoint.checksum import file_sha256
from converter.checkpoint.files import read_json
from converter.checkpoint.index import parse_weight_map
from converter.checkpoint.weights import PICKLED_SUFFIX, WEIGHTS_SUFFIX, plain_name
from converter.console import Progress
from converter.conversion.release.manifest import ReleaseFile, encode_json
from converter.conversion.release.selection import Selection
from converter.errors import CorruptDownload, HubError, unreadable
from converter.hub.recorded_sum import RecordedSum
from converter.hub.shadow import Shadow

#: ioctl of Linux that makes a file share the blocks of another.
_FICLONE = 0x40049409
#: Bytes of one piece of a copy.
_COPY_BYTES = 4 << 20
#: What Linux says about this process.
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Companion:
    """A file of the source that the release contains unchanged."""

    source: Path
    name: str
    """Path inside the release, with slashes."""
    bytes: int
    can_share: bool
    """Whether the output can have a hard link to it, which needs no space."""


def find_companions(selection: Selection, output: Path, *, are_local: bool = True) -> list[Companion]:
    """The files that are copied unchanged.

    Args:
        selection: the files of the source that are copied.
        output: where the release will be, or a folder on the same file system.
        are_local: whether they are on this machine, and not only have their size here.

    Raises:
        MissingInput: one cannot be read.
    """
    device = output.stat().st_dev
    companions = []
    for name, file in selection.files.items():
        try:
            status = file.stat()
        except OSError as error:
            raise unreadable(file, error) from error
        can_share = are_local and status.st_dev == device and _has_default_mode(status)
        companions.append(Companion(file, name, status.st_size, can_share))
    return companions


def plain_index(index: Path) -> bytes:
    """The content of an index of shards whose names lose their variant.

    Raises:
        MissingInput: it cannot be read.
        MalformedCheckpoint: it breaks its format.
    """
    suffix = WEIGHTS_SUFFIX if WEIGHTS_SUFFIX in index.name else PICKLED_SUFFIX
    content = read_json(index)
    weight_map = {tensor: plain_name(name) for tensor, name in parse_weight_map(content, index, suffix).items()}
    return encode_json({**content, "weight_map": weight_map})


def bring_companion(companion: Companion, folder: Path, progress: Progress) -> ReleaseFile:
    """Put a file into the release by sharing its blocks (reflink), by a hard link, or by copying it.

    Raises:
        OSError: all three ways fail.
    """
    target = folder / companion.name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    if not (_share_blocks(companion.source, target) or _link(companion.source, target)):
        # In pieces, since one call that copies everything does not notice Ctrl-C.
        with companion.source.open("rb") as source, target.open("xb") as copy:
            shutil.copyfileobj(source, copy, _COPY_BYTES)
    with target.open("rb") as stream:
        os.fsync(stream.fileno())
    return ReleaseFile(companion.name, target.stat().st_size, file_sha256(target, progress) or "")


def fetch_companion(companion: Companion, shadow: Shadow, folder: Path, progress: Progress) -> ReleaseFile:
    """Download a file into the release; one that was not finished continues where it stopped.

    Args:
        companion: the file.
        shadow: in which it is.
        folder: the release.
        progress: counts bytes.

    Raises:
        HubError: the Hub refuses, cannot be reached, or sends other bytes than it has recorded.
        OSError: it cannot be written.
    """
    target = folder / companion.name
    target.parent.mkdir(parents=True, exist_ok=True)
    # A longer file is not the beginning of this one.
    has_beginning = target.is_file() and not target.is_symlink() and target.stat().st_size <= companion.bytes
    try:
        return _fetch(companion, shadow, target, progress, continues=has_beginning)
    except CorruptDownload as error:
        target.unlink(missing_ok=True)
        if has_beginning:
            # The beginning is to blame: a machine that went down may not have written all of it.
            return _fetch(companion, shadow, target, progress, continues=False)
        # Other files are intact, unlike where weights were converted that are not those of the source.
        raise HubError(error.message, error.hint) from error


def _fetch(companion: Companion, shadow: Shadow, target: Path, progress: Progress, *, continues: bool) -> ReleaseFile:
    path, record = shadow.path_of(companion.source), shadow.record_of(companion.source)
    checksum = RecordedSum(record)
    buffer = memoryview(bytearray(_COPY_BYTES))
    with target.open("r+b" if continues else "w+b") as file:
        while count := file.readinto(buffer):
            checksum.update(buffer[:count])
            progress.skip(count)
        with shadow.repo.stream(path, file.tell()) as stream:
            while stream.position < companion.bytes:
                piece = buffer[: companion.bytes - stream.position]
                stream.read_into(piece)
                checksum.update(piece)
                file.write(piece)
                progress.advance(len(piece))
        file.flush()
        os.fsync(file.fileno())
    checksum.check(shadow.repo.where(path))
    return ReleaseFile(companion.name, companion.bytes, record.sha256 or file_sha256(target) or "")


def _share_blocks(source: Path, target: Path) -> bool:
    """Let the file share the blocks of the source, if the file system can."""
    with source.open("rb") as original, target.open("xb") as copy:
        try:
            fcntl.ioctl(copy.fileno(), _FICLONE, original.fileno())
        except OSError:
            target.unlink()
            return False
    return True


def _link(source: Path, target: Path) -> bool:
    """Make a hard link to the file, if its mode is what a new file would have."""
    if not _has_default_mode(source.stat()):
        return False
    try:
        os.link(source, target)
    except OSError:
        return False
    return True


def _has_default_mode(status: os.stat_result) -> bool:
    """Whether a file has the mode that a new one would get."""
    # Asking for the umask by setting it would change it for other threads, if only for a moment.
    (umask,) = re.findall(r"^Umask:\s*([0-7]+)$", _STATUS.read_text(), flags=re.MULTILINE)
    return stat.S_IMODE(status.st_mode) == 0o666 & ~int(umask, 8)
