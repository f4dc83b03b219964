"""Trajectories of the original on disk, until the quantized model has repeated them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save

from converter.checkpoint.writer import replace_file, writing
from converter.measurement.comparison.trajectory import BLOCK_ROWS, Step, Trace, block_steps
from converter.measurement.generation.memory import DTYPE_BYTES
from converter.measurement.generation.repo import PipelineRepo
from converter.measurement.generation.settings import Settings

#: Folder in that of the measurements. It is removed at the end.
TRACES_FOLDER = ".trajectory"
#: Most text tokens of a prompt, as in ``predict_memory``.
_TEXT_TOKENS = 415


def write_trace(trace: Trace, file: Path) -> None:
    """Write a trace as a safetensors file, as a whole or not at all.

    Raises:
        OutputError: it cannot be written.
        DiskError: the disk is full.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, value in trace.features.items():
        tensors |= {f"{name}.{index}": part for index, part in enumerate(value)} if _is_list(name) else {name: value}
    for number, step in enumerate(trace.steps):
        states = {f"blocks.{index}": state for index, state in enumerate(step.blocks)}
        for name, tensor in {"latents": step.latents, "velocity": step.velocity, **states}.items():
            tensors[f"steps.{number}.{name}"] = tensor
    sigmas = {f"sigma.{number}": repr(step.sigma) for number, step in enumerate(trace.steps)}
    content = save({name: tensor.contiguous() for name, tensor in tensors.items()}, sigmas)
    with writing(file.parent):
        file.parent.mkdir(exist_ok=True)
    replace_file(file, content)


def read_trace(file: Path) -> Trace:
    """Read what ``write_trace`` wrote."""
    trace = Trace()
    with safe_open(file, "pt") as stream:
        names, sigmas = list(stream.keys()), stream.metadata()
        for name in ("prompt_mask", "negative_prompt_mask"):
            if name in names:
                trace.features[name] = stream.get_tensor(name)
        for name in ("prompt_embeds", "negative_prompt_embeds"):
            if parts := _numbered(names, name):
                trace.features[name] = [stream.get_tensor(part) for part in parts]
        for number in range(len(sigmas)):
            prefix = f"steps.{number}"
            blocks = tuple(stream.get_tensor(name) for name in _numbered(names, f"{prefix}.blocks"))
            latents, velocity = (stream.get_tensor(f"{prefix}.{name}") for name in ("latents", "velocity"))
            trace.steps.append(Step(float(sigmas[f"sigma.{number}"]), latents, velocity, blocks))
    return trace


def remove_traces(output: Path) -> None:
    """Remove all traces in a folder of measurements.

    Raises:
        OutputError: they cannot be removed.
    """
    folder = output / TRACES_FOLDER
    if folder.exists():
        with writing(folder):
            shutil.rmtree(folder)


def trace_bytes(repo: PipelineRepo, settings: Settings, *, blocks: bool) -> int:
    """Return the most bytes that a trace takes.

    Args:
        repo: the original.
        settings: of the image.
        blocks: whether hidden states after blocks are in it.
    """
    config = repo.transformer.config
    size, samples = DTYPE_BYTES[settings.dtype], 1 if settings.guidance == 1 else 2
    tokens = settings.grid[0] * settings.grid[1]
    numbers = 2 * settings.steps * tokens * config["in_channels"]
    numbers += samples * _TEXT_TOKENS * config["enc_hidden_dim"] * len(config["selected_layer_index"])
    if blocks:
        width = config["num_attention_heads"] * config["attention_head_dim"]
        rows = min(BLOCK_ROWS, tokens)
        numbers += len(block_steps(settings.steps)) * config["num_layers"] * samples * rows * width
    return int(numbers * size)


def _is_list(name: str) -> bool:
    """Whether a feature is a tensor for each selected layer of the encoder."""
    return name.endswith("_embeds")


def _numbered(names: list[str], prefix: str) -> list[str]:
    """Names of the form ``prefix.NUMBER``, in the order of their numbers."""
    found = [name for name in names if re.fullmatch(rf"{re.escape(prefix)}\.\d+", name)]
    return sorted(found, key=lambda name: int(name.rpartition(".")[2]))
