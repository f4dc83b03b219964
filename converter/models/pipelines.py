"""A pipeline repo as one value: its components and their roles, what its call takes, and what it makes.

``model_index.json`` names classes by library. Nothing that it names is imported: a class is looked for by name among
those of diffusers, transformers and lensconv, and code in a repo is never run.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from converter.checkpoint.files import holds, read_json
from converter.checkpoint.source import PIPELINE_INDEX, pipeline_components
from converter.errors import DependencyError, MalformedCheckpoint, MissingInput, UnsupportedCheckpoint, printable
from converter.libraries import load_library
from converter.models.lens.layout import PIPELINE_CLASS_NAME
from converter.models.pipeline_calls import PipelineCall, describe_call, lacking_inputs, makes
from converter.models.roles import Role, role

#: A folder with this file alone is a modular repo.
MODULAR_INDEX = "modular_model_index.json"
#: Classes that repos name, and transformers 5 has under other names.
_RENAMED = {"CLIPFeatureExtractor": "CLIPImageProcessor"}
_ELSE = "`plan`, `convert`, `verify` and `card` work with it."
_REPOS = "Give the folder with the subfolders transformer, text_encoder and so on."


@dataclass(frozen=True)
class Component:
    """One entry of ``model_index.json``."""

    folder: Path
    library: str
    """As ``model_index.json`` gives it, like the class."""
    class_name: str

    @property
    def name(self) -> str:
        """Its name in the pipeline."""
        return self.folder.name

    @property
    def role(self) -> Role:
        """What it does."""
        return role(self.name, self.class_name)

    @cached_property
    def loaded_class(self) -> Any:
        """Its class.

        Raises:
            UnsupportedCheckpoint: diffusers and transformers do not have it, or it is code in the repo.
        """
        return find_component_class(self)


@dataclass(frozen=True)
class Pipeline:
    """A pipeline repo whose class is installed."""

    folder: Path
    pipeline_class: Any
    components: tuple[Component, ...]
    """In the order of ``model_index.json``; those that it sets to null are left out."""
    settings: Mapping[str, Any]
    """The entries of ``model_index.json`` that are no components, such as ``is_distilled``."""

    @property
    def class_name(self) -> str:
        """Name of its class."""
        return str(self.pipeline_class.__name__)

    @cached_property
    def call(self) -> PipelineCall:
        """What its call takes."""
        return describe_call(self.pipeline_class)

    @property
    def makes(self) -> str:
        """``images``, ``videos``, ``audio``, or something else in words."""
        return makes(self.pipeline_class)

    @property
    def needs(self) -> str:
        """What it needs besides a prompt, in words; empty if a prompt is enough."""
        return lacking_inputs(self.pipeline_class, self.call)

    @property
    def makes_images_of_prompts(self) -> bool:
        """Whether it makes an image of a prompt alone."""
        return self.makes == "images" and not self.needs

    def having(self, *roles: Role) -> tuple[Component, ...]:
        """The components with one of several roles, in the order in which diffusers runs them."""
        order = str(getattr(self.pipeline_class, "model_cpu_offload_seq", None) or "").split("->")
        found = [component for component in self.components if component.role in roles]
        return tuple(sorted(found, key=lambda item: order.index(item.name) if item.name in order else len(order)))

    @property
    def tokenizers(self) -> tuple[Component, ...]:
        """The components that split prompts into tokens."""
        return tuple(component for component in self.components if "Tokenizer" in component.class_name)


def describe_pipeline(folder: Path) -> Pipeline:
    """Describe a pipeline repo: its small files are read, and diffusers is imported; weights are not read.

    Raises:
        MissingInput: the folder or its ``model_index.json`` does not exist.
        MalformedCheckpoint: a file breaks its format, or a component is missing or of another class than the index
            says.
        UnsupportedCheckpoint: the installed libraries lack a class, or the repo brings code of its own.
        DependencyError: the class needs a package that is not installed.
    """
    file = folder / PIPELINE_INDEX
    if not folder.exists():
        raise MissingInput(folder, "no such folder", "Check the path; `hf download` downloads a repo from the Hub.")
    if not file.is_file():
        if (folder / MODULAR_INDEX).is_file():
            hint = f"Use the repo of the pipeline with {PIPELINE_INDEX}, if its authors publish one."
            raise UnsupportedCheckpoint(f"{folder}: is a modular pipeline, it has only {MODULAR_INDEX}", hint)
        raise UnsupportedCheckpoint(f"{folder}: is not a pipeline repo, it has no {PIPELINE_INDEX}", _REPOS)
    index = read_json(file)
    pipeline_class = find_pipeline_class(index, file)
    named = pipeline_components(folder)
    components = tuple(Component(folder / name, *entry) for name, entry in named.items())
    others = {name: value for name, value in index.items() if not name.startswith("_") and name not in named}
    pipeline = Pipeline(folder, pipeline_class, components, others)
    for problem in _problems(pipeline, file):
        raise problem
    return pipeline


def refuse_other_output(pipeline: Pipeline) -> None:
    """Refuse a pipeline that does not make an image of a prompt.

    Raises:
        UnsupportedCheckpoint: it makes something else, or needs more than a prompt.
    """
    where = f"{pipeline.folder}: {pipeline.class_name}"
    if pipeline.makes != "images":
        raise UnsupportedCheckpoint(f"{where} makes {pipeline.makes}; lensconv draws images only", _ELSE)
    if pipeline.needs:
        raise UnsupportedCheckpoint(
            f"{where} needs more than a prompt: {pipeline.needs}; lensconv draws images of prompts only", _ELSE
        )


def find_pipeline_class(index: Mapping[str, Any], file: Path) -> Any:
    """Find the class of a pipeline by name, in lensconv and diffusers.

    Args:
        index: content of ``model_index.json``.
        file: its path, for messages.

    Raises:
        UnsupportedCheckpoint: it is code in the repo, or the installed diffusers does not have it.
        DependencyError: it needs a package that is not installed.
    """
    name = index.get("_class_name")
    if not isinstance(name, str) or not name.isidentifier():
        if isinstance(name, list):
            reason = f"names the custom pipeline {printable('.'.join(map(str, name)))}, which is code; lensconv never "
            raise UnsupportedCheckpoint(f"{file}: {reason}runs code from a repo")
        raise MalformedCheckpoint(file, f"_class_name is {name!r:.80}, not the name of a class")
    if name == PIPELINE_CLASS_NAME:
        return load_library("converter.models.lens.pipeline").LensPipeline
    # Loaded first, so that it is quiet when diffusers imports it for a pipeline.
    load_library("transformers")
    diffusers = load_library("diffusers")
    found = getattr(diffusers, name, None)
    if isinstance(found, type) and issubclass(found, diffusers.DiffusionPipeline):
        return found
    if backends := getattr(found, "_backends", None):
        raise DependencyError(f"{file}: {name} needs {', '.join(backends)}", f"pip install {' '.join(backends)}")
    saved = index.get("_diffusers_version")
    by = f"; the repo was saved with diffusers {printable(saved, 40)}" if isinstance(saved, str) else ""
    raise UnsupportedCheckpoint(
        f"{file}: {printable(name)}: diffusers {diffusers.__version__} has no pipeline of that name{by}",
        "Update diffusers, or read on the repo's page what it needs. lensconv never runs code from a repo.",
    )


def find_component_class(component: Component) -> Any:
    """Find the class of a component by name; see ``Component.loaded_class``."""
    library, name = component.library, component.class_name
    where = f"{component.folder.parent / PIPELINE_INDEX}: {component.name} is {printable(f'{library}.{name}')}"
    if holds((component.folder / f"{library}.py").is_file):
        raise UnsupportedCheckpoint(f"{where}, code in the repo; lensconv never runs it")
    if library in ("diffusers", "transformers"):
        module: Any = load_library(library)
    else:
        # A few models belong to pipelines of diffusers, and are not among its own names.
        module = getattr(load_library("diffusers").pipelines, library, None) if library.isidentifier() else None
        if not inspect.ismodule(module):
            raise UnsupportedCheckpoint(
                f"{where}; lensconv loads components of diffusers and transformers only, and never runs code of a repo"
            )
    found = getattr(module, _RENAMED.get(name, name), None) if name.isidentifier() else None
    if not isinstance(found, type):
        reason = f", which {library} {getattr(module, '__version__', 'of diffusers')} does not have"
        raise UnsupportedCheckpoint(f"{where}{reason}", "Update diffusers and transformers.")
    return found


def _problems(pipeline: Pipeline, file: Path) -> Iterator[MalformedCheckpoint]:
    """Where the index, the components and the class contradict each other, the first first."""
    for component in pipeline.components:
        config = component.folder / "config.json"
        if not holds(component.folder.is_dir):
            yield MalformedCheckpoint(component.folder, f"no such folder, though {PIPELINE_INDEX} names it")
        elif component.library == "diffusers" and component.role != "other" and config.is_file():
            name = read_json(config).get("_class_name")
            if name != component.class_name:
                reason = f"is for {printable(str(name))}, but {PIPELINE_INDEX} names {component.class_name}"
                yield MalformedCheckpoint(config, reason)
    names = {component.name for component in pipeline.components} | pipeline.settings.keys()
    for parameter in list(inspect.signature(pipeline.pipeline_class.__init__).parameters.values())[1:]:
        is_optional = parameter.name in getattr(pipeline.pipeline_class, "_optional_components", ())
        if parameter.default is parameter.empty and parameter.name not in names and not is_optional:
            yield MalformedCheckpoint(file, f"names no {parameter.name}, which {pipeline.class_name} needs")
    for component in pipeline.having("denoiser"):
        expected = _expected_classes(pipeline.pipeline_class, component.name)
        if expected and component.class_name not in expected:
            reason = f"{component.name} is {component.class_name}, but {pipeline.class_name} needs"
            yield MalformedCheckpoint(file, f"{reason} {' or '.join(sorted(expected))}")
    if not pipeline.having("denoiser"):
        yield MalformedCheckpoint(file, "names no component that denoises, such as transformer or unet")


def _expected_classes(pipeline_class: Any, name: str) -> set[str]:
    """Names of the classes that a pipeline accepts as a component; empty if it accepts all, or does not say."""
    parameter = inspect.signature(pipeline_class.__init__).parameters.get(name)
    if parameter is None or parameter.annotation is parameter.empty:
        return set()
    # Annotations are classes, unions of them, or texts.
    annotation = parameter.annotation
    if isinstance(annotation, type):
        return {annotation.__name__}
    text = annotation if isinstance(annotation, str) else str(annotation)
    found = {part.rpartition(".")[2].strip("[] '\"") for part in text.replace("Optional[", "").split("|")}
    return found - {"None", "NoneType", "Any"}
