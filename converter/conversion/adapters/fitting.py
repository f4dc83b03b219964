"""The adapters of a conversion, matched to the tensors of its components."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from converter.checkpoint.files import read_json
from converter.checkpoint.source import PIPELINE_INDEX, Checkpoint
from converter.conversion.adapters.additions import Addition
from converter.conversion.adapters.file import AdapterFile
from converter.conversion.adapters.loaders import LENS_COMPONENT, LENS_PIPELINE, ON_REQUEST
from converter.conversion.adapters.modules import ModuleAdapter, ModuleShape, adaptable_modules
from converter.conversion.adapters.resolving import Component, ResolvedAdapter, resolve_adapter
from converter.conversion.adapters.spooling import spool_factors
from converter.errors import MissingInput, UnsupportedCheckpoint, first_few, printable
from converter.models.empty import EmptyModel, build_empty_model
from converter.models.lens.layout import CLASS_NAME as LENS


@dataclass(frozen=True)
class FittedAdapters:
    """Adapters that fit the components of a conversion."""

    adapters: tuple[ResolvedAdapter, ...]
    """In the order in which they are added."""
    _targets: Mapping[str, _Target]
    """By component; its name is empty outside of a pipeline."""

    def additions(self, component: str) -> dict[str, Addition]:
        """What is added to the tensors of a component, by their names in the source."""
        return {source: addition for _, source, addition in self.parameters(component)}

    def parameters(self, component: str) -> Iterator[tuple[str, str, Addition]]:
        """Each parameter of a component to which something is added: its name in the model and in the source."""
        target = self._targets[component]
        by_module: dict[str, list[ModuleAdapter]] = {}
        for adapter in self.adapters:
            for path, module in adapter.modules.get(target.name, {}).items():
                by_module.setdefault(path, []).append(module)
        for path, modules in by_module.items():
            shape, weight, bias = target.shapes[path], f"{path}.weight", f"{path}.bias"
            yield weight, target.sources[weight], Addition(shape, tuple(modules))
            if any(module.bias for module in modules):
                yield bias, target.sources[bias], Addition(shape, tuple(modules), is_bias=True)

    def describe(self, component: str) -> list[dict[str, Any]]:
        """The objects in the manifest of the adapters that change a component, in their order."""
        name = self._targets[component].name
        return [adapter.describe().to_dict() for adapter in self.adapters if name in adapter.modules]

    @property
    def held_bytes(self) -> int:
        """Bytes in memory, and then in the files of ``spooled``."""
        return sum(adapter.held_bytes for adapter in self.adapters)

    def spooled(self, folder: Path) -> FittedAdapters:
        """The same adapters, of which no tensor is held in memory.

        Args:
            folder: where the tensors are written; it is made if it is needed, and must stay to the end.

        Raises:
            OSError: the files cannot be written.
        """
        if not self.held_bytes:
            return self
        folder.mkdir(parents=True, exist_ok=True)
        moved = [spool_factors(adapter, folder / f"adapter-{number}") for number, adapter in enumerate(self.adapters)]
        return replace(self, adapters=tuple(moved))

    @property
    def notes(self) -> Iterator[str]:
        """What a user should know of the adapters."""
        for sha256, times in Counter(adapter.file.sha256 for adapter in self.adapters).items():
            if times > 1:
                files = [adapter.file.file.name for adapter in self.adapters if adapter.file.sha256 == sha256]
                yield f"{first_few([*dict.fromkeys(files)])}: the same adapter {times} times; it is added each time"
        for adapter in self.adapters:
            where = printable(adapter.file.file.name)
            for component, names in adapter.others.items():
                yield f"{where}: {_count(names)} for {component}, to which nothing is added: {first_few(names)}"
            if adapter.left_out:
                few = first_few(adapter.left_out)
                yield f"{where}: {_count(adapter.left_out)} without effect, as diffusers leaves out such: {few}"
        if ON_REQUEST in self._targets:
            yield f"adapters change nothing in {ON_REQUEST}: diffusers loads them into it only on request"


def _count(names: Sequence[str]) -> str:
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''}"


@dataclass(frozen=True)
class _Target:
    """A component that is converted."""

    name: str
    """Its name in the pipeline."""
    sources: Mapping[str, str]
    """Names of the tensors in the checkpoint, by their names in the model."""
    shapes: Mapping[str, ModuleShape]
    """By path of the module."""


def fit_adapters(files: Sequence[AdapterFile], checkpoints: Sequence[Checkpoint]) -> FittedAdapters:
    """Find out what adapters add to the components that are converted, and refuse those that do not fit.

    Args:
        files: in the order in which they are added.
        checkpoints: the components.

    Raises: what ``build_empty_model`` and ``resolve_adapter`` raise.
    """
    models = {checkpoint.component: build_empty_model(checkpoint) for checkpoint in checkpoints}
    pipeline = checkpoints[0].pipeline
    pipeline_class = _pipeline_class(files[0], pipeline, models)
    unet_config = None
    if pipeline is not None and (pipeline / "unet" / "config.json").is_file():
        unet_config = read_json(pipeline / "unet" / "config.json")
    components, targets = {}, {}
    for component, empty in models.items():
        modules = adaptable_modules(empty.model)
        name = component or LENS_COMPONENT
        components[name] = Component(modules, is_transformers=empty.is_transformers)
        shapes = {path: shape for path, shape in modules.items() if isinstance(shape, ModuleShape)}
        targets[component] = _Target(name, empty.sources, shapes)
    adapters = tuple(resolve_adapter(file, pipeline_class, components, unet_config=unet_config) for file in files)
    for target in targets.values():
        _refuse_shared(adapters, target)
    return FittedAdapters(adapters, targets)


def _pipeline_class(file: AdapterFile, pipeline: Path | None, models: Mapping[str, EmptyModel]) -> str:
    """The class that says how adapters are loaded."""
    if pipeline is not None:
        name = read_json(pipeline / PIPELINE_INDEX).get("_class_name")
        if not isinstance(name, str):
            raise MissingInput(pipeline / PIPELINE_INDEX, "names no class of a pipeline, which --lora needs")
        return name
    (empty,) = models.values()
    if type(empty.model).__name__ != LENS:
        raise UnsupportedCheckpoint(
            f"{file.file}: how its names are meant depends on the pipeline, of which SOURCE is only a part",
            "Give the pipeline repo, the folder with model_index.json.",
        )
    return LENS_PIPELINE


def _refuse_shared(adapters: Iterable[ResolvedAdapter], target: _Target) -> None:
    """Refuse to add to one tensor for two modules; it would depend on their order in the model."""
    paths: dict[str, str] = {}
    for adapter in adapters:
        for path, module in adapter.modules.get(target.name, {}).items():
            for part in ("weight", "bias") if module.bias is not None else ("weight",):
                first = paths.setdefault(target.sources[f"{path}.{part}"], path)
                if first != path:
                    reason = f"{first} and {path} have one {part}, and adapters add to both"
                    raise adapter.file.refuse(reason, "Leave the adapter out.")
