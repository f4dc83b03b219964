"""Files that came over Xet: what hf_xet leaves in the folder of a ``local://`` store, and how to read it.

hf_xet cuts a file into chunks, packs chunks into xorbs, and describes in shards of which chunks a file consists. The
store of a ``local://`` address has both as files. Layouts as hf_xet 1.8.0 writes them, see xet-core's merkledb shard
and xorb formats: https://github.com/huggingface/xet-core.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

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
#: Bytes that are read before they are handed on.
_PIECE_BYTES = 2**20
#: Bytes of a shard, which the Hub limits to 64 MiB.
_SHARD_LIMIT = 256 * 2**20


@dataclass(frozen=True)
class Term:
    """A run of chunks of a xorb."""

    xorb: str
    size: int
    first: int
    last: int
    """The chunk after the run."""


@dataclass(frozen=True)
class XetFile:
    """A file as a shard describes it."""

    xet_hash: str
    terms: tuple[Term, ...]
    described_at: int
    """When the shard was written, in nanoseconds."""

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
        self.folder = folder
        self._shards = folder / "xet" / "xorbs" / "shards"
        self._xorbs = folder / "xet" / "xorbs" / "xorbs"
        self._seen: dict[str, int] = {}
        self._files: dict[str, XetFile] = {}
        self._chunks = lru_cache(maxsize=64)(self._read_chunks)

    @property
    def address(self) -> str:
        """What clients get as the address of the store."""
        return f"local://{self.folder}"

    def find(self, sha256: str) -> XetFile | None:
        """The file with this content, if all of its xorbs are there."""
        self._read_new_shards()
        file = self._files.get(sha256)
        if file is None or not all(self._xorb(term.xorb).is_file() for term in file.terms):
            return None
        return file

    def read(self, file: XetFile, start: int, stop: int) -> Iterator[bytes]:
        """Bytes of a file, in pieces.

        Raises:
            OSError: a xorb cannot be read.
            ValueError: what is stored is damaged.
        """
        # Chunks are short, and each piece goes from thread to thread.
        piece = bytearray()
        for content in self._chunk_contents(file, start, stop):
            piece += content
            if len(piece) >= _PIECE_BYTES:
                yield bytes(piece)
                piece.clear()
        if piece:
            yield bytes(piece)

    def _chunk_contents(self, file: XetFile, start: int, stop: int) -> Iterator[bytes]:
        position = 0
        for term in file.terms:
            if position >= stop:
                return
            if position + term.size <= start:
                position += term.size
                continue
            for packed_at, packed, packing, size in self._chunks(term.xorb)[term.first : term.last]:
                if position < stop and position + size > start:
                    content = self._unpack(term.xorb, packed_at, packed, packing, size)
                    yield content[max(start - position, 0) : stop - position]
                position += size

    def flip_byte(self, file: XetFile) -> None:
        """Damage the content: change the last byte of its first chunk."""
        term = file.terms[0]
        packed_at, packed, _, _ = self._chunks(term.xorb)[term.first]
        path = self._xorb(term.xorb)
        path.chmod(0o600)
        flip_byte(path, packed_at + packed - 1)

    def _xorb(self, xorb: str) -> Path:
        return self._xorbs / f"default.{xorb}"

    def _unpack(self, xorb: str, packed_at: int, packed: int, packing: int, size: int) -> bytes:
        with self._xorb(xorb).open("rb") as stream:
            stream.seek(packed_at)
            data = stream.read(packed)
        if packing != _PLAIN:
            # The compiler behind it takes a third of a second, which a Hub that is never asked for this need not wait.
            from converter.rehearsal.lz4 import decompress_frame

            data = decompress_frame(data, size)
            if packing == _GROUPED_LZ4:
                data = _ungroup(data)
        if len(data) != size:
            raise ValueError("a chunk is damaged")
        return data

    def _read_chunks(self, xorb: str) -> tuple[tuple[int, int, int, int], ...]:
        """Of each chunk: where its content is, packed bytes, packing, bytes."""
        chunks = []
        with self._xorb(xorb).open("rb") as stream:
            position = 0
            while (header := stream.read(_CHUNK_HEADER)) and not header.startswith(_FOOTER):
                if len(header) < _CHUNK_HEADER:
                    raise ValueError("a xorb is cut off")
                packed = int.from_bytes(header[1:4], "little")
                chunks.append((position + _CHUNK_HEADER, packed, header[4], int.from_bytes(header[5:8], "little")))
                position += _CHUNK_HEADER + packed
                stream.seek(position)
        return tuple(chunks)

    def _read_new_shards(self) -> None:
        with suppress(FileNotFoundError), os.scandir(self._shards) as entries:
            for entry in entries:
                if not entry.name.endswith(".mdb"):
                    continue
                status = entry.stat()
                if self._seen.get(entry.name) == status.st_mtime_ns or status.st_size > _SHARD_LIMIT:
                    continue
                # One that is being written is read once more, when it is complete.
                with suppress(struct.error):
                    self._read_shard(Path(entry.path).read_bytes(), status.st_mtime_ns)
                    self._seen[entry.name] = status.st_mtime_ns

    def _read_shard(self, data: bytes, written_at: int) -> None:
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
                self._files[_hash_text(sha256)] = XetFile(_hash_text(raw), tuple(terms), written_at)


def flip_byte(path: Path, offset: int) -> None:
    """Change every bit of a byte of a file."""
    with path.open("r+b") as stream:
        stream.seek(offset)
        byte = stream.read(1)
        stream.seek(offset)
        stream.write(bytes([byte[0] ^ 0xFF]))


def _ungroup(data: bytes) -> bytes:
    """Undo the grouping by four: all first bytes of four stand first, then all second ones, and so on."""
    output = bytearray(len(data))
    position = 0
    for place in range(4):
        count = len(range(place, len(data), 4))
        output[place::4] = data[position : position + count]
        position += count
    return bytes(output)


def _hash_text(raw: bytes) -> str:
    """A hash as Xet prints it: four little-endian numbers of 64 bits."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", raw))
