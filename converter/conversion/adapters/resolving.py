"""What an adapter means for the components that are converted: factors and scaling by module, all of them checked."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from converter.conversion.adapters.described import ManifestAdapter
from converter.conversion.adapters.file import AdapterFile
from converter.conversion.adapters.loaders import LENS_COMPONENT, LENS_PIPELINE, Converted, convert_names
from converter.conversion.adapters.modules import Factor, ModuleAdapter, ModuleShape
from converter.conversion.adapters.scaling import Scaling
from converter.errors import AdapterError, first_few, first_line
from converter.libraries import load_library, loading_errors

#: PEFT's names of what an adapter has for one module.
_NAME = re.compile(r"(?P<module>.+)\.lora_(?P<part>A\.weight|B\.weight|B\.bias)")
#: Components of transformers get their ranks from these modules alone (``_load_lora_into_text_encoder``).
_RANKED = (".q_proj", ".k_proj", ".v_proj", ".out_proj", ".fc1", ".fc2")
#: Characters of a name that are compared with others.
_LONGEST_NAME = 200
_OTHER_MODEL = "Check that the adapter was trained for this model."


@dataclass(frozen=True)
class Component:
    """A component that is converted."""

    modules: Mapping[str, ModuleShape | str]
    """What ``adaptable_modules`` says of it."""
    is_transformers: bool = False
    """Whether transformers loads it, not diffusers."""


@dataclass(frozen=True)
class ResolvedAdapter:
    """An adapter that fits."""

    file: AdapterFile
    modules: Mapping[str, Mapping[str, ModuleAdapter]]
    """By component and path of the module; only components that are converted and adapted."""
    others: Mapping[str, tuple[str, ...]]
    """Names of tensors for components that are not converted, by component; they have no effect."""
    left_out: tuple[str, ...] = ()
    """Names of tensors that diffusers leaves out."""
    uses_neighbour: bool = False
    """Whether ``adapter_config.json`` beside the file was read."""

    @property
    def held_bytes(self) -> int:
        """Bytes in memory, because a converter of diffusers made them; the rest stays in the file."""
        modules = [module for found in self.modules.values() for module in found.values()]
        held = [
            factor.held.untyped_storage() for module in modules for factor in module.factors if factor.held is not None
        ]
        # Queries, keys and values often have parts of one tensor.
        return sum({storage.data_ptr(): storage.nbytes() for storage in held}.values())

    @property
    def config_sha256(self) -> str:
        """Of ``adapter_config.json``, where it was used; else empty."""
        return self.file.neighbour_sha256 if self.uses_neighbour else ""

    def describe(self) -> ManifestAdapter:
        """What the manifest says about it."""
        return ManifestAdapter(self.file.file.name, self.file.sha256, self.file.choice.scale, self.config_sha256)


def resolve_adapter(
    file: AdapterFile,
    pipeline_class: str,
    components: Mapping[str, Component],
    *,
    unet_config: Mapping[str, Any] | None = None,
) -> ResolvedAdapter:
    """Find out what an adapter adds to which modules.

    Args:
        file: the adapter.
        pipeline_class: ``_class_name`` of ``model_index.json``.
        components: those that are converted, by name.
        unet_config: ``config.json`` of the UNet if the pipeline has one, converted or not.

    Raises:
        AdapterError: a name matches nothing, ranks or shapes do not fit, a part is missing, its config asks for what
            cannot be merged, or it has nothing for the components that are converted.
        UnsupportedCheckpoint: diffusers loads no adapters into such a pipeline.
        MissingInput: the file cannot be read any more.
        MalformedCheckpoint: it has become shorter, or its config is malformed.
    """
    is_lens = pipeline_class == LENS_PIPELINE
    if is_lens and LENS_COMPONENT not in components:
        raise _without_effect(file, {LENS_COMPONENT: tuple(file.tensors)}, components)
    modules = components[LENS_COMPONENT].modules if is_lens else ()
    converted = convert_names(file, pipeline_class, unet_config=unet_config, modules=modules)
    strays = [name for name in converted.state if name.partition(".")[0] not in converted.components]
    if strays:
        parts = ", ".join(f"{name}." for name in converted.components)
        reason = f"has {len(strays)} names that match no component: {first_few(strays)}"
        raise file.refuse(
            reason, f"Names begin with {parts} or have a format that diffusers knows for {pipeline_class}."
        )
    resolved: dict[str, dict[str, ModuleAdapter]] = {}
    others: dict[str, tuple[str, ...]] = {}
    for component in converted.components:
        names = [name for name in converted.state if name.startswith(f"{component}.")]
        if names and component in components:
            resolved[component] = _resolve_component(file, converted, component, components[component])
        elif names:
            others[component] = tuple(names)
    if not resolved:
        raise _without_effect(file, others, components)
    return ResolvedAdapter(file, resolved, others, converted.left_out, is_lens and file.config is None)


def _without_effect(
    file: AdapterFile, others: Mapping[str, tuple[str, ...]], components: Mapping[str, Component]
) -> AdapterError:
    reason = f"has tensors for {', '.join(others)} only, and what is converted is {', '.join(components)}"
    return file.refuse(reason, "Convert that component too, with --component, or leave the adapter out.")


def _resolve_component(
    file: AdapterFile, converted: Converted, component: str, target: Component
) -> dict[str, ModuleAdapter]:
    """Factors and scaling of one component's modules."""
    try:
        state, scaling = _scaling_of(converted, component, target)
    except loading_errors() as error:
        reason = f"its ranks and alphas for {component} cannot be used: {first_line(error)}"
        raise file.refuse(reason, "Get an intact adapter that was trained for this model.") from error
    parts: dict[str, dict[str, str]] = {}
    for name, origin in state.items():
        found = _NAME.fullmatch(name)
        if found is None:
            hint = "Only LoRA is supported: two factors for each module, with or without alpha and bias."
            raise file.refuse("is not a factor or a bias of a LoRA", hint, tensor=f"{component}.{name}")
        parts.setdefault(found["module"], {})[found["part"]] = origin
    shapes = _shapes_of(file, component, tuple(parts), target)
    stored = converted.stored

    def factor(origin: str | None) -> Factor | None:
        if origin is None:
            return None
        tensor = converted.state[origin]
        if origin in stored:
            return Factor(tuple(tensor.shape), file.tensors[stored[origin]])
        return Factor(tuple(tensor.shape), None, tensor.contiguous())

    modules = {}
    for path, names in parts.items():
        down, up, bias = (factor(names.get(part)) for part in ("A.weight", "B.weight", "B.bias"))
        where = f"{component}.{path}"
        if down is None or up is None:
            reason = f"has no lora_{'A' if down is None else 'B'} for {where}"
            raise file.refuse(reason, "The file is incomplete; get it again.")
        if scaling.has_bias and bias is None:
            raise file.refuse(f"has biases, but none for {where}", "The file is incomplete; get it again.")
        _refuse_shapes(file, where, shapes[path], down, up, bias)
        if scaling.rank_of(path) != up.shape[1]:
            reason = f"its config gives {where} rank {scaling.rank_of(path)}, its factors have {up.shape[1]}"
            raise file.refuse(reason, "The file and its config are of two adapters.")
        modules[path] = ModuleAdapter(down, up, scaling.factor(path, file.choice.scale), bias)
    return modules


