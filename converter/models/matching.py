"""Matching the tensors of a checkpoint to those of a model, by name, shape and dtype."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import prod

import numpy as np
import torch
from torch import nn

from converter.checkpoint.dtypes import WEIGHT_DTYPES
from converter.checkpoint.reader import TensorReader, ranges
from converter.checkpoint.source import Checkpoint, SourceTensor
from converter.errors import UnsupportedCheckpoint
from converter.models.classes import TORCH_DTYPES

#: Numbers that are compared at a time where tied tensors are in a file twice.
_COMPARED_ELEMENTS = 1 << 22


def are_equal(checkpoint: Checkpoint, first: str, second: str) -> bool:
    """Whether two tensors have the same numbers as bfloat16; the one question that headers cannot answer."""
    tensors = checkpoint.tensors[first], checkpoint.tensors[second]
    if tensors[0].entry.shape != tensors[1].entry.shape:
        return False
    with TensorReader() as reader:

        def read(tensor: SourceTensor, start: int, stop: int) -> torch.Tensor:
            dtype = TORCH_DTYPES[tensor.entry.dtype]
            data = np.empty((stop - start) * dtype.itemsize, np.uint8)
            reader.read(tensor, start * dtype.itemsize, data)
            return torch.from_numpy(data).view(dtype).to(torch.bfloat16)

        pieces = ranges(prod(tensors[0].entry.shape), _COMPARED_ELEMENTS)
        return all(torch.equal(*(read(tensor, *piece) for tensor in tensors)) for piece in pieces)


def match_tensors(
    model: nn.Module, names: Mapping[str, str], checkpoint: Checkpoint, ignored_patterns: Iterable[str]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Match tensors of the checkpoint to those of the model, in both directions.

    Args:
        model: the model on the meta device.
        names: by name in the model, the name in the checkpoint.
        checkpoint: where the tensors are.
        ignored_patterns: regular expressions of names that the class expects not to load.

    Returns:
        By name in the model, the name in the checkpoint; and the tensors of the checkpoint that are not loaded.

    Raises:
        UnsupportedCheckpoint: a tensor is missing, has another shape, or is not part of the model.
    """
    class_name = type(model).__name__
    state = model.state_dict(keep_vars=True)
    sources = _find_sources(state, names, checkpoint, class_name)
    for name, source in sources.items():
        _check_tensor(checkpoint, source, state[name], class_name)
    extra = [source for name, source in names.items() if name not in state]
    unexpected = [source for source in extra if not any(re.search(pattern, source) for pattern in ignored_patterns)]
    if unexpected:
        raise UnsupportedCheckpoint(
            f"{checkpoint.folder}: tensor {unexpected[0]} is not part of {class_name}"
            + (f", nor are {len(unexpected) - 1} others" if len(unexpected) > 1 else ""),
            "Compare config.json with the one that belongs to these weights.",
        )
    return sources, tuple(sorted(extra))


def _find_sources(
    state: Mapping[str, torch.Tensor], names: Mapping[str, str], checkpoint: Checkpoint, class_name: str
) -> dict[str, str]:
    """By name in the model, the name in the checkpoint."""
    holders: dict[int, list[str]] = {}
    for name, tensor in state.items():
        holders.setdefault(id(tensor), []).append(name)
    sources: dict[str, str] = {}
    for group in holders.values():
        # Tied tensors are one object with several names, of which a checkpoint needs only one.
        present = [name for name in group if name in names]
        if not present:
            raise UnsupportedCheckpoint(
                f"{checkpoint.folder}: tensor {group[0]} is missing; {class_name} needs it", "Download it again."
            )
        for name in group:
            sources[name] = names[name if name in names else present[0]]
    return sources


def _check_tensor(checkpoint: Checkpoint, source: str, wanted: torch.Tensor, class_name: str) -> None:
    """Compare shape and dtype of a tensor with what the model needs."""
    found, shape = checkpoint.tensors[source].entry, tuple(wanted.shape)
    if found.shape != shape:
        raise UnsupportedCheckpoint(
            f"{checkpoint.folder}: tensor {source} has shape {list(found.shape)}; "
            f"{class_name} with this config.json needs {list(shape)}",
            "Compare config.json with the one that belongs to these weights.",
        )
    is_same = TORCH_DTYPES.get(found.dtype) == wanted.dtype
    if not is_same and not (found.dtype in WEIGHT_DTYPES and wanted.is_floating_point()):
        raise UnsupportedCheckpoint(
            f"{checkpoint.folder}: tensor {source} is {found.dtype}, which {class_name} cannot take for {wanted.dtype}",
            "Convert the original, unquantized checkpoint.",
        )
