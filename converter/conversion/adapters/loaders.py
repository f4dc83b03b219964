"""Names of an adapter's tensors as diffusers understands them: its own converters run, and decide.

The class of the pipeline names the converter. Each knows several formats: PEFT's and diffusers' own names, kohya's
``lora_unet_…``, those of ComfyUI and of the models' authors (``diffusion_model.…``), of xlabs, and others.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from converter.checkpoint.dtypes import TORCH_NAMES
from converter.checkpoint.reader import TensorReader
from converter.conversion.adapters.file import AdapterFile, read_tensor
from converter.conversion.adapters.tracing import origins_of, traced
from converter.errors import AdapterError, UnsupportedCheckpoint, first_few, first_line, printable
from converter.libraries import load_library, loading_errors

#: The class whose adapters lensconv's own loader reads, and the only component that it adapts.
LENS_PIPELINE, LENS_COMPONENT = "LensPipeline", "transformer"
#: Tensors of at most so many bytes are read at once: converters look at the values of alphas.
_SMALL_BYTES = 512
#: What diffusers' UNet has if its config does not say it; kohya's numbers of blocks are converted with it.
_UNET_DEFAULTS = {"layers_per_block": 2}
#: The end of a tensor's name, after that of its module.
_PARAMETER = re.compile(r"\.(lora[._].*|alpha)$")
_ALPHA = re.compile(r"(^|\.)alpha$")

#: The tensors under diffusers' names, its ``network_alphas`` and PEFT's config.
_Result = tuple[dict[str, torch.Tensor], Mapping[str, Any] | None, Mapping[str, Any] | None]


@dataclass(frozen=True)
class Converted:
    """An adapter under diffusers' names."""

    state: Mapping[str, torch.Tensor]
    """By name, with the component in front. On the meta device where the numbers are in the file unchanged."""
    stored: Mapping[str, str]
    """Names in the file of what is there unchanged, by the new name."""
    alphas: Mapping[str, Any] | None
    """diffusers' ``network_alphas``: alpha by module, where it is not part of the factors already."""
    config: Mapping[str, Any] | None
    """PEFT's config, with the component in front of each key."""
    components: tuple[str, ...]
    """Components for which the pipeline's class loads adapters."""


def convert_names(
    adapter: AdapterFile,
    pipeline_class: str,
    *,
    unet_config: Mapping[str, Any] | None = None,
    modules: Iterable[str] = (),
) -> Converted:
    """Convert the names of an adapter and, where its format needs it, its tensors.

    Args:
        adapter: the file.
        pipeline_class: ``_class_name`` of ``model_index.json``.
        unet_config: ``config.json`` of the UNet if the pipeline has one.
        modules: names of the transformer's modules, which only Lens' loader asks for.

    Raises:
        UnsupportedCheckpoint: diffusers does not know the pipeline, or loads no adapters into it.
        AdapterError: the format is unknown, the names contradict each other, or tensors match nothing.
        MissingInput: the file cannot be read any more.
        MalformedCheckpoint: it has become shorter.
    """
    components = loadable_components(pipeline_class, adapter.file)
    if pipeline_class == LENS_PIPELINE:
        convert = _lens_converter(adapter, tuple(modules))
    else:
        convert = _diffusers_converter(adapter, pipeline_class, unet_config)
    with TensorReader() as reader:
        given = traced({name: _stand_in(adapter, name, reader) for name in adapter.tensors})
        try:
            # Converters change the dictionary that they are given.
            result = convert(dict(given))
            needs_numbers = bool(_made(result[0], given))
        except loading_errors():
            # It may have looked at numbers that stand-ins do not have.
            needs_numbers = True
        if needs_numbers:
            given = traced({name: read_tensor(tensor, reader) for name, tensor in adapter.tensors.items()})
            try:
                result = convert(dict(given))
            except loading_errors() as error:
                reason = f"its names cannot be converted for {pipeline_class}: {first_line(error)}"
                raise adapter.refuse(reason) from error
    state, alphas, config = result
    made = _made(state, given)
    _refuse_unused(adapter, origins_of(state.values()))
    by_object = {id(tensor): name for name, tensor in given.items()}
    stored = {name: by_object[id(tensor)] for name, tensor in state.items() if name not in made}
    plain = {name: tensor.as_subclass(torch.Tensor) for name, tensor in state.items()}
    return Converted(
        {name: tensor if name in made else tensor.to("meta") for name, tensor in plain.items()},
        stored,
        alphas,
        config,
        components,
    )


