"""Reading LZ4 frames, in which hf_xet packs chunks.

Chunks are 128 KiB at most, and plain reads of files that came over Xet are rare here, so plain Python does: about
35 MB/s for weights. Format: https://github.com/lz4/lz4/blob/dev/doc/lz4_Frame_format.md and lz4_Block_format.md.
"""

from __future__ import annotations

_MAGIC = b"\x04\x22\x4d\x18"
_BLOCK_CHECKSUM = 0x10
_CONTENT_SIZE = 0x08
_CONTENT_CHECKSUM = 0x04
_DICTIONARY = 0x01


def decompress_frame(data: bytes, limit: int) -> bytes:
    """The content of one frame.

    Args:
        data: the frame.
        limit: bytes that the content may have.

    Raises:
        ValueError: it is no frame, it is cut off, or the content is longer.
    """
    if data[:4] != _MAGIC or len(data) < 7:
        raise ValueError("no LZ4 frame")
    flags = data[4]
    position = 7 + (8 if flags & _CONTENT_SIZE else 0) + (4 if flags & _DICTIONARY else 0)
    output = bytearray()
    try:
        while size := int.from_bytes(data[position : position + 4], "little"):
            position += 4
            is_plain, size = size >> 31, size & 0x7FFFFFFF
            block = data[position : position + size]
            if len(block) != size:
                raise ValueError("an LZ4 frame is cut off")
            if is_plain:
                output += block
            else:
                _decompress_block(block, output, limit)
            if len(output) > limit:
                raise ValueError("an LZ4 frame is longer than it says")
            position += size + (4 if flags & _BLOCK_CHECKSUM else 0)
    except IndexError as error:
        raise ValueError("an LZ4 block is cut off") from error
    return bytes(output)


def _decompress_block(block: bytes, output: bytearray, limit: int) -> None:
    """Append the content of a block; matches may reach back into earlier ones.

    Raises:
        ValueError: a match reaches before the start, or the content is longer than allowed.
        IndexError: the block is cut off.
    """
    position, end = 0, len(block)
    while position < end:
        token = block[position]
        literals, position = _length(block, position + 1, token >> 4)
        output += block[position : position + literals]
        position += literals
        if position >= end:
            return
        distance = block[position] | block[position + 1] << 8
        length, position = _length(block, position + 2, token & 15)
        length += 4
        start = len(output) - distance
        if distance == 0 or start < 0 or len(output) + length > limit:
            raise ValueError("a match of an LZ4 block makes no sense")
        if distance >= length:
            output += output[start : start + length]
        else:
            pattern = bytes(output[start:])
            output += (pattern * (length // distance + 1))[:length]


def _length(block: bytes, position: int, nibble: int) -> tuple[int, int]:
    """A length whose first four bits are given, and the place after it."""
    length = nibble
    if nibble == 15:
        while True:
            byte = block[position]
            position += 1
            length += byte
            if byte != 255:
                break
    return length, position
