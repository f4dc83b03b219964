"""Open a pipeline repo of diffusers, and load each component with its own class; faults that loaders ignore are errors.

Nothing of the repo is run: classes are those of the installed libraries, and weights are safetensors.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import cpu_offload

from converter.checkpoint.components import PipelineComponent, require_loadable
from converter.checkpoint.files import read_json
from converter.checkpoint.header import Header
from converter.checkpoint.source import DENOISERS
from converter.console import Reporter, readable_size
from converter.errors import UnsupportedCheckpoint
from converter.libraries import load_library
from converter.measurement.generation.compiling import compile_blocks
from converter.measurement.generation.loading import blaming, load_model, load_small
from converter.models.int8_kernels import find_int8_kernel, use_int8_kernel
from converter.models.pipelines import Component, Pipeline, describe_pipeline, refuse_other_output
from converter.models.sdnq_layers import has_integer_products

#: The method by which SDNQ's models are quantized, as their configs name it.
_SDNQ = "sdnq"


@dataclass(frozen=True)
class OpenPipeline:
    """A pipeline repo that makes images of prompts."""

    pipeline: Pipeline
    examined: tuple[PipelineComponent, ...]
    """Its components, with the headers of their weights."""

    @property
    def folder(self) -> Path:
        """The repo."""
        return self.pipeline.folder

    @property
    def class_name(self) -> str:
        """Name of the pipeline's class."""
        return self.pipeline.class_name

    @property
    def denoiser(self) -> str:
        """Name of the component that denoises; of several, that of the last stage."""
        names = [component.name for component in self.pipeline.having("denoiser")]
        return next((name for name in DENOISERS if name in names), names[-1])

    @property
    def component_names(self) -> tuple[str, ...]:
        """Names of all components."""
        return tuple(component.name for component in self.pipeline.components)

    @property
    def headers(self) -> dict[str, tuple[Header, ...]]:
        """Headers of the weight files, by component."""
        return {name: component.headers for name, component in self.models.items()}

    @property
    def weight_files(self) -> list[Path]:
        """The safetensors files of all components."""
        return [header.file for headers in self.headers.values() for header in headers]

    @property
    def has_packed_text_encoder(self) -> bool:
        """Whether experts of the text encoder are in MXFP4, which is supported in Lens only."""
        return False

    @property
    def uses_sdnq(self) -> bool:
        """Whether SDNQ has quantized a component."""
        return bool(self.quantizations)

    @cached_property
    def quantizations(self) -> dict[str, dict[str, Any]]:
        """SDNQ's configurations of the components that it has quantized, by name; the denoiser comes first."""
        quantized = [item for item in self.examined if item.quantization == _SDNQ]
        quantized.sort(key=lambda item: item.name != self.denoiser)
        return {item.name: read_json(item.folder / "config.json")["quantization_config"] for item in quantized}

    @cached_property
    def models(self) -> dict[str, PipelineComponent]:
        """The components that have weights, by name."""
        return {component.name: component for component in self.examined if component.is_model}


def open_other_pipeline(folder: Path, *, reads_headers: bool = True) -> OpenPipeline:
    """Open a repo, and compare its files.

    Args:
        folder: the repo.
        reads_headers: whether there are headers to read; of a repo on the Hub, names and sizes of weight files are
            known.

    Raises:
        UnsupportedCheckpoint: it does not make images of prompts, or a component has weights in another format only.

    For the other errors, see ``describe_pipeline``.
    """
    pipeline = describe_pipeline(folder)
    refuse_other_output(pipeline)
    examined = require_loadable(folder, reads_headers=reads_headers)
    for entry in pipeline.components:
        # Found before weights are loaded, which may take minutes.
        _ = entry.loaded_class
    return OpenPipeline(pipeline, examined)


def load_tokenizers(repo: OpenPipeline) -> dict[str, Any]:
    """Load the tokenizers, by name; they are small.

    Raises: as ``load_components``.
    """
    return {component.name: _load_small(component) for component in repo.pipeline.tokenizers}


