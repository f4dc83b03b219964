"""Moving what a converter of diffusers made into a file, so that an adapter takes memory only where it is added."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import IO

import torch

from converter.checkpoint.header import TensorEntry
from converter.checkpoint.source import SourceTensor
from converter.conversion.adapters.modules import Factor, ModuleAdapter
from converter.conversion.adapters.resolving import ResolvedAdapter
from converter.models.classes import SAFETENSORS_NAMES


def spool_factors(adapter: ResolvedAdapter, file: Path) -> ResolvedAdapter:
    """The same adapter, of which no tensor is held in memory.

    Args:
        adapter: what to move; it is returned as it is if it holds nothing.
        file: where to; it must stay until all modules are converted. It contains numbers and nothing else.

    Raises:
        OSError: the file cannot be written.
    """
    if not adapter.held_bytes:
        return adapter
    # Queries, keys and values often have one first factor.
    stored: dict[tuple[int, tuple[int, ...]], SourceTensor] = {}
    with file.open("wb") as stream:

        def moved(factor: Factor) -> Factor:
            if factor.held is None:
                return factor
            key = factor.held.data_ptr(), factor.shape
            if key not in stored:
                stored[key] = _write(factor.held, stream, file)
            return Factor(factor.shape, stored[key])

        def moved_module(module: ModuleAdapter) -> ModuleAdapter:
            bias = moved(module.bias) if module.bias is not None else None
            return replace(module, down=moved(module.down), up=moved(module.up), bias=bias)

        modules = {
            component: {path: moved_module(module) for path, module in found.items()}
            for component, found in adapter.modules.items()
        }
    return replace(adapter, modules=modules)


def _write(tensor: torch.Tensor, stream: IO[bytes], file: Path) -> SourceTensor:
    """Write the numbers of a tensor; returns where they are."""
    start = stream.tell()
    stream.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
    entry = TensorEntry("a factor", SAFETENSORS_NAMES[tensor.dtype], tuple(tensor.shape), start, stream.tell())
    return SourceTensor(entry, file, start)
