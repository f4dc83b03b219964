"""Checks before a byte is written."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from converter.checkpoint.layout import Layout
from converter.checkpoint.source import Checkpoint
from converter.checkpoint.staging import Staging
from converter.conversion.release.companions import Companion
from converter.errors import DiskError, OutputError

#: Bytes that must stay free on the disk.
SPARE_BYTES = 16_000_000


def refuse_overlap(checkpoints: Sequence[Checkpoint], output: Path, adapters: Sequence[Path] = ()) -> None:
    """Refuse an output inside the source, and one that contains the source or an adapter."""
    # Path.resolve raises RuntimeError for a link to itself.
    target = Path(os.path.realpath(output.parent)) / output.name
    # Links may lead elsewhere, from the repo to a component and from there to a file.
    paths = [header.file for checkpoint in checkpoints for header in checkpoint.headers]
    for checkpoint in checkpoints:
        if not checkpoint.is_single_file:
            paths += [checkpoint.folder, checkpoint.pipeline or checkpoint.folder]
    sources = [Path(os.path.realpath(path)) for path in paths]
    if any(target.is_relative_to(source) or source.is_relative_to(target) for source in sources):
        raise OutputError(f"{output}: is inside the source, or the source is inside it", "Write to another folder.")
    for adapter in adapters:
        if Path(os.path.realpath(adapter)).is_relative_to(target):
            raise OutputError(f"{output}: contains {adapter}, which is read", "Write to another folder.")


def existing_parent(path: Path) -> Path:
    """The nearest folder above a path that exists."""
    return next(parent for parent in path.absolute().parents if parent.is_dir())


def check_space(
    staging: Staging, parent: Path, layouts: Iterable[Layout], companions: Iterable[Companion], others: int = 0
) -> None:
    """Check that the output fits on the disk, counting what an interrupted run has reserved already.

    Args:
        staging: where the output grows.
        parent: a folder on its disk.
        layouts: of the files to write; twice where they are written twice.
        companions: the files to copy.
        others: bytes of other files.

    Raises:
        DiskError: it does not.
    """
    needed = others + sum(file.total_bytes for layout in layouts for file in layout.files)
    needed += sum(companion.bytes for companion in companions if not companion.can_share)
    reserved = sum(file.stat().st_blocks * 512 for file in staging.folder.rglob("*") if file.is_file())
    status = os.statvfs(parent)
    free = status.f_bavail * status.f_frsize + reserved
    if free < needed + SPARE_BYTES:
        reason = f"{parent}: {needed} bytes are needed, but only {max(0, free - SPARE_BYTES)} are free"
        raise DiskError(reason, "Free some space, or write to another disk.")
