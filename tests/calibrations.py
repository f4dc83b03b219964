"""Calibrations for tests: gathered with forward hooks, and written as anyone may write them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file

from converter import open_checkpoint
from converter.conversion.recipe.calibration import FORMAT, SUFFIX


@contextmanager
def gathered_moments(model: torch.nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """Gather the second moments of the inputs of all linears while the block runs; they are there after it."""
    sums: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}
    found: dict[str, torch.Tensor] = {}

    def note(name: str, inputs: tuple[torch.Tensor, ...]) -> None:
        rows = inputs[0].detach().double().flatten(0, -2)
        sums[name] = sums.get(name, 0) + rows.T @ rows
        counts[name] = counts.get(name, 0) + len(rows)

    hooks = [
        module.register_forward_pre_hook(lambda _module, inputs, name=name: note(name, inputs))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    yield found
    for hook in hooks:
        hook.remove()
    found.update({name: (total / counts[name]).float() for name, total in sums.items()})


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
