"""The components of a pipeline repo as their loaders see them: which files are opened, and why that would fail.

Headers are read, weights are not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from converter.checkpoint.absent import pickle_error
from converter.checkpoint.file_kinds import KIND_BYTES, TORCH_KINDS, foreign_kind
from converter.checkpoint.files import holds, is_plain_name, list_folder, read_json
from converter.checkpoint.footprint import ComponentFootprint
from converter.checkpoint.header import Header, file_stamp, read_header
from converter.checkpoint.ignored import is_ignored
from converter.checkpoint.index import parse_weight_map
from converter.checkpoint.loaders import LOADER_STEMS, has_weights, opened_weights, possible_loaders
from converter.checkpoint.prefixes import unloadable_names
from converter.checkpoint.source import PIPELINE_INDEX, count_bytes_by_dtype, pipeline_components
from converter.checkpoint.weights import INDEX_SUFFIX, WEIGHTS_SUFFIX, WeightNames, holds_weights, variants_in
from converter.errors import FileError, MalformedCheckpoint, MissingInput, unreadable

#: Smallest file on the Hub that can hold a component's weights; a Git LFS pointer has about 130 bytes.
_LEAST_REMOTE_BYTES = 1024
#: A model of transformers with an adapter has these files, too.
ADAPTER_NAMES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
#: Classes of diffusers that read further folders: NAME_1, NAME_2 and so on.
_SEVERAL_MODELS = ("MultiControlNetModel", "MultiControlNetUnionModel", "MultiAdapter")
#: What the loader of a scheduler opens. Tokenizers and processors have files of many names.
_SCHEDULER_CONFIG = "scheduler_config.json"
_DOWNLOAD = "Download it again."
_RENAME = "Load the component with the program that saved it, and save it without this prefix."
_WHOLE = "Download the whole repo, or give the folder of one component."


@dataclass(frozen=True)
class PipelineComponent:
    """One entry of ``model_index.json``, or a further model of it, and what its loader opens."""

    name: str
    library: str
    """As ``model_index.json`` gives it, like the class."""
    class_name: str
    folder: Path
    is_model: bool
    """Whether it has weights. A pipeline inside the pipeline and an ONNX model are not examined and do not count."""
    weights: tuple[Path, ...] = ()
    """The files that its loader opens, the index of shards last; empty if it is not a model."""
    headers: tuple[Header, ...] = ()
    """Headers of the safetensors files among ``weights``; empty if they were not read."""
    variant: str = ""
    """The variant of the weights, such as ``fp16``; empty for the plain files."""
    quantization: str = ""
    """The method by which its weights are quantized, such as ``sdnq``; empty if its config names none."""
    stamps: tuple[tuple[int, ...], ...] = ()
    """Size in bytes and time of the last change of each of ``weights``, when it was examined."""
    problems: tuple[FileError, ...] = ()
    """Why its loader would fail."""
    notes: tuple[str, ...] = ()
    """What is unusual, although its loader works."""

    @property
    def index(self) -> Path | None:
        """The index of shards among ``weights``."""
        return next((file for file in self.weights if file.suffix == ".json"), None)

    def reads(self, file: Path) -> bool:
        """Whether its loader may read a file below its folder: of files with weights, it opens its own only."""
        return file in self.weights or file.name in ADAPTER_NAMES or not holds_weights(file.name)

    @property
    def changed_files(self) -> Iterator[Path]:
        """Those of ``weights`` that have been changed, replaced or removed since they were examined."""
        return (file for file, stamp in zip(self.weights, self.stamps, strict=True) if file_stamp(file) != stamp)

    @property
    def footprint(self) -> ComponentFootprint:
        """Its size in bytes."""
        by_dtype = count_bytes_by_dtype(
            (entry.dtype, entry.bytes) for header in self.headers for entry in header.tensors.values()
        )
        stamps = zip(self.weights, self.stamps, strict=True)
        size = sum(stamp[0] for file, stamp in stamps if stamp and file != self.index)
        return ComponentFootprint(self.name, self.class_name, sum(by_dtype.values()) or size, by_dtype)


def examine_components(
    pipeline: Path, variant: str | None = None, *, besides: Collection[str] = (), reads_headers: bool = True
) -> tuple[PipelineComponent, ...]:
    """Examine the components of a pipeline repo. Their problems are collected, not raised.

    Args:
        pipeline: the repo.
        variant: the variant of the weights to prefer to the plain files, which are preferred to another variant.
        besides: components to leave out.
        reads_headers: whether to read headers. Of a repo on the Hub, only names and sizes of weight files are known.

    Raises:
        MissingInput: ``model_index.json`` cannot be read.
        MalformedCheckpoint: it breaks its format.
    """
    return tuple(
        _Examination(folder, library, class_name, variant, reads_headers).result()
        for folder, library, class_name in component_folders(pipeline)
        if folder.name not in besides
    )


def require_loadable(pipeline: Path, *, reads_headers: bool = True) -> tuple[PipelineComponent, ...]:
    """Examine the components of a pipeline repo, whose loaders must open safetensors files.

    Args: those of ``examine_components``.

    Raises:
        FileError: a loader would fail.
        UnsupportedCheckpoint: a loader would open a file that may contain a pickle.
    """
    examined = examine_components(pipeline, reads_headers=reads_headers)
    for component in examined:
        for problem in component.problems:
            raise problem
        for file in component.weights:
            if file.suffix not in (WEIGHTS_SUFFIX, ".json"):
                raise pickle_error(file)
    return examined


def component_folders(pipeline: Path) -> Iterator[tuple[Path, str, str]]:
    """Folder, library and class of each component, and of the numbered folders of its further models.

    Raises: what ``pipeline_components`` raises.
    """
    for name, (library, class_name) in pipeline_components(pipeline).items():
        yield pipeline / name, library, class_name
        if class_name in _SEVERAL_MODELS:
            numbered = (pipeline / f"{name}_{number}" for number in count(1))
            for folder in takewhile(lambda path: holds(path.is_dir), numbered):
                yield folder, library, class_name


@dataclass
class _Examination:
    """The examination of one component, which collects what is wrong."""

    folder: Path
    library: str
    class_name: str
    wanted: str | None
    reads_headers: bool
    weight_map: dict[str, str] = field(default_factory=dict)
    """What the index of shards says; empty if there is none."""
    problems: list[FileError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def result(self) -> PipelineComponent:
        name, weights, headers = self.folder.name, None, []
        config: dict[str, Any] = {}
        files: list[Path] = []
        is_model = False
        try:
            names = _file_names(self.folder)
            config = _read_config(self.folder, names)
            is_model = self._is_model(names, config)
            if is_model:
                weights = self._choose(names, config)
                files = self._files(weights, names)
                present = [file for file in files if file.name in names]
                headers = [header for file in present if (header := self._open(file)) is not None]
        except FileError as problem:
            self.problems.append(problem)
        unloadable = unloadable_names([name for header in headers for name in header.tensors])
        if unloadable:
            self.problems.append(MalformedCheckpoint(self.folder, unloadable, _RENAME))
        index = [self.folder / weights.index] if weights and weights.index else []
        if index and not self.problems and headers:
            self._compare(index[0], headers)
        return PipelineComponent(
            name=name,
            library=self.library,
            class_name=self.class_name,
            folder=self.folder,
            is_model=is_model,
            weights=(*files, *index),
            headers=tuple(headers),
            variant=weights.variant if weights else "",
            quantization=_quantization(config),
            stamps=tuple(map(file_stamp, (*files, *index))),
            problems=tuple(self.problems),
            notes=tuple(self.notes),
        )

    def _is_model(self, names: Sequence[str], config: Mapping[str, Any]) -> bool:
        """Whether the component has weights that can be examined."""
        if PIPELINE_INDEX in names or "onnx" in f"{self.library}.{self.class_name}".lower():
            self.notes.append("is copied and not examined")
            return False
        is_model = has_weights(self.class_name, config, names)
        needed = "config.json" if is_model else _SCHEDULER_CONFIG
        if needed not in names and (is_model or self.class_name.endswith("Scheduler")):
            raise MissingInput(self.folder / needed, "no such file, though its loader needs it", _DOWNLOAD)
        return is_model

    def _choose(self, names: Sequence[str], config: Mapping[str, Any]) -> WeightNames:
        """The weights that the loader of the component opens."""
        loaders = possible_loaders(self.library, config)
        explicit = config.get("transformers_weights")
        if isinstance(explicit, str) and loaders == ("transformers",):
            return self._named_in_config(explicit, names)
        variants = variants_in(names)
        for variant in (*([self.wanted] if self.wanted else []), "", *(variants if len(variants) == 1 else [])):
            for loader in loaders:
                if found := opened_weights(loader, names, variant):
                    if variant and variant != self.wanted:
                        self.notes.append(f"has only the variant {variant} of its weights")
                    return found
        if variants:
            reason = f"contains only variants of the weights: {', '.join(variants)}"
            raise MissingInput(self.folder, reason, "Name one with --variant.")
        wanted = " or ".join(LOADER_STEMS[loader] + WEIGHTS_SUFFIX for loader in loaders)
        raise MissingInput(self.folder, f"contains no {wanted}, which its loader opens", _DOWNLOAD)

    def _named_in_config(self, name: str, names: Sequence[str]) -> WeightNames:
        file = self.folder / "config.json"
        if not is_plain_name(name) or not name.endswith((WEIGHTS_SUFFIX, INDEX_SUFFIX)):
            raise MalformedCheckpoint(file, f"transformers_weights names {name}, not a safetensors file in its folder")
        if name not in names:
            raise MissingInput(self.folder / name, "no such file, though config.json names it", _DOWNLOAD)
        index = name if name.endswith(INDEX_SUFFIX) else None
        return WeightNames(name.removesuffix(INDEX_SUFFIX).removesuffix(WEIGHTS_SUFFIX), "", index)

    def _files(self, weights: WeightNames, names: Sequence[str]) -> list[Path]:
        if weights.index is None:
            return [self.folder / weights.file]
        index = self.folder / weights.index
        content = read_json(index)
        self.weight_map = parse_weight_map(content, index, weights.suffix)
        shards = sorted(set(self.weight_map.values()))
        if not isinstance(content.get("metadata"), dict):
            raise MalformedCheckpoint(index, "has no metadata, which loaders need")
        for name in (name for name in shards if name not in names):
            reason = f"no such file, though {weights.index} names it"
            self.problems.append(MissingInput(self.folder / name, reason, _DOWNLOAD))
        return [self.folder / name for name in shards]

    def _open(self, file: Path) -> Header | None:
        """Read the header of a weight file; a pickle has none, and is not opened."""
        if not self.reads_headers:
            size = file.stat().st_size
            if size <= _LEAST_REMOTE_BYTES:
                self.problems.append(MalformedCheckpoint(file, f"has {size} bytes, too few for weights", _DOWNLOAD))
            return None
        try:
            if file.suffix == WEIGHTS_SUFFIX:
                return read_header(file)
            _refuse_what_is_no_pickle(file)
            note = "weights may contain pickles, which were not opened"
            self.notes += [note] if note not in self.notes else []
        except FileError as problem:
            self.problems.append(problem)
        return None

    def _compare(self, index: Path, headers: Sequence[Header]) -> None:
        """Note where an index and its shards disagree; the libraries load what the shards contain."""
        listed = set(self.weight_map.items())
        found = {(name, header.file.name) for header in headers for name in header.tensors}
        if different := sorted({name for name, _ in listed ^ found}):
            more = f" and {len(different) - 1} more" if len(different) > 1 else ""
            self.notes.append(f"{index.name} and its shards disagree about {different[0]}{more}")


def _file_names(folder: Path) -> list[str]:
    if not holds(folder.is_dir):
        raise MissingInput(folder, f"no such folder, though {PIPELINE_INDEX} names it", _WHOLE)
    entries = [entry for entry in list_folder(folder) if not is_ignored(entry.name)]
    if not entries:
        raise MissingInput(folder, f"contains nothing, though {PIPELINE_INDEX} names it", _WHOLE)
    return [entry.name for entry in entries if holds(entry.is_file)]


def _read_config(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    return read_json(folder / "config.json") if "config.json" in names else {}


def _quantization(config: Mapping[str, Any]) -> str:
    settings = config.get("quantization_config")
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    return method if isinstance(method, str) else ""


def _refuse_what_is_no_pickle(file: Path) -> None:
    """Refuse a file that does not begin as PyTorch writes it, or does not end so; nothing of it is unpickled."""
    # Imported here, because few sources have pickles.
    import zipfile

    try:
        with file.open("rb") as stream:
            beginning = stream.read(KIND_BYTES)
        is_cut = beginning.startswith(b"PK\3\4") and not zipfile.is_zipfile(file)
    except OSError as error:
        raise unreadable(file, error) from error
    if is_cut:
        raise MalformedCheckpoint(file, "is an archive that is cut short", _DOWNLOAD)
    kind = foreign_kind(beginning)
    if kind not in TORCH_KINDS:
        reason, hint = (f"is {kind.name}", kind.hint) if kind else ("is not a file of PyTorch", _DOWNLOAD)
        raise MalformedCheckpoint(file, reason, hint)


def footprints(components: Iterable[PipelineComponent]) -> tuple[ComponentFootprint, ...]:
    """Sizes of the models among components, in their order."""
    return tuple(component.footprint for component in components if component.is_model)
