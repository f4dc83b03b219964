"""Which files of a source come along into a release, and which are left behind; decided by names.

What no loader reads is left without a word. Weights that are not used, such as those for other libraries, are named.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from converter.checkpoint.components import PipelineComponent
from converter.checkpoint.ignored import is_ignored
from converter.checkpoint.source import PIPELINE_INDEX, Checkpoint, is_plain_name, read_json
from converter.checkpoint.weights import PICKLE_SUFFIXES, WEIGHTS_SUFFIX, plain_name
from converter.conversion.release.manifest import (
    CARD_NAME,
    CONFIG_NAME,
    MANIFEST_NAME,
    QUANTIZATION_CONFIG_NAME,
    SUMMARY_NAME,
)
from converter.errors import MalformedCheckpoint, first_few, unreadable

CODE_SUFFIX = ".py"
#: Suffixes of weights, in the formats of all libraries.
_WEIGHT_SUFFIXES = (
    WEIGHTS_SUFFIX,
    *PICKLE_SUFFIXES,
    *(".msgpack", ".h5", ".onnx", ".onnx_data", ".gguf", ".ot", ".pb", ".tflite"),
)
#: Indexes of shards in any of these formats, and the structure of a model of OpenVINO.
_BESIDE_WEIGHTS = re.compile(r".+\.index(\.[^.]+)?\.json|openvino_.+\.xml")
#: A model of transformers with an adapter has these files, too.
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
#: Names of files with the terms of a model, as repos on the Hub call them.
TERMS = re.compile(r"(?i).*licen[cs]e.*|notice.*|use_policy.*|copying.*")
#: Classes of diffusers that read further folders: NAME_1, NAME_2 and so on.
_SEVERAL_MODELS = ("MultiControlNetModel", "MultiControlNetUnionModel", "MultiAdapter")
#: What lensconv writes into the converted component, in place of what another program wrote.
_WRITTEN = (CONFIG_NAME, QUANTIZATION_CONFIG_NAME, SUMMARY_NAME, MANIFEST_NAME)


@dataclass(frozen=True)
class Selection:
    """The files that come along, and those that do not."""

    files: dict[str, Path] = field(default_factory=dict)
    """Files to copy, by path inside the release."""
    indexes: dict[str, Path] = field(default_factory=dict)
    """Indexes of shards that have other names in the release, by path inside it."""
    unused: list[str] = field(default_factory=list)
    """Paths of weights in the source that are left behind."""
    missing_code: str = ""
    """The file with the code of the pipeline, if it does not exist."""

    @property
    def code(self) -> list[str]:
        """Paths of the files with code."""
        return sorted(name for name in self.files if name.endswith(CODE_SUFFIX))

    @property
    def notes(self) -> Iterator[str]:
        """What a user should know, one sentence each."""
        if self.code:
            yield f"code is copied, and was not run: {first_few(self.code)}; loaders run it with trust_remote_code=True"
        if self.missing_code:
            yield f"{PIPELINE_INDEX} names the code {self.missing_code}, which does not exist"
        if self.unused:
            yield f"weights that are not used stay behind: {first_few(self.unused)}"


def select_files(checkpoint: Checkpoint, components: Sequence[PipelineComponent] = ()) -> Selection:
    """Choose the files of a source that come along.

    Args:
        checkpoint: the component to convert.
        components: the others of its pipeline, without problems.

    Raises:
        MissingInput: a file cannot be read.
        MalformedCheckpoint: a link leads out of the source, or a component has an impossible name.
    """
    if checkpoint.is_single_file or not (checkpoint.pipeline is not None or checkpoint.config):
        return Selection()
    root = checkpoint.pipeline or checkpoint.folder
    missing = _missing_code(root) if checkpoint.pipeline is not None else ""
    selection = Selection(missing_code=missing)
    _add_converted(selection, checkpoint)
    if checkpoint.pipeline is not None:
        selection.files[PIPELINE_INDEX] = root / PIPELINE_INDEX
        folders = {checkpoint.component}
        for component in components:
            _add_component(selection, component)
            folders |= {component.name, *_add_further(selection, component)}
        _add_root(selection, root, folders)
    for name, file in selection.files.items():
        selection.files[name] = _resolve_inside(file, root)
    return selection


def _add_converted(selection: Selection, checkpoint: Checkpoint) -> None:
    """Add what is beside the weights that are converted."""
    used = [header.file for header in checkpoint.headers]
    for path, file in _files_below(checkpoint.folder):
        if file in used or file == checkpoint.index or path in _WRITTEN:
            continue
        if _holds_weights(file.name) or file.name in _ADAPTER:
            selection.unused.append(checkpoint.prefix + path)
        else:
            selection.files[checkpoint.prefix + path] = file


def _add_component(selection: Selection, component: PipelineComponent) -> None:
    """Add a component: of a model the weights that its loader opens, by their plain names; else everything."""
    if component.name in (SUMMARY_NAME, MANIFEST_NAME, PIPELINE_INDEX):
        reason = f"names a component like a file that lensconv writes: {component.name}"
        raise MalformedCheckpoint(component.folder.parent / PIPELINE_INDEX, reason, "Rename the component.")
    for path, file in _files_below(component.folder):
        name = f"{component.name}/{path}"
        if file in component.weights:
            is_renamed_index = component.variant and file.suffix == ".json"
            kind = selection.indexes if is_renamed_index else selection.files
            kind[f"{component.name}/{plain_name(path)}"] = file
        elif component.is_model and _holds_weights(file.name) and file.name not in _ADAPTER:
            selection.unused.append(name)
        else:
            selection.files[name] = file


def _add_further(selection: Selection, component: PipelineComponent) -> Iterator[str]:
    """Add the folders of a component that consists of several models; yields their names."""
    if component.class_name in _SEVERAL_MODELS:
        for number in count(1):
            folder = component.folder.with_name(f"{component.name}_{number}")
            if not folder.is_dir():
                return
            selection.files.update((f"{folder.name}/{path}", file) for path, file in _files_below(folder))
            yield folder.name


def _add_root(selection: Selection, pipeline: Path, components: set[str]) -> None:
    """Add the terms of the model, and code, which may be in packages; the rest of a repo is not the model's."""
    for path, file in _files_below(pipeline, besides=components, onerror=None):
        is_term = "/" not in path and TERMS.fullmatch(path)
        if _holds_weights(file.name):
            selection.unused.append(path)
        elif is_term or path.endswith(CODE_SUFFIX):
            selection.files[path] = file


