"""Files of the source that a release contains unchanged: other components of the pipeline, tokenizers, settings."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from converter.checkpoint.checksum import file_sha256
from converter.checkpoint.components import PipelineComponent
from converter.checkpoint.source import PIPELINE_INDEX, Checkpoint, list_folder, read_json
from converter.checkpoint.weights import is_weight_name, plain_name, variant_of
from converter.console import Progress
from converter.conversion.release.manifest import (
    CONFIG_NAME,
    MANIFEST_NAME,
    QUANTIZATION_CONFIG_NAME,
    SUMMARY_NAME,
    ReleaseFile,
    encode_json,
)
from converter.errors import MalformedCheckpoint, unreadable

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


def find_companions(checkpoint: Checkpoint, others: Sequence[PipelineComponent], output: Path) -> list[Companion]:
    """The files that are copied unchanged: of the converted component, and of the pipeline repo around it.

    Weights of a variant get plain names, by which loaders find them without being told. Of a component in a variant,
    all other weights are left behind; the index of a variant is not copied but written, see ``plain_indexes``.

    Args:
        checkpoint: the source.
        others: the components of the pipeline that stay as they are.
        output: where the release will be, or a folder on the same file system.

    Raises:
        MissingInput: a file cannot be read.
        MalformedCheckpoint: a link leads out of the pipeline repo.
    """
    pipeline = checkpoint.pipeline
    found = [(file, checkpoint.prefix + file.name) for file in _own_files(checkpoint)]
    if pipeline is not None:
        found.append((pipeline / PIPELINE_INDEX, PIPELINE_INDEX))
        for component in others:
            if component.name in (SUMMARY_NAME, MANIFEST_NAME, PIPELINE_INDEX):
                reason = f"names a component like a file that lensconv writes: {component.name}"
                raise MalformedCheckpoint(pipeline / PIPELINE_INDEX, reason, "Rename the component.")
            found += _component_files(component)
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
        and not is_weight_name(file.name)
        and file.name not in written
        and file.is_file()
    ]


def _component_files(component: PipelineComponent) -> Iterator[tuple[Path, str]]:
    """The files of a component that are copied, and their paths in the release."""
    for file in _files_below(component.folder):
        path = file.relative_to(component.folder.parent).as_posix()
        if file.parent != component.folder or not is_weight_name(file.name):
            yield file, path
        elif file in component.weights:
            if file != component.index or not component.variant:
                yield file, f"{component.name}/{plain_name(file.name)}"
        elif not component.variant and not variant_of(file.name):
            yield file, path


def plain_indexes(others: Iterable[PipelineComponent]) -> Iterator[tuple[str, bytes]]:
    """Path in the release and content of each index of the shards of a variant, with the plain names of the shards."""
    for component in others:
        if component.variant and component.index:
            content = read_json(component.index)
            content["weight_map"] = {name: plain_name(file) for name, file in content["weight_map"].items()}
            yield f"{component.name}/{plain_name(component.index.name)}", encode_json(content)


def _files_below(folder: Path) -> Iterator[Path]:
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