def _scaling_of(converted: Converted, component: str, target: Component) -> tuple[dict[str, str], Scaling]:
    """PEFT's names of a component's tensors, with their names in ``converted``, and the config that loading gives."""
    utilities = load_library("diffusers.utils.state_dict_utils")
    settings = load_library("diffusers.utils.peft_utils")
    prefix = f"{component}."
    # The functions only move values; these are names.
    names: dict[str, str] = {name.removeprefix(prefix): name for name in converted.state if name.startswith(prefix)}
    count = len(names)
    config = converted.config
    if config is not None:
        config = {key.removeprefix(prefix): value for key, value in config.items() if key.startswith(prefix)}
    alphas = converted.alphas
    if alphas and config is not None:
        raise ValueError("it has alphas and a config")
    if target.is_transformers:
        names = utilities.convert_state_dict_to_peft(utilities.convert_state_dict_to_diffusers(names))
        if not any(path.split(".")[0] == "text_model" for path in target.modules):
            names = {name.removeprefix("text_model."): origin for name, origin in names.items()}
    elif "lora_A" not in next(iter(names)):
        names = utilities.convert_unet_state_dict_to_peft(names)
    if len(names) < count:
        raise ValueError("two of its tensors have the same name")
    if config is not None:
        return names, Scaling.parse(config)
    shapes = {name: converted.state[origin].shape for name, origin in names.items()}
    if target.is_transformers:
        paths = [f"{path}.lora_B.weight" for path in target.modules if path.endswith(_RANKED)]
        ranks = {name: shapes[name][1] for name in paths if name in shapes}
    else:
        # diffusers marks the start of a path, since PEFT compares its end.
        ranks = {f"^{name}": shape[1] for name, shape in shapes.items() if "lora_B" in name and len(shape) > 1}
    if not ranks:
        raise ValueError("no factor has a rank")
    if alphas:
        alphas = {key.removeprefix(prefix): value for key, value in alphas.items() if key.startswith(prefix)}
    is_diffusers = not target.is_transformers
    config = settings.get_peft_kwargs(ranks, network_alpha_dict=alphas, peft_state_dict=names, is_unet=is_diffusers)
    return names, Scaling.parse(config)


