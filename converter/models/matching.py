"""Matching the tensors of a checkpoint to those of a model, by name, shape and dtype."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import prod

import numpy as np
import torch
from torch import nn

from converter.checkpoint.dtypes import WEIGHT_DTYPES
from converter.checkpoint.reader import open_reader, ranges
from converter.checkpoint.source import Checkpoint, SourceTensor
from converter.errors import UnsupportedCheckpoint
from converter.models.classes import TORCH_DTYPES

#: Buffers that older libraries saved, by the last part of their names; today's classes compute them.
FORMER_BUFFERS = ("position_ids", "inv_freq")
#: Numbers that are compared at a time where tied tensors are in a file twice.
_COMPARED_ELEMENTS = 1 << 22
_OTHER_CONFIG = "Compare config.json with the one that belongs to these weights."


def are_equal(checkpoint: Checkpoint, first: str, second: str) -> bool:
    """Whether two tensors have the same numbers as bfloat16; the one question that headers cannot answer."""
    tensors = checkpoint.tensors[first], checkpoint.tensors[second]
    if tensors[0].entry.shape != tensors[1].entry.shape:
        return False
    with open_reader(checkpoint) as reader:

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

    Tensors that the class computes itself, or expects not to load, are left out; and where a pipeline loads a class
    other than the config's, such as a model without its head, so is what that class does not have.

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
    state = model.state_dict(keep_vars=True)
    where, class_name = f"{checkpoint.folder}: tensor", type(model).__name__
    if state.keys().isdisjoint(names):
        reason = f"none of its tensors belongs to {class_name}, for example {min(checkpoint.tensors)}"
        hint = f"Another program named them. Rename them as {class_name} does first."
        raise UnsupportedCheckpoint(f"{checkpoint.folder}: {reason}", hint)
    sources: dict[str, str] = {}
    for group in _tied_names(state):
        # A checkpoint needs only one of the tensors that are tied.
        present = [name for name in group if name in names]
        if not present:
            raise UnsupportedCheckpoint(f"{where} {group[0]} is missing; {class_name} needs it", "Download it again.")
        sources |= {name: names.get(name, names[present[0]]) for name in group}
    for name, source in sources.items():
        found, wanted = checkpoint.tensors[source].entry, state[name]
        if found.shape != tuple(wanted.shape):
            reason = f"has shape {list(found.shape)}; {class_name} with this config.json needs {list(wanted.shape)}"
            raise UnsupportedCheckpoint(f"{where} {source} {reason}", _OTHER_CONFIG)
        is_same = TORCH_DTYPES.get(found.dtype) == wanted.dtype
        if not is_same and not (found.dtype in WEIGHT_DTYPES and wanted.is_floating_point()):
            reason = f"is {found.dtype}, which {class_name} cannot load as {wanted.dtype}"
            raise UnsupportedCheckpoint(f"{where} {source} {reason}", "Convert the original, unquantized checkpoint.")
    buffers = {name for name, _ in model.named_buffers()}
    extra = {name: source for name, source in names.items() if name not in state}
    named = checkpoint.config.get("architectures")
    is_other_class = checkpoint.loaded_class and isinstance(named, list) and checkpoint.loaded_class not in named
    unexpected = [
        source
        for name, source in extra.items()
        if not is_other_class
        and name not in buffers
        and name.rpartition(".")[2] not in FORMER_BUFFERS
        and not any(re.search(pattern, source) for pattern in ignored_patterns)
    ]
    if unexpected:
        others = f", nor are {len(unexpected) - 1} others" if len(unexpected) > 1 else ""
        raise UnsupportedCheckpoint(f"{where} {unexpected[0]} is not part of {class_name}{others}", _OTHER_CONFIG)
    return sources, tuple(sorted(extra.values()))


def _tied_names(state: Mapping[str, torch.Tensor]) -> Iterable[list[str]]:
    """The names of each tensor; tied tensors are one object with several names."""
    holders: dict[int, list[str]] = {}
    for name, tensor in state.items():
        holders.setdefault(id(tensor), []).append(name)
    return holders.values()
