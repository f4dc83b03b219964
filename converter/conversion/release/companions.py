"""Files of the source that a release contains unchanged: other components of the pipeline, tokenizers, settings."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from converter.checkpoint.checksum import file_sha256
from converter.checkpoint.source import PIPELINE_INDEX, Checkpoint, list_folder, pipeline_components
from converter.checkpoint.weights import INDEX_SUFFIX
from converter.console import Progress
from converter.conversion.release.manifest import (
    CONFIG_NAME,
    MANIFEST_NAME,
    QUANTIZATION_CONFIG_NAME,
    SUMMARY_NAME,
    ReleaseFile,
)
from converter.errors import MalformedCheckpoint, MissingInput, unreadable

#: Small text files that a component may have next to its weights: tokenizers, generation settings.
COMPANION_SUFFIXES = (".json", ".txt", ".model", ".jinja")
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


def find_companions(checkpoint: Checkpoint, output: Path) -> list[Companion]:
    """The files that are copied unchanged: of the converted component, and of the pipeline repo around it.

    Args:
        checkpoint: the source.
        output: where the release will be, or a folder on the same file system.

    Raises:
        MissingInput: a component that the pipeline names is missing.
        MalformedCheckpoint: a link leads out of the pipeline repo.
    """
    pipeline = checkpoint.pipeline
    found = [(file, checkpoint.prefix + file.name) for file in _own_files(checkpoint)]
    if pipeline is not None:
        found.append((pipeline / PIPELINE_INDEX, PIPELINE_INDEX))
        for component in pipeline_components(pipeline):
            if component in (SUMMARY_NAME, MANIFEST_NAME, PIPELINE_INDEX):
                reason = f"names a component like a file that lensconv writes: {component}"
                raise MalformedCheckpoint(pipeline / PIPELINE_INDEX, reason, "Rename the component.")
            if component != checkpoint.component:
                files = _component_files(pipeline / component)
                found += [(file, file.relative_to(pipeline).as_posix()) for file in files]
    device = output.stat().st_dev
    companions = []
    for file, name in found:
        real = _resolve_inside(file, pipeline or checkpoint.folder)
        status = real.stat()
        can_share = status.st_dev == device and _has_default_mode(status)
        companions.append(Companion(real, name, status.st_size, can_share))
    return companions


def _own_files(checkpoint: Checkpoint) -> list[Path]:
    """Files of the converted component that stay as they are."""
    if checkpoint.is_single_file or not (checkpoint.pipeline is not None or checkpoint.config):
        return []
    written = {CONFIG_NAME, QUANTIZATION_CONFIG_NAME, SUMMARY_NAME, MANIFEST_NAME}
    return [
        file
        for file in list_folder(checkpoint.folder)
        if file.name.endswith(COMPANION_SUFFIXES)
        and not file.name.endswith(INDEX_SUFFIX)
        and file.name not in written
        and file.is_file()
    ]


def _component_files(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        raise MissingInput(
            folder,
            f"no such folder, though {PIPELINE_INDEX} names it",
            "Download the whole repo, or give the folder of the transformer alone.",
        )
    for parent, folders, files in os.walk(folder, onerror=_refuse_unreadable):
        folders.sort()
        yield from (Path(parent, name) for name in sorted(files))
        for name in folders:
            if Path(parent, name).is_symlink():
                raise MalformedCheckpoint(Path(parent, name), "is a link to a folder", "Replace it with the folder.")


def _refuse_unreadable(error: OSError) -> None:
    raise unreadable(error.filename, error, "Check its permissions.") from error


def _resolve_inside(file: Path, root: Path) -> Path:
    """Follow links, within the repo and within the blobs of a Hub cache that contains it.

    A repo from elsewhere could otherwise link to a private file, which would end up in the release.
    """
    real, root = Path(os.path.realpath(file)), Path(os.path.realpath(root))
    allowed = [root]
    # The Hub's cache keeps NAME/snapshots/REVISION/FILE as links to NAME/blobs/HASH.
    for parent in root.parents:
        if parent.name == "snapshots":
            allowed.append(parent.parent / "blobs")
    if not any(real.is_relative_to(folder) for folder in allowed):
        reason = f"is a link to {real}, outside of {root}"
        raise MalformedCheckpoint(file, reason, "Replace the link with the file itself.")
    try:
        regular = stat.S_ISREG(real.stat().st_mode)
    except OSError as error:
        raise unreadable(file, error, "Download it again.") from error
    if not regular:
        raise MalformedCheckpoint(file, "is not a regular file", "Remove it.")
    return real


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
