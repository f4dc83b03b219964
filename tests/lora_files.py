"""LoRA adapters of random numbers in many formats, and what diffusers and lensconv make of them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from converter.conversion.adapters.choice import AdapterChoice
from converter.conversion.adapters.file import open_adapter
from converter.conversion.adapters.modules import ModuleShape, adaptable_modules
from converter.conversion.adapters.resolving import Component, ResolvedAdapter, resolve_adapter
from converter.conversion.adapters.weights import NewBias, NewWeight, torch_threads
from tests.tiny_models import build_model

Tensors = dict[str, torch.Tensor]
RANK, ALPHA = 4, 3.0


def paths_of(model: Any, kinds: tuple[type, ...] = (torch.nn.Linear, torch.nn.Conv2d)) -> list[str]:
    """Paths of a model's modules of some kinds."""
    return [path for path, module in model.named_modules() if isinstance(module, kinds)]


def factors(model: Any, paths: Sequence[str], seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensors:
    """Random factors for modules, in PEFT's names; every third module has twice the rank."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for number, path in enumerate(paths):
        weight = model.get_submodule(path).weight
        rank, pixel = RANK * (2 if number % 3 == 2 else 1), (1,) * (weight.ndim - 2)
        found[f"{path}.lora_A.weight"] = torch.randn(rank, *weight.shape[1:], generator=generator).to(dtype)
        found[f"{path}.lora_B.weight"] = torch.randn(weight.shape[0], rank, *pixel, generator=generator).to(dtype)
    return found


def prefixed(tensors: Tensors, prefix: str) -> Tensors:
    """The same under names with a prefix."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def down_and_up(tensors: Tensors) -> Tensors:
    """The same, with kohya's names of the factors."""
    return {name.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): item for name, item in tensors.items()}


def alphas_of(paths: Sequence[str], alpha: float = ALPHA) -> Tensors:
    """An alpha for each module."""
    return {f"{path}.alpha": torch.tensor(alpha) for path in paths}


def kohya(tensors: Tensors, prefix: str) -> Tensors:
    """The same under kohya's names, with alphas of which every third is twice as large."""
    result = {}
    for number, (name, tensor) in enumerate(tensors.items()):
        path, _, part = name.partition(".lora_")
        stem = f"{prefix}{path.replace('.', '_')}"
        result[f"{stem}.lora_{'down' if part.startswith('A') else 'up'}.weight"] = tensor
        result[f"{stem}.alpha"] = torch.tensor(ALPHA * (2 if number % 3 == 2 else 1))
    return result


def of_authors(sizes: Mapping[str, tuple[int, int]], form: str, rank: int = RANK) -> Tensors:
    """Factors for modules of given (in, out) in names of FLUX's authors, as kohya's scripts or fal write them."""
    generator = torch.Generator().manual_seed(7)
    result = {}
    for name, (inputs, outputs) in sizes.items():
        stem = f"lora_unet_{name.replace('.', '_')}" if form == "kohya" else f"base_model.model.{name}"
        down, up = ("lora_down", "lora_up") if form == "kohya" else ("lora_A", "lora_B")
        result[f"{stem}.{down}.weight"] = torch.randn(rank, inputs, generator=generator).bfloat16()
        result[f"{stem}.{up}.weight"] = torch.randn(outputs, rank, generator=generator).bfloat16()
        if form == "kohya":
            result[f"{stem}.alpha"] = torch.tensor(ALPHA)
    return result


def flux_sizes(size: int, doubles: int, singles: int) -> dict[str, tuple[int, int]]:
    """(in, out) of FLUX's modules under its authors' names, without the embedders."""
    sizes: dict[str, tuple[int, int]] = {}
    for block in range(doubles):
        for stream in ("img", "txt"):
            name = f"double_blocks.{block}.{stream}"
            sizes |= {f"{name}_attn.proj": (size, size), f"{name}_attn.qkv": (size, 3 * size)}
            sizes |= {f"{name}_mlp.0": (size, 4 * size), f"{name}_mlp.2": (4 * size, size)}
            sizes[f"{name}_mod.lin"] = size, 6 * size
    for block in range(singles):
        name = f"single_blocks.{block}"
        sizes |= {f"{name}.linear1": (size, 7 * size), f"{name}.linear2": (5 * size, size)}
        sizes[f"{name}.modulation.lin"] = size, 3 * size
    return sizes


def write(file: Path, tensors: Tensors, metadata: Mapping[str, str] | None = None) -> Path:
    """Write an adapter; returns the file."""
    save_file(tensors, file, metadata=dict(metadata or {}))
    return file


def pipeline_of(pipeline_class: str, **models: Any) -> Any:
    """The part of a pipeline that loads adapters, with some models."""
    import diffusers

    found = getattr(diffusers, pipeline_class)
    mixin = next(each for each in found.__mro__ if "lora_state_dict" in each.__dict__)
    pipeline = type("Pipeline", (mixin,), {"hf_device_map": None, "components": {}})()
    for name in mixin._lora_loadable_modules:
        setattr(pipeline, name, models.get(name))
    return pipeline


def lens_pipeline(model: Any) -> Any:
    """The part of LensPipeline that loads adapters."""
    from converter.models.lens.adapters import LensLoraLoaderMixin

    return type("Pipeline", (LensLoraLoaderMixin,), {"hf_device_map": None, "components": {}, "transformer": model})()


def build_lens() -> Any:
    """A tiny Lens transformer that loads adapters."""
    from converter.lens import LensTransformer2DModel

    plain = build_model("LensTransformer2DModel")
    constructor: Any = LensTransformer2DModel
    model = constructor(**dict(plain.config))
    model.load_state_dict(plain.state_dict())
    return model


def states(models: Mapping[str, Any]) -> dict[str, Tensors]:
    """Copies of the weights of some models."""
    return {
        component: {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        for component, model in models.items()
    }


def fuse(pipeline: Any, choices: Sequence[AdapterChoice]) -> None:
    """Let diffusers load and merge each adapter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for choice in choices:
            pipeline.load_lora_weights(str(choice.file.parent), weight_name=choice.file.name)
            pipeline.fuse_lora(components=pipeline._lora_loadable_modules, lora_scale=choice.scale)
            pipeline.unload_lora_weights()


def components_of(models: Mapping[str, Any]) -> dict[str, Component]:
    """What lensconv knows of the components that it converts."""
    return {
        name: Component(adaptable_modules(model), is_transformers=hasattr(model.config, "model_type"))
        for name, model in models.items()
    }


def resolve(choice: AdapterChoice, pipeline_class: str, models: Mapping[str, Any]) -> ResolvedAdapter:
    """What lensconv understands of an adapter."""
    unet_config = dict(models["unet"].config) if "unet" in models else None
    return resolve_adapter(open_adapter(choice), pipeline_class, components_of(models), unet_config=unet_config)


def add(state: Tensors, model: Any, component: str, adapters: Sequence[ResolvedAdapter], step: int) -> None:
    """Let lensconv add adapters to the weights of a model, in pieces of some rows."""
    for path, shape in adaptable_modules(model).items():
        found = [each.modules[component][path] for each in adapters if path in each.modules.get(component, {})]
        if not found:
            continue
        assert isinstance(shape, ModuleShape)
        new = NewWeight(shape, found, in_blocks=True)
        with torch_threads(1):
            for first in range(0, shape.rows, step):
                new.add(state[f"{path}.weight"][first : first + step], first)
        if shape.has_bias:
            NewBias(found).add(state[f"{path}.bias"], 0)
