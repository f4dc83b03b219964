"""The parts of quantized weights, read from the files that they were spooled to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from converter.checkpoint.header import read_header
from converter.errors import MalformedCheckpoint
from converter.libraries import load_library
from converter.measurement.sensitivity.storage import Storage
from converter.measurement.sensitivity.tensor_files import read_tensors, spec_of
from converter.verification.dequantizing import dequantize

#: Name of the tensor beside the parts; ``Storage.spool_file`` says what it is.
COLUMN_NOISE = "column_noise"
#: Options that ``sdnq_quantize_layer_weight`` does not take.
_DYNAMIC = ("use_dynamic_quantization", "dynamic_loss_threshold")
_HINT = "Remove the file, and quantize the weight again."


def read_parts(storage: Storage, spool: Path) -> dict[str, torch.Tensor]:
    """Read the parts of a quantized weight.

    Args:
        storage: how it is quantized.
        spool: folder with the files.

    Returns:
        Tensors on the CPU, by SDNQ's names for them.

    Raises:
        MissingInput: the file is missing.
        MalformedCheckpoint: it has other tensors than the storage says.
    """
    file = storage.spool_file(spool)
    found = read_tensors(read_header(file))
    found.pop(COLUMN_NOISE, None)
    described = {part: spec_of(part, tensor) for part, tensor in found.items()}
    planned = {part: replace(spec, name=part) for part, spec in storage.parts.items()}
    for part in sorted(described.keys() | planned.keys()):
        if described.get(part) != planned.get(part):
            raise MalformedCheckpoint(file, f"is not what {storage.source} becomes", _HINT, tensor=part)
    return found


def read_column_noise(storage: Storage, spool: Path) -> torch.Tensor:
    """Read the squared error of each input channel of a quantized weight.

    Returns:
        float32, ``[in]``; of a grouped convolution, ``[in / groups]``.

    Raises:
        MissingInput: the file is missing.
        MalformedCheckpoint: it does not contain that.
    """
    file = storage.spool_file(spool)
    noise = read_tensors(read_header(file)).get(COLUMN_NOISE)
    if noise is None or noise.dtype != torch.float32 or noise.ndim != 1:
        raise MalformedCheckpoint(file, "is missing, or not a row of float32 numbers", _HINT, tensor=COLUMN_NOISE)
    return noise


def make_dequantizer(storage: Storage) -> Any:
    """SDNQ's dequantizer for a quantized weight."""
    if storage.quantized is None:
        raise ValueError(f"{storage.source} is kept")
    options = {name: value for name, value in storage.quantized.options.items() if name not in _DYNAMIC}
    dtype = options["torch_dtype"] = getattr(torch, options["torch_dtype"])
    weight = torch.empty(storage.quantized.shape, dtype=dtype, device="meta")
    dequantizer, _ = load_library("sdnq.quantizer").sdnq_quantize_layer_weight(weight, **options)
    return dequantizer


def restore(storage: Storage, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the weight that quantized parts stand for, in float32, where they are, in the shape of the source."""
    return dequantize(make_dequantizer(storage), parts)
