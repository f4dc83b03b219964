"""Calibrations for tests, written as anyone may write them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from converter import open_checkpoint
from converter.conversion.recipe.calibration import FORMAT, SUFFIX


def write_calibration(
    file: Path,
    moments: Mapping[str, torch.Tensor],
    source: Path,
    *,
    shares: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write second moments by module; returns the file.

    Args:
        file: where.
        moments: by module.
        source: the model.
        shares: the module whose tensor another module shares, by its name.
        metadata: some in place of the right ones.
    """
    right = {
        "format": FORMAT,
        "source": json.dumps({header.file.name: header.sha256 for header in open_checkpoint(source).headers}),
        "shares": json.dumps({module: owner + SUFFIX for module, owner in (shares or {}).items()}),
    }
    tensors = {name + SUFFIX: tensor.contiguous() for name, tensor in moments.items()}
    save_file(tensors, file, metadata=right | dict(metadata or {}))
    return file
