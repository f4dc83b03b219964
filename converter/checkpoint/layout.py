"""Where every byte of a checkpoint goes, known before the first one is written.

Tensors are split over shards in the order of the model's state dict, by the Hub library's own rule, as
``save_pretrained`` does. Inside a file they have the order of safetensors: by dtype, the widest alignment first, then
by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from converter.checkpoint.dtypes import RANK, tensor_bytes
from converter.checkpoint.header import TensorEntry, encode_header
from converter.checkpoint.weights import INDEX_SUFFIX, WEIGHTS_SUFFIX

#: What ``save_pretrained`` writes into every file; the loaders of transformers insist on it.
FILE_METADATA = {"format": "pt"}
#: Shard size of ``sdnq.loader.save_sdnq_model``, in bytes.
DEFAULT_SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor that is to be written."""

    name: str
    dtype: str
    """The safetensors name, for example ``BF16``."""
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Bytes of storage."""
        size = tensor_bytes(self.dtype, self.shape)
        if size is None:
            raise ValueError(f"{self.name}: {self.shape} does not fill whole bytes as {self.dtype}")
        return size


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one tensor is: a range of bytes in one file."""

    file: str
    offset: int
    """First byte, counted from the start of the file."""
    bytes: int


@dataclass(frozen=True, slots=True)
class FileLayout:
    """One weight file: its header, ready to be written, and its size."""

    name: str
    header: bytes
    total_bytes: int


@dataclass(frozen=True)
class Layout:
    """All weight files of a component, the slot of every tensor, and the index when there are shards."""

    files: tuple[FileLayout, ...]
    slots: dict[str, Slot]
    index_name: str
    index: bytes
    """Content of the index file; empty when there is only one weight file."""


def lay_out(
    tensors: Iterable[TensorSpec],
    *,
    stem: str,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    index_metadata: Mapping[str, int] | None = None,
) -> Layout:
    """Lay tensors out over files.

    Args:
        tensors: in the order of the model's state dict.
        stem: name of the weight file without its suffix.
        shard_bytes: the most bytes of tensors in a file, unless one tensor alone is larger.
        index_metadata: what the index says besides the total size.
    """
    # Imported here: it takes half of the time in which help should be on the screen.
    from huggingface_hub import split_state_dict_into_shards_factory

    specs = {tensor.name: tensor for tensor in tensors}
    split = split_state_dict_into_shards_factory(
        specs,
        get_storage_size=lambda tensor: tensor.bytes,
        filename_pattern=stem + "{suffix}" + WEIGHTS_SUFFIX,
        max_shard_size=shard_bytes,
    )
    files: list[FileLayout] = []
    slots: dict[str, Slot] = {}
    for file, names in split.filename_to_tensors.items():
        entries = []
        position = 0
        for spec in sorted((specs[name] for name in names), key=lambda spec: (RANK[spec.dtype], spec.name)):
            entries.append(TensorEntry(spec.name, spec.dtype, spec.shape, position, position + spec.bytes))
            position += spec.bytes
        header = encode_header(entries, FILE_METADATA)
        for entry in entries:
            slots[entry.name] = Slot(file, len(header) + entry.start, entry.bytes)
        files.append(FileLayout(file, header, len(header) + position))
    index = b""
    if split.is_sharded:
        content = {
            "metadata": {**(index_metadata or {}), **split.metadata},
            "weight_map": split.tensor_to_filename,
        }
        index = (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
    return Layout(tuple(files), slots, stem + INDEX_SUFFIX, index)
