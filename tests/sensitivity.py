"""Originals that are loaded once, with few small images, for tests of ablation and search."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from converter.checkpoint.reader import TensorReader
from converter.checkpoint.source import Checkpoint
from converter.conversion.kernels.sdnq import as_tensor, quantize_with_sdnq
from converter.measurement.benchmark.repos import ImageSettings, choose_image_settings
from converter.measurement.generation.options import GenerateOptions
from converter.measurement.sensitivity.loaded import LoadedOriginal, load_original, open_original
from converter.measurement.sensitivity.parts import restore
from converter.measurement.sensitivity.storage import Storage

#: Small and few, so that an image takes a tenth of a second.
SMALL: dict[str, Any] = {"device": "cpu", "steps": 3, "height": 64, "width": 64}
PROMPTS = ("a red cube", "two cats")


def load(
    folder: Path, prompts: Sequence[str] = PROMPTS, **options: Any
) -> tuple[LoadedOriginal, dict[str, ImageSettings]]:
    """An original, and settings of small images of prompts by the prompts."""
    chosen = GenerateOptions(**{**SMALL, **options})
    repo = open_original(folder)
    settings = {prompt: choose_image_settings(repo, prompt, chosen) for prompt in prompts}
    return load_original(repo, list(settings.values()), chosen), settings


def fill_spool(checkpoint: Checkpoint, found: Iterable[Storage], spool: Path) -> None:
    """Quantize weights with SDNQ, and write the files that a scan would write."""
    spool.mkdir(exist_ok=True)
    with TensorReader() as reader:
        for storage in found:
            if storage.quantized is None or storage.spool_file(spool).exists():
                continue
            source = checkpoint.tensors[storage.source]
            data, entry = reader.read_all(source), source.entry
            options = storage.quantized.options
            cpu = torch.device("cpu")
            parts = quantize_with_sdnq(data, entry.dtype, entry.shape, options, from_float32=False, device=cpu).parts
            noise = (restore(storage, parts) - as_tensor(data, entry.dtype, entry.shape).float()) ** 2
            columns = noise.sum([axis for axis in range(noise.ndim) if axis != 1])
            save_file({**parts, "column_noise": columns}, storage.spool_file(spool))
