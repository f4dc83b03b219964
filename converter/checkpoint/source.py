"""A checkpoint on disk: which files it has, what their headers say, and whether they agree.

A path may name one ``.safetensors`` file, a component folder (``config.json`` and weights), or a pipeline repo (a
folder with ``model_index.json``), of which the denoiser is opened. What a file says is compared with the other files
before it is used, and no name in a file may lead out of the folder.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from converter.checkpoint.absent import no_weights, pickle_error
from converter.checkpoint.files import is_plain_name, list_folder, read_json
from converter.checkpoint.header import Header, TensorEntry, read_header
from converter.checkpoint.ignored import is_ignored
from converter.checkpoint.index import compare_index, read_weight_map
from converter.checkpoint.prefixes import shared_prefix
from converter.checkpoint.weights import (
    PICKLE_SUFFIXES,
    WEIGHT_STEMS,
    WEIGHTS_SUFFIX,
    WeightNames,
    find_weights,
    is_one_of_shards,
)
from converter.errors import (
    MalformedCheckpoint,
    MissingInput,
    UnsupportedCheckpoint,
    UsageError,
)

#: A folder with this file is a pipeline repo; the file names the classes of its components.
PIPELINE_INDEX = "model_index.json"
#: Components that denoise, in the order in which they are looked for in a pipeline repo.
DENOISERS = ("transformer", "unet")
_GIVE_FOLDER = "Give the folder that contains it."


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """One tensor and the file that contains it."""

    entry: TensorEntry
    file: Path
    offset: int
    """First byte, counted from the start of the file."""


@dataclass(frozen=True)
class Checkpoint:
    """The weights of one component, seen through their headers."""

    folder: Path
    headers: tuple[Header, ...]
    """One for each weight file, in the order of their names."""
    tensors: dict[str, SourceTensor]
    config: dict[str, Any]
    """Content of ``config.json``; empty when there is none."""
    stem: str
    """Name of the weight file without its suffix and its variant, or of all shards without their numbers."""
    variant: str = ""
    """Variant of the weight files, such as ``fp16``; empty for the plain files."""
    component: str = ""
    """Name of the component's folder inside the pipeline repo; empty outside of one."""
    pipeline: Path | None = None
    """The pipeline repo; None outside of one."""
    index: Path | None = None
    """The index of the shards; None when there is only one weight file."""
    problems: tuple[MalformedCheckpoint, ...] = ()
    """Where the files disagree with each other."""
    stray_files: tuple[Path, ...] = ()
    """Weight files in the folder that do not belong to the checkpoint."""
    is_single_file: bool = False
    """Whether a file was given, so that of the other files only its config counts."""
    removed_prefix: str = ""
    """The prefix that was removed from the names of all tensors, if it is a source; the headers still have it."""
    open_other: Callable[[], Any] | None = None
    """Opens a ``TensorReader`` for files that are not on this machine; None if they are."""
    loaded_class: str = ""
    """The class of transformers as which the pipeline loads it, whatever its config says; empty if that decides."""

    @property
    def class_name(self) -> str:
        """Class of the model, as the pipeline or ``config.json`` names it; empty when neither does."""
        if self.loaded_class:
            return self.loaded_class
        name = self.config.get("_class_name")
        if name is None:
            architectures = self.config.get("architectures")
            name = architectures[0] if isinstance(architectures, list) and architectures else None
        return name if isinstance(name, str) else ""

    @property
    def prefix(self) -> str:
        """The folder of the component inside the pipeline repo, with a slash; empty outside of one."""
        return f"{self.component}/" if self.component else ""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by name of the tensor."""
        return {name: tensor.entry.shape for name, tensor in self.tensors.items()}

    @property
    def total_bytes(self) -> int:
        """Footprint: bytes of tensor storage."""
        return sum(self.bytes_by_dtype.values())

    @property
    def bytes_by_dtype(self) -> dict[str, int]:
        """Footprint by dtype, the largest first."""
        return count_bytes_by_dtype((tensor.entry.dtype, tensor.entry.bytes) for tensor in self.tensors.values())


def count_bytes_by_dtype(sizes: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Add up pairs of dtype and bytes; the largest sum comes first."""
    counter: Counter[str] = Counter()
    for dtype, size in sizes:
        counter[dtype] += size
    return dict(counter.most_common())


