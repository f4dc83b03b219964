"""Small safetensors files of this folder: written whole or not at all, read whole and not trusted."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from converter.checkpoint.checksum import file_sha256
from converter.checkpoint.dtypes import RANK
from converter.checkpoint.header import Header, TensorEntry, encode_header
from converter.checkpoint.layout import FileLayout, Layout, Slot, TensorSpec
from converter.checkpoint.reader import TensorReader
from converter.checkpoint.source import SourceTensor
from converter.checkpoint.writer import SlotWriter, writing
from converter.conversion.kernels.sdnq import as_bytes, as_tensor
from converter.errors import MalformedCheckpoint
from converter.models.classes import SAFETENSORS_NAMES, TORCH_DTYPES


def read_tensors(header: Header) -> dict[str, torch.Tensor]:
    """Read all tensors of a file.

    Args:
        header: of the file; it was read just now.

    Returns:
        Tensors on the CPU, by name; each has memory of its own.

    Raises:
        MissingInput: the file cannot be read.
        MalformedCheckpoint: it has become shorter, or torch does not have a dtype.
    """
    found = {}
    with TensorReader() as reader:
        for name, entry in header.tensors.items():
            if entry.dtype not in TORCH_DTYPES:
                raise MalformedCheckpoint(header.file, f"torch has no dtype {entry.dtype}", tensor=name)
            if not entry.bytes:
                found[name] = torch.empty(entry.shape, dtype=TORCH_DTYPES[entry.dtype])
                continue
            data = reader.read_all(SourceTensor(entry, header.file, header.data_start + entry.start))
            found[name] = as_tensor(data, entry.dtype, entry.shape)
    return found


def write_tensors(
    file: Path,
    specs: Sequence[TensorSpec],
    tensors: Iterable[tuple[str, torch.Tensor]],
    metadata: Mapping[str, str],
) -> str:
    """Write a file as a whole or not at all; tensors may be made while it is written.

    safetensors writes metadata of several entries in random order; here, equal content makes equal bytes.

    Args:
        file: over an existing one if there is one.
        specs: what it contains.
        tensors: all of that, by name, in any order.
        metadata: texts by name.

    Returns:
        sha256 of the file, in hexadecimal digits.

    Raises:
        OutputError: it cannot be written.
        DiskError: the disk is full.
    """
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    layout = _lay_out(draft.name, specs, metadata)
    try:
        with SlotWriter(file.parent, layout) as writer:
            for name, tensor in tensors:
                slot = layout.slots[name]
                with writing(file):
                    writer.write(draft.name, slot.offset, as_bytes(tensor).data)
            with writing(file):
                writer.sync()
        with writing(file):
            draft.replace(file)
            return str(file_sha256(file))
    finally:
        draft.unlink(missing_ok=True)


def spec_of(name: str, tensor: torch.Tensor) -> TensorSpec:
    """The description of a tensor."""
    return TensorSpec(name, SAFETENSORS_NAMES[tensor.dtype], tuple(tensor.shape))


def _lay_out(name: str, specs: Sequence[TensorSpec], metadata: Mapping[str, str]) -> Layout:
    entries, position = [], 0
    for spec in sorted(specs, key=lambda spec: (RANK[spec.dtype], spec.name)):
        entries.append(TensorEntry(spec.name, spec.dtype, spec.shape, position, position + spec.bytes))
        position += spec.bytes
    header = encode_header(entries, dict(metadata))
    slots = {entry.name: Slot(name, len(header) + entry.start, entry.bytes) for entry in entries}
    return Layout((FileLayout(name, header, len(header) + position),), slots, "", b"")
