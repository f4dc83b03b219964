"""The file of an adapter: read like every source, and refused if it is of a kind that cannot be added to weights."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.checkpoint.absent import pickle_error
from converter.checkpoint.checksum import file_sha256
from converter.checkpoint.dtypes import BITS, TORCH_NAMES
from converter.checkpoint.files import list_folder, read_bounded
from converter.checkpoint.header import Header, changed_since, parse_json_object, read_header
from converter.checkpoint.reader import TensorReader, ranges
from converter.checkpoint.source import SourceTensor
from converter.checkpoint.weights import PICKLE_SUFFIXES, WEIGHTS_SUFFIX
from converter.conversion.adapters.choice import AdapterChoice
from converter.errors import AdapterError, MalformedCheckpoint, MissingInput, first_few, unreadable
from converter.libraries import load_library

if TYPE_CHECKING:
    import torch

#: Dtypes of adapters; in float64 or float8, nobody publishes them, and diffusers' converters were not made for them.
DTYPES = ("F32", "F16", "BF16")
#: Dtypes of alphas, which are numbers of Python to some programs.
ALPHA_DTYPES = (*DTYPES, "F64", "I64", "I32")
#: The largest file, in bytes; rank 256 for all layers of a model of 12 billion parameters takes about 4 GB as float32.
MAXIMUM_BYTES = 16 << 30
#: The largest ``adapter_config.json``; a pattern for each of some thousand modules takes 200 kB.
MAXIMUM_CONFIG_BYTES = 1 << 20
#: The most tensors; the largest models have some thousand layers, with at most four tensors for each.
MAXIMUM_TENSORS = 100_000
#: Numbers that are examined at a time.
_PIECE = 1 << 20
#: Where diffusers writes PEFT's config into the metadata of a file (``LORA_ADAPTER_METADATA_KEY``).
_CONFIG_KEY = "lora_adapter_metadata"
#: PEFT's own config, beside its weights.
_CONFIG_NAME = "adapter_config.json"
#: Kinds of adapters that are not a product of two factors alone, by what their tensors are called.
_OTHER_KINDS = (
    (re.compile(r"[._]lokr_"), "LoKr"),
    (re.compile(r"[._]hada_"), "LoHa"),
    (re.compile(r"[._](oft_|boft_)|\.oft_blocks"), "OFT"),
    (re.compile(r"dora_scale|lora_magnitude_vector"), "DoRA"),
    (re.compile(r"\.lora_mid\."), "LoCon with a middle factor"),
    (re.compile(r"lora_embedding_"), "LoRA of embeddings"),
    (re.compile(r"\.(ia3_l|on_input)\b"), "IA3"),
    (re.compile(r"\.glora_|\.(a1|a2|b1|b2)\.weight$"), "GLoRA"),
)
_ANY_FACTOR = re.compile(r"lora[._]?(A|B|down|up|linear_layer)|_lora[0-9]*\.(down|up)")
_INTACT = "Get an intact adapter."
_SUPPORTED = "Only LoRA is supported: two factors for each module, with or without alpha and bias."


@dataclass(frozen=True)
class AdapterFile:
    """An adapter whose file was read and examined, and of which no tensor is held."""

    choice: AdapterChoice
    header: Header
    sha256: str
    """Of the whole file."""
    tensors: Mapping[str, SourceTensor]
    """By the names in the file, in the order of its data."""
    config: Mapping[str, Any] | None
    """PEFT's config as diffusers writes it into the file, with a prefix for each component; None without one."""
    neighbour: bytes | None
    """Content of ``adapter_config.json`` beside the file, which only Lens' loader reads; None without one."""

    @property
    def file(self) -> Path:
        """Where it is."""
        return self.choice.file

    @property
    def config_file(self) -> Path:
        """Where ``adapter_config.json`` would be."""
        return self.file.with_name(_CONFIG_NAME)

    @property
    def identity(self) -> list[Any]:
        """What of this adapter decides the output, for the journal; the order of adapters does, too.

        The neighbour counts even where no loader reads it.
        """
        return [self.sha256, self.choice.scale, self.neighbour_sha256]

    @property
    def neighbour_sha256(self) -> str:
        """Of ``adapter_config.json``; empty without one."""
        return "" if self.neighbour is None else hashlib.sha256(self.neighbour).hexdigest()

    def neighbour_config(self) -> dict[str, Any] | None:
        """Parse ``adapter_config.json``; None without one.

        Raises:
            MalformedCheckpoint: it is not a JSON object.
        """
        if self.neighbour is None:
            return None
        return parse_json_object(self.neighbour, self.config_file, "it")

    def refuse(self, reason: str, hint: str | None = None, *, tensor: str | None = None) -> AdapterError:
        """Return the error that names this file."""
        return AdapterError(self.file, reason, hint, tensor=tensor)


