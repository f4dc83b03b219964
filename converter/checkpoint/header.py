"""Reading and writing the header of a safetensors file, trusting nothing.

A file is: eight bytes that give the length of the header (little endian), the header (a JSON object that maps each
tensor's name to its dtype, shape and offsets in the data, and ``__metadata__`` to strings), then the data. The parser
accepts a file only if every byte belongs to something: no hole, no overlap, no byte too few or too many. The tensors
of an accepted file can be sliced without a further check.

It accepts no file that safetensors 0.8 refuses. The other way round, it refuses on purpose what readers could
understand differently or could not hold: repeated names, which the format forbids, entries that are not objects of
three values, dtypes that are not strings, more than 64 dimensions, and sizes of 2^63 and more.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from converter.checkpoint.dtypes import BITS, tensor_bytes
from converter.checkpoint.file_kinds import KIND_BYTES, foreign_kind, weights_kind
from converter.errors import MalformedCheckpoint, MissingInput, unreadable

#: The length field in front of the header.
PREFIX_BYTES = 8
#: Longest header that safetensors itself reads (``MAX_HEADER_SIZE`` in its source).
MAXIMUM_HEADER_BYTES = 100_000_000
#: What JSON allows around a value.
_WHITESPACE = b" \t\n\r"
#: More dimensions than any framework has; keeps the products of hostile shapes short.
MAXIMUM_DIMENSIONS = 64


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor as the header of its file describes it."""

    name: str
    dtype: str
    """The safetensors name of the dtype, for example ``BF16``."""
    shape: tuple[int, ...]
    start: int
    """First byte, counted from the start of the data."""
    end: int
    """The byte after the last one, counted from the start of the data."""

    @property
    def bytes(self) -> int:
        """Bytes of storage."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Header:
    """The parsed header of one safetensors file."""

    file: Path
    metadata: dict[str, str]
    tensors: dict[str, TensorEntry]
    """The tensors by name, in the order of the data."""
    data_start: int
    """Bytes in front of the data: the length field and the header."""
    sha256: str
    """Checksum of the length field and the header, in hexadecimal digits."""
    stamp: tuple[int, ...] = ()
    """Size in bytes and time of the last change in nanoseconds when the header was read; empty when it did not come
    from a file. The inode is left out: file systems in user space may change it at any time."""

    @property
    def file_bytes(self) -> int:
        """Size of the whole file."""
        return self.data_start + max((entry.end for entry in self.tensors.values()), default=0)


def read_header(file: Path) -> Header:
    """Read and check the header of a safetensors file, and none of its data.

    Raises:
        MissingInput: the file does not exist, is not a regular file, or cannot be read.
        MalformedCheckpoint: the file breaks the format.
    """
    try:
        # A pipe would block on open, and it cannot be read twice.
        if not stat.S_ISREG(file.stat().st_mode):
            raise MissingInput(file, "is not a regular file", "Check the path.")
        with file.open("rb") as stream:
            status = os.fstat(stream.fileno())
            size = status.st_size
            content = stream.read(KIND_BYTES)
            end = PREFIX_BYTES + header_length(content, size, file)
            content = content[:end] + stream.read(max(end - len(content), 0))
    except OSError as error:
        raise unreadable(file, error) from error
    return replace(parse_header(content, size, file), stamp=_stamp(status))


def changed_since(header: Header) -> bool:
    """Whether a file has been changed, replaced or removed since its header was read."""
    return file_stamp(header.file) != header.stamp


def file_stamp(file: Path) -> tuple[int, ...]:
    """Size in bytes and time of the last change in nanoseconds, as in a header; empty if the file does not exist."""
    try:
        return _stamp(file.stat())
    except OSError:
        return ()


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_size, status.st_mtime_ns


def header_length(beginning: bytes, file_bytes: int, file: Path) -> int:
    """The length of the header, checked against the size of the file.

    Args:
        beginning: the first bytes of the file; ``KIND_BYTES`` of them show what it is if not a safetensors file.
        file_bytes: size of the whole file.
        file: where it came from, for messages.

    Raises:
        MalformedCheckpoint: it does not fit.
    """
    if min(file_bytes, len(beginning)) < PREFIX_BYTES:
        reason = f"is {file_bytes} bytes long; a safetensors file has at least {PREFIX_BYTES}"
        raise _not_safetensors(beginning, file, reason)
    length = int.from_bytes(beginning[:PREFIX_BYTES], "little")
    if length > MAXIMUM_HEADER_BYTES:
        reason = f"claims a header of {length} bytes; this is not a safetensors file"
        raise _not_safetensors(beginning, file, reason)
    if PREFIX_BYTES + length > file_bytes:
        reason = f"claims a header of {length} bytes, but the file ends at byte {file_bytes}"
        raise _not_safetensors(beginning, file, reason)
    return length


def _not_safetensors(beginning: bytes, file: Path, reason: str) -> MalformedCheckpoint:
    """The error for a file that has no header: it names what the file is, else the reason."""
    kind = weights_kind(beginning[:KIND_BYTES])
    if kind is None:
        return MalformedCheckpoint(file, reason)
    return MalformedCheckpoint(file, f"should be a safetensors file, but is {kind.name}", kind.hint)


def parse_header(content: bytes, file_bytes: int, file: Path) -> Header:
    """Parse the bytes of a header.

    Args:
        content: the first bytes of the file: the length field and the header.
        file_bytes: size of the whole file.
        file: where it came from, for messages.

    Raises:
        MalformedCheckpoint: something breaks the format.
    """
    length = header_length(content, file_bytes, file)
    data_start = PREFIX_BYTES + length
    body = content[PREFIX_BYTES:data_start]
    if len(body) != length:
        raise MalformedCheckpoint(file, f"ends inside its header, after {len(body)} of {length} bytes")
    if not body.lstrip(_WHITESPACE).startswith(b"{"):
        reason = "its header does not start with '{'; this is not a safetensors file"
        raise _not_safetensors(content, file, reason)
    parsed = parse_json_object(body, file, what="the header")
    metadata = _parse_metadata(parsed.pop("__metadata__", None), file)
    entries = sorted(
        (_parse_entry(name, value, file) for name, value in parsed.items()),
        key=lambda entry: (entry.start, entry.end),
    )
    position = 0
    for entry in entries:
        if entry.start != position:
            kind = "overlaps the tensor before it" if entry.start < position else "leaves a gap before it"
            raise MalformedCheckpoint(file, f"starts at byte {entry.start} of the data and {kind}", tensor=entry.name)
        position = entry.end
    data_bytes = file_bytes - data_start
    if position != data_bytes:
        state = "is cut short" if data_bytes < position else "has trailing bytes"
        raise MalformedCheckpoint(file, f"{state}: its tensors take {position} bytes, its data has {data_bytes}")
    return Header(
        file=file,
        metadata=metadata,
        tensors={entry.name: entry for entry in entries},
        data_start=data_start,
        sha256=hashlib.sha256(content[:data_start]).hexdigest(),
    )


def parse_json_object(content: bytes, file: Path, what: str) -> dict[str, Any]:
    """Parse bytes that must be one JSON object without repeated keys.

    Raises:
        MalformedCheckpoint: they do not.
    """

    def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            repeated, _ = Counter(key for key, _ in pairs).most_common(1)[0]
            raise MalformedCheckpoint(file, f"{what} names {repeated} twice")
        return result

    try:
        parsed = json.loads(content.decode("utf-8"), object_pairs_hook=refuse_duplicates, parse_int=_parse_integer)
    except UnicodeDecodeError as error:
        raise _not_json(content, file, f"{what} is not UTF-8 text (byte {error.start})") from error
    except ValueError as error:
        raise _not_json(content, file, f"{what} is not JSON: {error}") from error
    except RecursionError as error:
        raise MalformedCheckpoint(file, f"{what} is nested too deeply") from error
    if not isinstance(parsed, dict):
        raise MalformedCheckpoint(file, f"{what} is a JSON {type(parsed).__name__}, not an object")
    return parsed


def _not_json(content: bytes, file: Path, reason: str) -> MalformedCheckpoint:
    """The error for bytes that are not JSON: it names what the file is, else the reason."""
    kind = foreign_kind(content[:KIND_BYTES])
    if kind is None:
        return MalformedCheckpoint(file, reason)
    return MalformedCheckpoint(file, f"should be JSON, but is {kind.name}", kind.hint)


def _parse_integer(text: str) -> int | float:
    # Minus zero is a float to safetensors, and to Python an integer.
    return -0.0 if text == "-0" else int(text)


def _parse_metadata(value: Any, file: Path) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise MalformedCheckpoint(file, "__metadata__ must map names to strings")
    if not _is_unicode("".join((*value, *value.values()))):
        raise MalformedCheckpoint(file, "its __metadata__ is not valid Unicode")
    return value


def _is_unicode(text: str) -> bool:
    """Whether text has no lone surrogates, which JSON can escape and UTF-8 cannot encode."""
    return not re.search("[\ud800-\udfff]", text)


def _parse_entry(name: str, value: Any, file: Path) -> TensorEntry:
    def fail(reason: str) -> MalformedCheckpoint:
        return MalformedCheckpoint(file, reason, tensor=name)

    if not _is_unicode(name):
        raise fail("its name is not valid Unicode")
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise fail("its entry must have dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise fail(f"its dtype {dtype} is not a dtype of safetensors")
    if not _is_list_of_sizes(shape) or len(shape) > MAXIMUM_DIMENSIONS:
        raise fail(f"its shape must be a list of at most {MAXIMUM_DIMENSIONS} sizes, none negative")
    if not _is_list_of_sizes(offsets) or len(offsets) != 2:
        raise fail("its data_offsets must be two positions, neither negative")
    start, end = offsets
    elements = 1
    for size in shape:
        # safetensors multiplies from the left in 64 bits, and refuses what leaves them even if a zero follows.
        elements *= size
        if elements >= 1 << 64:
            raise fail(f"its shape {shape} has more elements than 64 bits can count")
    expected = tensor_bytes(dtype, tuple(shape))
    if expected is None:
        raise fail(f"its shape {shape} does not fill whole bytes as {dtype}")
    if end - start != expected:
        raise fail(f"its shape {shape} as {dtype} takes {expected} bytes, but its offsets span {end - start}")
    return TensorEntry(name, dtype, tuple(shape), start, end)


def _is_list_of_sizes(value: Any) -> bool:
    # bool is a subclass of int, and sizes beyond 64 bits cannot be real.
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def encode_header(entries: Iterable[TensorEntry], metadata: dict[str, str]) -> bytes:
    """The bytes in front of the data, exactly as safetensors 0.8 writes them.

    Compact JSON, ``__metadata__`` first, then the tensors in the order given, padded with spaces so that the data
    starts at a multiple of eight bytes.
    """
    content: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    for entry in entries:
        content[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [entry.start, entry.end],
        }
    body = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    body += b" " * (-len(body) % 8)
    return len(body).to_bytes(PREFIX_BYTES, "little") + body