def _missing_code(pipeline: Path) -> str:
    """The file with the pipeline's class, if ``model_index.json`` names one that does not exist."""
    match read_json(pipeline / PIPELINE_INDEX).get("_class_name"):
        case [str(module), str()] if is_plain_name(module) and not (pipeline / f"{module}{CODE_SUFFIX}").is_file():
            return f"{module}{CODE_SUFFIX}"
    return ""


def _holds_weights(name: str) -> bool:
    """Whether a file in the folder of a model has weights, in the format of any library, or belongs to such a file."""
    return name.endswith(_WEIGHT_SUFFIXES) or _BESIDE_WEIGHTS.fullmatch(name) is not None


def _refuse_unreadable(error: OSError) -> None:
    raise unreadable(error.filename, error, "Check its permissions.") from error


def _files_below(
    folder: Path,
    besides: set[str] | None = None,
    onerror: Callable[[OSError], None] | None = _refuse_unreadable,
) -> Iterator[tuple[str, Path]]:
    """Yield the files below a folder by their paths in it, without those that no loader reads and without its card.

    Args:
        folder: where to look.
        besides: names of folders in it to leave out.
        onerror: called for folders that cannot be read; None leaves them out, and links to folders as well.
    """
    for parent, folders, files in os.walk(folder, onerror=onerror):
        prefix = "" if Path(parent) == folder else Path(parent).relative_to(folder).as_posix() + "/"
        skipped = besides if besides and not prefix else set()
        folders[:] = sorted(name for name in folders if name not in skipped and not _is_left(prefix + name))
        for name in sorted(files):
            if name != CARD_NAME and not _is_left(prefix + name):
                yield prefix + name, Path(parent, name)
        for name in folders:
            if onerror is not None and Path(parent, name).is_symlink():
                raise MalformedCheckpoint(Path(parent, name), "is a link to a folder", "Replace it with the folder.")


def _is_left(path: str) -> bool:
    """Whether a file or folder does not come along: no loader reads it, or the Hub would refuse its name."""
    return is_ignored(path) or path.encode(errors="ignore").decode() != path


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
