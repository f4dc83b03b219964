"""Which files of a source are copied into a release, and which are left out; decided by their names.

What no loader reads is left out without a note. A note names weights that are not used.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from converter.checkpoint.components import ADAPTER_NAMES, PipelineComponent
from converter.checkpoint.ignored import is_ignored
from converter.checkpoint.source import PIPELINE_INDEX, Checkpoint
from converter.checkpoint.weights import holds_weights, plain_name
from converter.conversion.release.code import CODE_SUFFIX, missing_code
from converter.conversion.release.manifest import (
    CARD_NAME,
    CONFIG_NAME,
    MANIFEST_NAME,
    QUANTIZATION_CONFIG_NAME,
    SUMMARY_NAME,
)
from converter.errors import MalformedCheckpoint, first_few, unreadable

#: Names of files with the terms of a model, as repos on the Hub call them.
TERMS = re.compile(r"(?i).*(licen[cs]e|notice|use[-_]policy).*|copying.*")
#: What lensconv writes into the converted component, in place of what another program wrote.
_WRITTEN = (CONFIG_NAME, QUANTIZATION_CONFIG_NAME, SUMMARY_NAME, MANIFEST_NAME)


@dataclass(frozen=True)
class Selection:
    """The files that are copied, and those that are not."""

    files: dict[str, Path] = field(default_factory=dict)
    """Files to copy, by path inside the release."""
    indexes: dict[str, Path] = field(default_factory=dict)
    """Indexes of shards that have other names in the release, by path inside it."""
    unused: list[str] = field(default_factory=list)
    """Paths of weights in the source that are left out."""
    missing_code: list[str] = field(default_factory=list)
    """Paths of code that the source names and does not contain."""

    @property
    def code(self) -> list[str]:
        """Paths of the files with code."""
        return sorted(name for name in self.files if name.endswith(CODE_SUFFIX))

    @property
    def notes(self) -> Iterator[str]:
        """What a user should know, one sentence each."""
        if self.code:
            yield f"code is copied, not run: {first_few(self.code)}; loaders run it with trust_remote_code=True"
        if self.missing_code:
            yield f"the source names code that does not exist: {first_few(self.missing_code)}"
        if self.unused:
            yield f"weights that are not used are left out: {first_few(self.unused)}"


def select_files(checkpoints: Sequence[Checkpoint], others: Sequence[PipelineComponent] = ()) -> Selection:
    """Choose the files of a source to copy.

    Args:
        checkpoints: the components to convert.
        others: the other components of their pipeline, without problems.

    Raises:
        MissingInput: a file cannot be read.
        MalformedCheckpoint: a link leads out of the source, or a component has an impossible name.
    """
    first = checkpoints[0]
    if first.is_single_file or not (first.pipeline is not None or first.config):
        return Selection()
    root = first.pipeline or first.folder
    selection = Selection(missing_code=missing_code(first))
    for checkpoint in checkpoints:
        _refuse_name(checkpoint.component, root)
        _add_converted(selection, checkpoint)
    if first.pipeline is not None:
        selection.files[PIPELINE_INDEX] = root / PIPELINE_INDEX
        for component in others:
            _refuse_name(component.name, root)
            _add_component(selection, component)
        converted = {checkpoint.component for checkpoint in checkpoints}
        _add_root(selection, root, converted | {component.name for component in others})
    for name, file in selection.files.items():
        selection.files[name] = _resolve_inside(file, root)
    return selection


def _add_converted(selection: Selection, checkpoint: Checkpoint) -> None:
    """Add what is beside the weights that are converted."""
    used = [header.file for header in checkpoint.headers]
    for path, file in _files_below(checkpoint.folder):
        if file in used or file == checkpoint.index or path in _WRITTEN:
            continue
        if holds_weights(file.name) or file.name in ADAPTER_NAMES:
            selection.unused.append(checkpoint.prefix + path)
        else:
            selection.files[checkpoint.prefix + path] = file


def _add_component(selection: Selection, component: PipelineComponent) -> None:
    """Add a component. Of the weights of a model, only those that its loader opens count, and they get plain names."""
    for path, file in _files_below(component.folder):
        name = f"{component.name}/{path}"
        if file in component.weights:
            is_renamed_index = component.variant and file.suffix == ".json"
            files = selection.indexes if is_renamed_index else selection.files
            files[f"{component.name}/{plain_name(path)}"] = file
        elif component.is_model and not component.reads(file):
            selection.unused.append(name)
        else:
            selection.files[name] = file


def _refuse_name(component: str, pipeline: Path) -> None:
    """Refuse a component whose folder could not be in a release."""
    if component in (SUMMARY_NAME, MANIFEST_NAME, PIPELINE_INDEX) or (component and _is_left(component)):
        action = "writes" if component.endswith(".json") else "leaves out"
        reason = f"a component has the name of a file that lensconv {action}: {component}"
        raise MalformedCheckpoint(pipeline / PIPELINE_INDEX, reason, "Rename the component.")


def _add_root(selection: Selection, pipeline: Path, components: set[str]) -> None:
    """Add the terms of the model, and code; the rest of a repo is not part of the model."""
    for path, file in _files_beside(pipeline, components):
        if holds_weights(file.name):
            selection.unused.append(path)
        elif path.endswith(CODE_SUFFIX) or ("/" not in path and TERMS.fullmatch(path)):
            selection.files[path] = file


def _refuse_unreadable(error: OSError) -> None:
    raise unreadable(error.filename, error, "Check its permissions.") from error


def _files_below(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the files below a folder that may be copied, by their paths in it."""
    for parent, folders, files in os.walk(folder, onerror=_refuse_unreadable):
        prefix = "" if Path(parent) == folder else Path(parent).relative_to(folder).as_posix() + "/"
        folders[:] = sorted(name for name in folders if not _is_left(prefix + name))
        for name in sorted(files):
            if not _is_left(prefix + name):
                yield prefix + name, Path(parent, name)
        for name in folders:
            if Path(parent, name).is_symlink():
                raise MalformedCheckpoint(Path(parent, name), "is a link to a folder", "Replace it with the folder.")


def _files_beside(pipeline: Path, components: set[str]) -> Iterator[tuple[str, Path]]:
    """Yield the files in a pipeline repo and in its other folders, no deeper than diffusers looks for code."""
    for parent, folders, files in os.walk(pipeline):
        is_root = Path(parent) == pipeline
        folders[:] = sorted(name for name in folders if is_root and name not in components and not _is_left(name))
        prefix = "" if is_root else f"{Path(parent).name}/"
        yield from ((prefix + name, Path(parent, name)) for name in sorted(files) if not _is_left(prefix + name))


def _is_left(path: str) -> bool:
    """Whether a file or folder is left out: no loader reads it, it is a card, or the Hub refuses its name."""
    is_card = path.rpartition("/")[2] == CARD_NAME
    return is_card or is_ignored(path) or "\\" in path or path.encode(errors="ignore").decode() != path


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
