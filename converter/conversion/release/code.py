"""Code that a source names and does not contain, so that loaders look for it in vain."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

from converter.checkpoint.files import holds, is_plain_name, read_json
from converter.checkpoint.source import PIPELINE_INDEX, Checkpoint, pipeline_components
from converter.conversion.release.manifest import CONFIG_NAME

CODE_SUFFIX = ".py"


def missing_code(checkpoint: Checkpoint) -> list[str]:
    """Paths of files with code that the source or its pipeline names, and that do not exist.

    Raises:
        MissingInput: a config cannot be read.
        MalformedCheckpoint: it is not a JSON object.
    """
    root = checkpoint.pipeline or checkpoint.folder
    named = _of_pipeline(root) if checkpoint.pipeline else _of_component(root, "")
    return [name for name in dict.fromkeys(named) if not holds((root / name).is_file)]


def _of_pipeline(pipeline: Path) -> Iterator[str]:
    match read_json(pipeline / PIPELINE_INDEX).get("_class_name"):
        case [str(module), str()] if is_plain_name(module):
            yield module + CODE_SUFFIX
    for name, (library, _) in pipeline_components(pipeline).items():
        if is_plain_name(library) and not _is_installed(library):
            yield f"{name}/{library}{CODE_SUFFIX}"
        yield from _of_component(pipeline / name, f"{name}/")


def _of_component(folder: Path, prefix: str) -> Iterator[str]:
    file = folder / CONFIG_NAME
    auto_map = read_json(file).get("auto_map") if file.is_file() else None
    for reference in auto_map.values() if isinstance(auto_map, dict) else ():
        module = str(reference).rpartition(".")[0]
        # REPO--MODULE.CLASS is in another repo.
        if is_plain_name(module) and "--" not in module:
            yield prefix + module + CODE_SUFFIX


def _is_installed(library: str) -> bool:
    """Whether a component's library is a package, or a part of diffusers' pipelines; nothing is imported."""
    if PathFinder.find_spec(library.partition(".")[0]) is not None:
        return True
    diffusers = PathFinder.find_spec("diffusers")
    folders = diffusers.submodule_search_locations if diffusers else None
    return any(holds(Path(folder, "pipelines", library).is_dir) for folder in folders or ())