def open_checkpoint(path: Path, *, component: str | None = None, variant: str | None = None) -> Checkpoint:
    """Open a checkpoint to convert it: every disagreement between its files is an error.

    A prefix of all names that no class has, such as that of ``torch.compile``, is removed.

    Args:
        path: a ``.safetensors`` file, a component folder or a pipeline repo.
        component: which folder of a pipeline repo; its denoiser by default.
        variant: the variant of the weights to prefer to the plain files.

    Raises:
        MissingInput: a file is missing or cannot be read.
        MalformedCheckpoint: a file breaks its format, or two of them disagree.
        UnsupportedCheckpoint: the checkpoint contains no safetensors weights.
        UsageError: the component does not exist.
    """
    checkpoint = examine_checkpoint(path, component=component, variant=variant)
    if checkpoint.problems:
        raise checkpoint.problems[0]
    if checkpoint.is_single_file and is_one_of_shards(path.name):
        raise UnsupportedCheckpoint(f"{path}: is one of several shards", _GIVE_FOLDER)
    return _without_prefix(checkpoint)


def _without_prefix(checkpoint: Checkpoint) -> Checkpoint:
    prefix = shared_prefix(checkpoint.tensors, checkpoint.folder)
    if not prefix:
        return checkpoint
    named = {name.removeprefix(prefix): tensor for name, tensor in checkpoint.tensors.items()}
    tensors = {name: replace(tensor, entry=replace(tensor.entry, name=name)) for name, tensor in named.items()}
    return replace(checkpoint, tensors=tensors, removed_prefix=prefix)


def examine_checkpoint(path: Path, *, component: str | None = None, variant: str | None = None) -> Checkpoint:
    """Open a checkpoint to check it: disagreements between its files are collected in ``problems``.

    Args: those of ``open_checkpoint``.

    Raises: what ``open_checkpoint`` raises, except for those disagreements.
    """
    if not (path.is_file() or path.is_dir()):
        raise MissingInput(path, "no such file or folder", "Check the path.")
    checkpoint = _examine(path, component, variant)
    if not checkpoint.tensors:
        raise MalformedCheckpoint(checkpoint.headers[0].file, "contains no tensors")
    return checkpoint


def _examine(path: Path, component: str | None, variant: str | None) -> Checkpoint:
    if path.is_dir() and (path / PIPELINE_INDEX).is_file():
        name = _choose_component(path, component)
        loaded_class = _loaded_class(*pipeline_components(path)[name])
        return replace(_examine_folder(path / name, variant, component=name, pipeline=path), loaded_class=loaded_class)
    if component is not None:
        what = "is a file" if path.is_file() else f"has no {PIPELINE_INDEX}"
        raise UsageError(f"{path} {what}; only a pipeline repo has components")
    return _examine_file(path) if path.is_file() else _examine_folder(path, variant)


def _loaded_class(library: str, class_name: str) -> str:
    """The class that decides instead of the config's: pipelines load text encoders without the head that they had.

    Automatic classes of transformers do as the config says, and other libraries have a class for each config.
    """
    return class_name if library == "transformers" and not class_name.startswith("Auto") else ""


def _choose_component(pipeline: Path, component: str | None) -> str:
    """Return the requested component, by default the denoiser."""
    components = pipeline_components(pipeline)
    listed = ", ".join(components)
    if component is None:
        component = next((name for name in DENOISERS if name in components), None)
        if component is None:
            reason = f"{pipeline / PIPELINE_INDEX} names neither {' nor '.join(DENOISERS)}"
            raise UnsupportedCheckpoint(reason, f"Name one with --component: {listed or 'it names none'}.")
    elif component not in components:
        raise UsageError(f"{component} is not a component of {pipeline}: {listed}")
    if not (pipeline / component).is_dir():
        raise MissingInput(pipeline / component, f"no such folder, though {PIPELINE_INDEX} names it")
    return component