def load_components(
    repo: OpenPipeline,
    loaded: dict[str, Any],
    dtype: torch.dtype,
    device: torch.device | None,
    reporter: Reporter,
    *,
    adapt: Callable[[str, torch.nn.Module], object] | None = None,
    placed: Callable[[str], object] | None = None,
) -> Any:
    """Load what is not loaded yet, and make the pipeline of it.

    Args:
        repo: what to load.
        loaded: components that are loaded already, by name.
        dtype: of the numbers.
        device: where each model is moved once it is loaded; None to leave it on the CPU.
        reporter: is told what is loaded.
        adapt: called with the name and the model of each component while it is on the CPU; may change its weights.
        placed: called with the name of each model that was moved to the device.

    Raises:
        UnsupportedCheckpoint: a component cannot be loaded.
        MalformedCheckpoint: tensors are missing.
        MemoryLimitError: there is not enough memory.
        DependencyError: a package is missing.
    """
    components = dict(loaded)
    for component in repo.pipeline.components:
        if component.name in components:
            continue
        if examined := repo.models.get(component.name):
            reporter.note(f"loading {component.name}, {readable_size(examined.footprint.bytes)}")
            model = _load_model(component, examined, dtype)
            if adapt is not None:
                adapt(component.name, model)
            with blaming(component.folder):
                components[component.name] = model if device is None else model.to(device)
            if placed is not None and device is not None:
                placed(component.name)
        else:
            components[component.name] = _load_small(component)
    with blaming(repo.pipeline.folder):
        made = _construct(repo.pipeline, components)
    made.set_progress_bar_config(disable=True)
    return made


def place(pipeline: Any, device: torch.device, offload: str, *, offloads_on_cpu: bool = False) -> None:
    """Prepare a loaded pipeline to run on a device.

    Args:
        pipeline: as ``load_components`` returns it.
        device: where it runs.
        offload: as in ``GenerateOptions``.
        offloads_on_cpu: whether to offload on a CPU, too, where it saves nothing.
    """
    for model in models_of(pipeline).values():
        if has_integer_products(model):
            use_int8_kernel(model, find_int8_kernel(device))
    if device.type == "cpu" and not offloads_on_cpu:
        return
    if offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    elif offload == "sequential" and device.type == "cpu":
        _offload_layers_on_cpu(pipeline)
    elif offload == "sequential":
        pipeline.enable_sequential_cpu_offload(device=device)
    else:
        pipeline.to(device)


def _offload_layers_on_cpu(pipeline: Any) -> None:
    """Do what sequential offloading does, where diffusers would ask for ``cpu:0``, which accelerate takes for a GPU."""
    pipeline.remove_all_hooks()
    for name, model in models_of(pipeline).items():
        if name not in pipeline._exclude_from_cpu_offload:
            cpu_offload(model, torch.device("cpu"), offload_buffers=bool(model._parameters))


def compile_denoisers(pipeline: Any, described: Pipeline) -> None:
    """Make the repeated blocks of what denoises compile when they first run.

    Raises:
        CompilerError: torch's compiler does not work here.
    """
    for component in described.having("denoiser"):
        compile_blocks(getattr(pipeline, component.name))


def models_of(pipeline: Any) -> dict[str, torch.nn.Module]:
    """The components of a loaded pipeline that have weights, by name."""
    return {name: item for name, item in pipeline.components.items() if isinstance(item, torch.nn.Module)}


def _construct(pipeline: Pipeline, components: dict[str, Any]) -> Any:
    """Call the constructor with the components, and with the settings of the index; the rest is null or has defaults.

    ``from_pretrained`` would do the same, but also load further repos that a README names.
    """
    arguments: dict[str, Any] = {}
    for parameter in list(inspect.signature(pipeline.pipeline_class.__init__).parameters.values())[1:]:
        name = parameter.name
        if name in components:
            arguments[name] = components[name]
        elif name in pipeline.settings:
            value = pipeline.settings[name]
            # A component that is null is [null, null] in the index.
            arguments[name] = None if value == [None, None] else value
        elif parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            arguments[name] = None
    with warnings.catch_warnings():
        # Constructors warn of what they change in old configs, and of their own age.
        warnings.simplefilter("ignore")
        return pipeline.pipeline_class(**arguments)


def _load_small(component: Component) -> Any:
    # A class that chooses another one by the config would ask whether to run code in the repo.
    options = {"trust_remote_code": False} if component.class_name.startswith("Auto") else {}
    return load_small(component.loaded_class, component.folder, **options)


def _load_model(component: Component, examined: PipelineComponent, dtype: torch.dtype) -> Any:
    """Load a component with weights."""
    where, model_class = component.folder, component.loaded_class
    if not issubclass(model_class, torch.nn.Module):
        raise UnsupportedCheckpoint(f"{where}: {component.class_name} is not a class with weights")
    options: dict[str, Any] = {"variant": examined.variant} if examined.variant else {}
    is_of_diffusers = issubclass(model_class, load_library("diffusers").ModelMixin)
    options["torch_dtype" if is_of_diffusers else "dtype"] = dtype
    tensors = sum(len(header.tensors) for header in examined.headers)
    return load_model(model_class, where, read_json(where / "config.json"), tensors, **options)
