"""Whole pipelines with LoRA: adapters for all of their components, and copies into which diffusers merged them."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from converter.conversion.adapters.choice import AdapterChoice
from tests.lora_files import Tensors, factors, fuse, paths_of, prefixed, write

SCALES = (1.0, -0.4)


def load(repo: Path) -> Any:
    """A pipeline in float32, by diffusers."""
    import diffusers

    from converter.lens import LensPipeline

    loader = LensPipeline if "Lens" in (repo / "model_index.json").read_text() else diffusers.DiffusionPipeline
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return loader.from_pretrained(repo, torch_dtype=torch.float32)


def weak_adapters(folder: Path, repo: Path) -> tuple[AdapterChoice, ...]:
    """Two adapters for all components into which a pipeline loads some; weak, so that images stay images."""
    pipeline = load(repo)
    files: list[Tensors] = [{}, {}]
    for component in pipeline._lora_loadable_modules:
        model = getattr(pipeline, component)
        paths = [path for path in paths_of(model) if path.endswith(("q_proj", "out_proj", "fc1"))]
        paths = paths if component.startswith("text") else paths_of(model)[::3]
        for number, dtype in enumerate((torch.float32, torch.bfloat16)):
            found = factors(model, paths[number:], number)
            files[number] |= prefixed({name: (0.1 * each).to(dtype) for name, each in found.items()}, component)
    return tuple(
        AdapterChoice(write(folder / f"{number}.safetensors", tensors), scale)
        for number, (tensors, scale) in enumerate(zip(files, SCALES, strict=True))
    )


def options_of(choices: Sequence[AdapterChoice]) -> list[str]:
    """The options that name adapters."""
    return [word for choice in choices for word in ("--lora", f"{choice.file}={choice.scale}")]


def fused_copy(repo: Path, choices: Sequence[AdapterChoice], folder: Path) -> Path:
    """A copy of a repo into which diffusers merged adapters in float32."""
    pipeline = load(repo)
    fuse(pipeline, choices)
    shutil.copytree(repo, folder)
    for component in pipeline._lora_loadable_modules:
        getattr(pipeline, component).save_pretrained(folder / component)
    return folder