def pipeline_components(pipeline: Path) -> dict[str, tuple[str, str]]:
    """Library and class of the components that ``model_index.json`` declares, by name in its order.

    Components that the pipeline does without are left out, and so are its settings.

    Raises:
        MissingInput: the file cannot be read.
        MalformedCheckpoint: it is not a JSON object, or a name leads out of the folder.
    """
    file = pipeline / PIPELINE_INDEX
    components = {}
    for name, value in read_json(file).items():
        match value:
            case [str(library), str(class_name)] if not name.startswith("_"):
                if not is_plain_name(name):
                    raise MalformedCheckpoint(file, f"component {name} is not the name of a folder in the repo")
                components[name] = library, class_name
    return components


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    # A broken link is a lost file, not a checkpoint without a config.
    if not os.path.lexists(file):
        return {}
    config = read_json(file)
    if not isinstance(config.get("_class_name", ""), str):
        raise MalformedCheckpoint(file, "_class_name is not a string")
    return config


def _examine_file(file: Path) -> Checkpoint:
    if file.suffix in PICKLE_SUFFIXES:
        raise pickle_error(file)
    if file.suffix == ".json":
        raise UnsupportedCheckpoint(f"{file}: contains no weights", _GIVE_FOLDER)
    header = read_header(file)
    return Checkpoint(
        folder=file.parent,
        headers=(header,),
        tensors=_locate((header,))[0],
        config=_read_config(file.parent),
        stem=file.name.removesuffix(WEIGHTS_SUFFIX),
        is_single_file=True,
    )


def weight_files(folder: Path, variant: str | None = None) -> list[str]:
    """Names of a component's weight files, of which none need exist if an index lists them.

    Raises:
        MissingInput: there are none, or a file cannot be read.
        MalformedCheckpoint: the config or the index breaks its format.
        UnsupportedCheckpoint: there are only files that may contain pickles.
    """
    return _choose_weights(folder, _read_config(folder), variant)[1]


def _choose_weights(
    folder: Path, config: Mapping[str, Any], variant: str | None
) -> tuple[WeightNames, list[str], dict[str, str]]:
    """Choose the weights of a folder: their names, their files, and what the index maps."""
    names = [file.name for file in list_folder(folder) if not is_ignored(file.name)]
    # Each library looks for its own stem only. Without a config, the model is most likely one of diffusers.
    stems = WEIGHT_STEMS[::-1] if "architectures" in config else WEIGHT_STEMS
    found = find_weights(names, variant, stems)
    if found is None:
        raise no_weights(folder, names)
    weight_map = read_weight_map(folder / found.index) if found.index else {}
    return found, sorted(set(weight_map.values())) or [found.file], weight_map


def _examine_folder(
    folder: Path, variant: str | None, *, component: str = "", pipeline: Path | None = None
) -> Checkpoint:
    config = _read_config(folder)
    found, names, weight_map = _choose_weights(folder, config, variant)
    present = [file.name for file in list_folder(folder) if file.name.endswith(WEIGHTS_SUFFIX)]
    problems: list[MalformedCheckpoint] = []
    if found.index and found.file in present and found.file not in names:
        reason = f"contains both {found.file} and {found.index}; loaders disagree on which one counts"
        problems.append(MalformedCheckpoint(folder, reason, "Delete the one that is out of date."))
    for name in names:
        if name not in present:
            raise MissingInput(folder / name, f"no such file, though {found.index} names it", "Download it again.")
    headers = tuple(read_header(folder / name) for name in names)
    tensors, duplicates = _locate(headers)
    problems += duplicates
    index = folder / found.index if found.index else None
    if index:
        problems += compare_index(index, weight_map, headers)
    return Checkpoint(
        folder=folder,
        headers=headers,
        tensors=tensors,
        config=config,
        stem=found.stem,
        variant=found.variant,
        component=component,
        pipeline=pipeline,
        index=index,
        problems=tuple(problems),
        stray_files=tuple(folder / name for name in present if name not in names),
    )


def _locate(headers: tuple[Header, ...]) -> tuple[dict[str, SourceTensor], list[MalformedCheckpoint]]:
    tensors: dict[str, SourceTensor] = {}
    duplicates = []
    for header in headers:
        for name, entry in header.tensors.items():
            found = tensors.setdefault(name, SourceTensor(entry, header.file, header.data_start + entry.start))
            if found.entry is not entry:
                duplicates.append(MalformedCheckpoint(header.file, f"is in {found.file.name} too", tensor=name))
    return tensors, duplicates
