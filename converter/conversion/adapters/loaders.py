"""Names of an adapter's tensors as diffusers understands them: its own converters run, and decide.

The class of the pipeline names the converter. Each knows several formats: PEFT's and diffusers' own names, kohya's
``lora_unet_…``, those of ComfyUI and of the models' authors (``diffusion_model.…``), of xlabs, and others.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from converter.checkpoint.reader import TensorReader
from converter.conversion.adapters.file import AdapterFile, dtype_of, is_finite, is_zero, read_tensor
from converter.conversion.adapters.tracing import name_of, origins_of, plain, traced, without_numbers
from converter.errors import AdapterError, UnsupportedCheckpoint, first_few, first_line, printable
from converter.libraries import load_library, loading_errors

#: The class whose adapters lensconv's own loader reads, and the only component that it adapts.
LENS_PIPELINE, LENS_COMPONENT = "LensPipeline", "transformer"
#: Wan's second transformer; diffusers loads an adapter into it only if it is told to (``load_into_transformer_2``).
ON_REQUEST = "transformer_2"
#: What diffusers' UNet has if its config does not say it; kohya's numbers of blocks are converted with it.
_UNET_DEFAULTS = {"layers_per_block": 2}
#: The end of a tensor's name, after that of its module.
_PARAMETER = re.compile(r"\.(lora[._].*|alpha)$")
_ALPHA = re.compile(r"(^|\.)alpha$")
#: Differences of whole weights and biases, which some extractions put beside the factors.
_DIFFERENCE = re.compile(r"\.diff(_b)?$")
#: A number in a name that no model has. Some converters count up to the largest number of a block.
_LARGE_NUMBER = re.compile(r"[0-9]{5,}")
_OTHER_NAMES = "Check that the adapter was trained for this model, or save it with the names of diffusers."

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
    left_out: tuple[str, ...]
    """Names in the file of what diffusers leaves out: numbers that are all zero, and differences."""


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
        given = {
            name: traced(name, tensor.entry.shape, dtype_of(tensor), partial(read_tensor, tensor, reader))
            for name, tensor in adapter.tensors.items()
        }
        try:
            state, alphas, config = convert(given)
        except loading_errors(NameError) as error:
            # Wan's converter may read a variable that it has not set.
            raise _unconverted(adapter, pipeline_class, error) from error
        left_out = _left_out(adapter, origins_of(state.values()), reader)
        stored = {name: name_of(tensor) for name, tensor in state.items() if name_of(tensor)}
        made = {name: plain(tensor) for name, tensor in state.items() if name not in stored}
        _refuse_overflow(adapter, made)
        return Converted(
            {name: made.get(name, without_numbers(tensor.shape, tensor.dtype)) for name, tensor in state.items()},
            stored,
            {name: plain(alpha) for name, alpha in alphas.items()} if alphas else alphas,
            config,
            components,
            left_out,
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
    return tuple(name for name in components if name != ON_REQUEST)


def _unconverted(adapter: AdapterFile, pipeline_class: str, error: Exception) -> AdapterError:
    """The error for names that a converter refuses; what it says is meant for developers, if it says anything."""
    detail = f"{error.args[0]} is missing" if isinstance(error, KeyError) and error.args else first_line(error)
    reason = f"its names cannot be converted for {pipeline_class} ({detail.rstrip(' :.')}): "
    return adapter.refuse(reason + first_few([*adapter.tensors]), _OTHER_NAMES)


def _refuse_overflow(adapter: AdapterFile, made: Mapping[str, torch.Tensor]) -> None:
    """Refuse factors that an alpha made too large for their dtype."""
    large = [name for name, tensor in made.items() if not is_finite(tensor)]
    if large:
        reason = f"its alpha times its factors is too large for their dtype: {first_few(large)}"
        raise adapter.refuse(reason, "Get an intact adapter.")


def _left_out(adapter: AdapterFile, used: frozenset[str], reader: TensorReader) -> tuple[str, ...]:
    """Names of tensors that a converter left out without a word, and that change nothing or are no factors.

    Values of alphas leave no trace in what they scale; they count as used, or left out, with their module.

    Raises:
        AdapterError: it left out factors of a module, or an alpha is zero.
    """
    modules = {_module(name) for name in used}
    alphas = [name for name in adapter.tensors if _ALPHA.search(name) and _module(name) in modules]
    for name in alphas:
        if is_zero(adapter.tensors[name], reader):
            raise adapter.refuse("is zero, which leaves the weights as they are", "Get an intact adapter.", tensor=name)
    unused = [name for name in adapter.tensors if name not in used.union(alphas)]
    harmless = {name for name in unused if _DIFFERENCE.search(name) or is_zero(adapter.tensors[name], reader)}
    modules = {_module(name) for name in harmless}
    lost = [name for name in unused if name not in harmless and not (_ALPHA.search(name) and _module(name) in modules)]
    lost = lost if used else unused
    if lost:
        raise adapter.refuse(
            f"has {len(lost)} of {len(adapter.tensors)} tensors that match nothing: {first_few(lost)}",
            f"diffusers would leave them out. {_OTHER_NAMES}",
        )
    return tuple(unused)


def _module(name: str) -> str:
    """The name of a tensor's module."""
    return _PARAMETER.sub("", name)


def _diffusers_converter(
    adapter: AdapterFile, pipeline_class: str, unet_config: Mapping[str, Any] | None
) -> Callable[[dict[str, torch.Tensor]], _Result]:
    """The converter of the pipeline's class."""
    large = [name for name in adapter.tensors if _LARGE_NUMBER.search(name)]
    if large:
        raise adapter.refuse(f"has names with a number that no model has: {first_few(large)}", _OTHER_NAMES)
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