def _shapes_of(file: AdapterFile, component: str, paths: tuple[str, ...], target: Component) -> dict[str, ModuleShape]:
    """The shapes of adapted modules; names that the model lacks are refused, and modules that cannot be adapted."""
    lacking = [path for path in paths if path not in target.modules]
    if lacking:
        fitting = [path for path, shape in target.modules.items() if isinstance(shape, ModuleShape)]
        near = difflib.get_close_matches(lacking[0][:_LONGEST_NAME], fitting, n=3, cutoff=0.4)
        reason = f"has factors for {len(lacking)} of {len(paths)} modules that {component} lacks: {first_few(lacking)}"
        raise file.refuse(reason, f"Nearest: {', '.join(near)}. {_OTHER_MODEL}" if near else _OTHER_MODEL)
    shapes = {}
    for path in paths:
        shape = target.modules[path]
        if isinstance(shape, str):
            raise file.refuse(f"{component}.{path} is {shape}", _OTHER_MODEL)
        shapes[path] = shape
    return shapes


def _refuse_shapes(
    file: AdapterFile, where: str, shape: ModuleShape, down: Factor, up: Factor, bias: Factor | None
) -> None:
    """Refuse factors that do not fit each other or the module."""
    if len(down.shape) < 2 or len(up.shape) < 2:
        raise file.refuse(f"a factor for {where} has fewer than two dimensions", _OTHER_MODEL)
    if down.shape[0] != up.shape[1]:
        reason = f"the ranks for {where} disagree: A is {list(down.shape)}, B is {list(up.shape)}"
        raise file.refuse(reason, "A has rank rows, B has rank columns; the file is broken.")
    rank, pixel = down.shape[0], (1,) * (len(shape.weight) - 2)
    expected = (rank, *shape.weight[1:]), (shape.rows, rank, *pixel)
    if (down.shape, up.shape) != expected:
        reason = f"A {list(down.shape)} and B {list(up.shape)} do not fit the weight {list(shape.weight)} of {where}"
        raise file.refuse(reason, _OTHER_MODEL)
    if bias is not None and not shape.has_bias:
        raise file.refuse(f"has a bias for {where}, which has none", "PEFT cannot merge it either.")
    if bias is not None and bias.shape != (shape.rows,):
        raise file.refuse(f"the bias {list(bias.shape)} does not fit {where}", _OTHER_MODEL)
