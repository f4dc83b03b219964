"""Files that came over Xet: what hf_xet writes into the folder of a ``local://`` store, and how to read it.

hf_xet cuts a file into chunks, packs chunks into xorbs, and describes in shards which chunks make up a file. The store
of a ``local://`` address has both as files. The layouts are those of hf_xet 1.8.0; see xet-core's merkledb shard and
xorb formats: https://github.com/huggingface/xet-core.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import lz4.frame

_SHARD_HEADER = 48
_FILE = struct.Struct("<32sIIQ")
_TERM = struct.Struct("<32sIIII")
_RECORD = 48
_WITH_VERIFICATION = 0x80000000
_WITH_SHA256 = 0x40000000
_END = b"\xff" * 32
#: Before a chunk in a xorb: version, packed bytes, packing, bytes.
_CHUNK_HEADER = 8
_FOOTER = b"XETBLOB"
_PLAIN, _LZ4, _GROUPED_LZ4 = 0, 1, 2


class Term(NamedTuple):
    """A run of chunks of a xorb."""

    xorb: str
    size: int
    """Bytes of their content."""
    first: int
    last: int
    """The chunk after the run."""


class Chunk(NamedTuple):
    """A chunk in a xorb."""

    offset: int
    packed_size: int
    packing: int
    size: int
    """Bytes of its content."""


@dataclass(frozen=True)
class XetFile:
    """A file as a shard describes it."""

    xet_hash: str
    terms: tuple[Term, ...]

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return sum(term.size for term in self.terms)


class XetStore:
    """The folder of a ``local://`` store.

    Args:
        folder: its absolute path.
    """

    def __init__(self, folder: Path) -> None:
        self.address = f"local://{folder}"
        """What clients get as the address of the store."""
        self.files: dict[str, XetFile] = {}
        """Files by their sha256, of all shards that were read."""
        self._shards = folder / "xet" / "xorbs" / "shards"
        self._xorbs = folder / "xet" / "xorbs" / "xorbs"
        self._seen: dict[str, int] = {}
        self._known_chunks = lru_cache(maxsize=64)(self.chunks)

    def find(self, sha256: str) -> XetFile | None:
        """Return the file with this content, if all of its xorbs are stored."""
        self._read_new_shards()
        file = self.files.get(sha256)
        if file is None or not all(self.xorb_path(term.xorb).is_file() for term in file.terms):
            return None
        return file

    def read(self, file: XetFile, start: int, stop: int) -> Iterator[bytes]:
        """Return bytes of a file, a chunk at a time.

        Raises:
            OSError: a xorb cannot be read.
            RuntimeError: a chunk is damaged.
            ValueError: the same.
        """
        position = 0
        for term in file.terms:
            if position >= stop:
                return
            if position + term.size <= start:
                position += term.size
                continue
            for chunk in self._known_chunks(term.xorb)[term.first : term.last]:
                if position < stop and position + chunk.size > start:
                    yield self._unpack(term.xorb, chunk)[max(start - position, 0) : stop - position]
                position += chunk.size

    def xorb_path(self, xorb: str) -> Path:
        """Return the file of a xorb."""
        return self._xorbs / f"default.{xorb}"

    def chunks(self, xorb: str) -> tuple[Chunk, ...]:
        """Return the positions of the chunks in a xorb.

        Raises:
            OSError: the xorb cannot be read.
            ValueError: it is cut off.
        """
        chunks = []
        with self.xorb_path(xorb).open("rb") as stream:
            position = 0
            while (header := stream.read(_CHUNK_HEADER)) and not header.startswith(_FOOTER):
                if len(header) < _CHUNK_HEADER:
                    raise ValueError("a xorb is cut off")
                packed_size, size = (int.from_bytes(header[place : place + 3], "little") for place in (1, 5))
                position += _CHUNK_HEADER
                chunks.append(Chunk(position, packed_size, header[4], size))
                position += packed_size
                stream.seek(position)
        return tuple(chunks)

    def _unpack(self, xorb: str, chunk: Chunk) -> bytes:
        with self.xorb_path(xorb).open("rb") as stream:
            stream.seek(chunk.offset)
            data = stream.read(chunk.packed_size)
        if chunk.packing != _PLAIN:
            data = lz4.frame.LZ4FrameDecompressor().decompress(data, max_length=chunk.size)
        if chunk.packing == _GROUPED_LZ4:
            data = _ungroup(data)
        if len(data) != chunk.size:
            raise ValueError("a chunk is damaged")
        return data

    def _read_new_shards(self) -> None:
        for path in self._shards.glob("*.mdb"):
            # A shard that is being written is read again when it is complete.
            with suppress(FileNotFoundError, struct.error):
                written = path.stat().st_mtime_ns
                if self._seen.get(path.name) != written:
                    self._read_shard(path.read_bytes())
                    self._seen[path.name] = written

    def _read_shard(self, data: bytes) -> None:
        position = _SHARD_HEADER
        while True:
            raw, flags, count, _ = _FILE.unpack_from(data, position)
            position += _FILE.size
            if raw == _END:
                return
            terms = []
            for number in range(count):
                xorb, _, size, first, last = _TERM.unpack_from(data, position + number * _RECORD)
                terms.append(Term(_hash_text(xorb), size, first, last))
            position += count * _RECORD * (2 if flags & _WITH_VERIFICATION else 1)
            if flags & _WITH_SHA256:
                (sha256,) = struct.unpack_from("<32s", data, position)
                position += _RECORD
                self.files[_hash_text(sha256)] = XetFile(_hash_text(raw), tuple(terms))


def _ungroup(data: bytes) -> bytes:
    """Undo the grouping by four: it puts all first bytes of four first, then all second ones, and so on."""
    output = bytearray(len(data))
    position = 0
    for first in range(4):
        count = len(range(first, len(data), 4))
        output[first::4] = data[position : position + count]
        position += count
    return bytes(output)


def _hash_text(raw: bytes) -> str:
    """Print a hash as Xet does: four little-endian numbers of 64 bits."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", raw))