def open_adapter(choice: AdapterChoice) -> AdapterFile:
    """Read the file of an adapter: its header, its checksum, and whether all of its numbers are finite.

    Raises:
        MissingInput: the file does not exist, is a folder, or cannot be read.
        MalformedCheckpoint: it is not a safetensors file, breaks the format, or was changed meanwhile.
        UnsupportedCheckpoint: its name says that it may contain a pickle.
        AdapterError: it is no LoRA, of another kind, empty, too large, or contains other dtypes, NaN or infinity.
    """
    file = choice.file
    if file.suffix in PICKLE_SUFFIXES:
        raise pickle_error(file)
    if file.is_dir():
        found = first_few([path.name for path in list_folder(file) if path.suffix == WEIGHTS_SUFFIX])
        raise MissingInput(
            file, "is a folder", f"Name the file in it: {found}." if found else "Name a safetensors file."
        )
    header = read_header(file)
    _refuse_by_header(header)
    tensors = {
        name: SourceTensor(entry, file, header.data_start + entry.start) for name, entry in header.tensors.items()
    }
    try:
        sha256 = file_sha256(file)
    except OSError as error:
        raise unreadable(file, error) from error
    _refuse_numbers(tensors)
    if sha256 is None or changed_since(header):
        hint = "Wait until no program writes to it, then run the command again."
        raise MalformedCheckpoint(file, "was changed while it was read", hint)
    text = header.metadata.get(_CONFIG_KEY)
    config = parse_json_object(text.encode(), file, f"its {_CONFIG_KEY}") if text else None
    return AdapterFile(choice, header, sha256, tensors, config, _read_neighbour(file))


def read_tensor(tensor: SourceTensor, reader: TensorReader) -> torch.Tensor:
    """A tensor of an adapter or of a model, in the dtype of its file. Raises what ``TensorReader.read`` raises."""
    torch = load_library("torch")
    return torch.from_numpy(reader.read_all(tensor)).view(dtype_of(tensor)).reshape(tensor.entry.shape)


def dtype_of(tensor: SourceTensor) -> torch.dtype:
    """torch's name of a tensor's dtype."""
    return getattr(load_library("torch"), TORCH_NAMES[tensor.entry.dtype])


def _read_neighbour(file: Path) -> bytes | None:
    neighbour = file.with_name(_CONFIG_NAME)
    if not neighbour.is_file():
        return None
    return read_bounded(neighbour, MAXIMUM_CONFIG_BYTES, MalformedCheckpoint)


def _refuse_by_header(header: Header) -> None:
    """Refuse what the header alone shows to be something else."""
    file = header.file
    if not header.tensors:
        raise AdapterError(file, "contains no tensors", _INTACT)
    if header.file_bytes > MAXIMUM_BYTES or len(header.tensors) > MAXIMUM_TENSORS:
        size = f"{header.file_bytes} bytes and {len(header.tensors)} tensors"
        raise AdapterError(file, f"is too large for an adapter: {size}", "Give an adapter, not a model.")
    for pattern, kind in _OTHER_KINDS:
        named = [name for name in header.tensors if pattern.search(name)]
        if named:
            raise AdapterError(file, f"{kind} is not supported: {first_few(named)}", _SUPPORTED)
    if not any(_ANY_FACTOR.search(name) for name in header.tensors):
        raise AdapterError(file, f"is not a LoRA adapter: {first_few(list(header.tensors))}", _SUPPORTED)
    for name, entry in header.tensors.items():
        known = ALPHA_DTYPES if _is_alpha(name) else DTYPES
        if entry.dtype not in known:
            reason = f"its dtype {entry.dtype} is none of {', '.join(known)}"
            raise AdapterError(file, reason, "Save the adapter in one of these.", tensor=name)
        if entry.bytes == 0:
            raise AdapterError(file, f"its shape {list(entry.shape)} has no numbers", _INTACT, tensor=name)
        if _is_alpha(name) and math.prod(entry.shape) > 1:
            raise AdapterError(file, f"its shape is {list(entry.shape)}, not that of a number", _INTACT, tensor=name)


def _refuse_numbers(tensors: Mapping[str, SourceTensor]) -> None:
    """Refuse numbers that are not finite, and negative alphas, which some converters of diffusers double for ever."""
    with TensorReader() as reader:
        for name, tensor in tensors.items():
            pieces = _pieces(tensor, reader)
            if _is_alpha(name):
                if not all(piece.isfinite().all() and (piece >= 0).all() for piece in pieces):
                    raise AdapterError(tensor.file, "is not a positive number", _INTACT, tensor=name)
            elif not all(map(is_finite, pieces)):
                raise AdapterError(tensor.file, "contains NaN or infinity", _INTACT, tensor=name)


def is_finite(numbers: torch.Tensor) -> bool:
    """Whether no number is NaN or infinity."""
    # The least and the largest take a tenth of the time that asking for each number takes; NaN is both.
    least, largest = numbers.aminmax()
    return bool(least.isfinite() & largest.isfinite())


def is_zero(tensor: SourceTensor, reader: TensorReader) -> bool:
    """Whether all numbers of a tensor are zero. Raises what ``TensorReader.read`` raises."""
    return not any(piece.any() for piece in _pieces(tensor, reader))


def _pieces(tensor: SourceTensor, reader: TensorReader) -> Iterator[torch.Tensor]:
    import numpy as np

    torch = load_library("torch")
    dtype = getattr(torch, TORCH_NAMES[tensor.entry.dtype])
    for start, stop in ranges(tensor.entry.bytes, _PIECE * BITS[tensor.entry.dtype] // 8):
        piece = np.empty(stop - start, np.uint8)
        reader.read(tensor, start, piece)
        yield torch.from_numpy(piece).view(dtype)


def _is_alpha(name: str) -> bool:
    return name.endswith("alpha")