def loadable_components(pipeline_class: str, file: Path) -> tuple[str, ...]:
    """The components for which a pipeline's class loads adapters, whether or not a pipeline has them.

    Args:
        pipeline_class: ``_class_name`` of ``model_index.json``.
        file: an adapter, for messages.

    Raises:
        UnsupportedCheckpoint: diffusers does not know the class, or loads no adapters into it.
    """
    if pipeline_class == LENS_PIPELINE:
        return (LENS_COMPONENT,)
    found = getattr(load_library("diffusers"), pipeline_class, None)
    components = getattr(found, "_lora_loadable_modules", ())
    if not (isinstance(found, type) and hasattr(found, "lora_state_dict") and components):
        known = "diffusers loads no adapters into" if isinstance(found, type) else "diffusers does not know"
        raise UnsupportedCheckpoint(
            f"{file}: {known} {printable(pipeline_class) or 'a component without its pipeline'}",
            "Give the pipeline repo, whose model_index.json names a class that loads adapters.",
        )
    return tuple(components)


def _stand_in(adapter: AdapterFile, name: str, reader: TensorReader) -> torch.Tensor:
    """A tensor of the file if it is small, else one of its shape and dtype without numbers."""
    tensor = adapter.tensors[name]
    if tensor.entry.bytes <= _SMALL_BYTES:
        return read_tensor(tensor, reader)
    return torch.empty(tensor.entry.shape, dtype=getattr(torch, TORCH_NAMES[tensor.entry.dtype]), device="meta")


def _made(state: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]) -> frozenset[str]:
    """Names of the tensors that a converter made; the others it passed on."""
    objects = {id(tensor) for tensor in given.values()}
    return frozenset(name for name, tensor in state.items() if id(tensor) not in objects)


def _refuse_unused(adapter: AdapterFile, used: frozenset[str]) -> None:
    """Refuse tensors that a converter left out without a word; values of alphas leave no trace in what they scale."""
    modules = {_PARAMETER.sub("", name) for name in used}
    unused = [
        name
        for name in adapter.tensors
        if name not in used and not (_ALPHA.search(name) and _PARAMETER.sub("", name) in modules)
    ]
    if unused:
        raise AdapterError(
            adapter.file,
            f"has {len(unused)} of {len(adapter.tensors)} tensors that match nothing: {first_few(unused)}",
            "diffusers would leave them out. Save the adapter with the names of diffusers or PEFT.",
        )


def _diffusers_converter(
    adapter: AdapterFile, pipeline_class: str, unet_config: Mapping[str, Any] | None
) -> Callable[[dict[str, torch.Tensor]], _Result]:
    """The converter of the pipeline's class."""
    loader = getattr(load_library("diffusers"), pipeline_class)
    options: dict[str, Any] = {"return_lora_metadata": True}
    if "return_alphas" in inspect.signature(loader.lora_state_dict).parameters:
        options["return_alphas"] = True
    if unet_config is not None:
        options["unet_config"] = SimpleNamespace(**(_UNET_DEFAULTS | dict(unet_config)))

    def convert(state: dict[str, torch.Tensor]) -> _Result:
        # The file's config is not part of a dictionary of tensors; a loader that reads the file uses it as it is.
        converted, *alphas, _ = loader.lora_state_dict(state, **options)
        return dict(converted), alphas[0] if alphas else None, adapter.config

    return convert


def _lens_converter(adapter: AdapterFile, modules: tuple[str, ...]) -> Callable[[dict[str, torch.Tensor]], _Result]:
    normalize = load_library("converter.models.lens.adapters").normalize_adapter

    def convert(state: dict[str, torch.Tensor]) -> _Result:
        bare, config = normalize(state, adapter.config or adapter.neighbour_config(), modules)
        named = {f"{LENS_COMPONENT}.{name}": tensor for name, tensor in bare.items()}
        return (
            named,
            None,
            None if config is None else {f"{LENS_COMPONENT}.{key}": value for key, value in config.items()},
        )

    return convert
