"""Reading LZ4 frames, in which hf_xet packs chunks.

Format: https://github.com/lz4/lz4/blob/dev/doc/lz4_Frame_format.md and lz4_Block_format.md. Blocks are unpacked by
compiled code, as plain Python unpacks weights at 35 MB/s, and a proof of a publication reads hundreds of megabytes.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numba import njit
from numpy.typing import NDArray

_MAGIC = b"\x04\x22\x4d\x18"
_BLOCK_CHECKSUM = 0x10
_CONTENT_SIZE = 0x08
_DICTIONARY = 0x01
#: What the compiled code answers in place of a length, as it raises nothing.
_CUT_OFF, _TOO_LONG, _NO_MATCH = -1, -2, -3
_REASONS = {
    _CUT_OFF: "an LZ4 block is cut off",
    _TOO_LONG: "an LZ4 frame is longer than it says",
    _NO_MATCH: "a match of an LZ4 block makes no sense",
}


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
    # Blocks share it, as matches may reach back into earlier ones.
    output = np.empty(limit, np.uint8)
    done = 0
    while size := int.from_bytes(data[position : position + 4], "little"):
        position += 4
        is_plain, size = size >> 31, size & 0x7FFFFFFF
        block = np.frombuffer(data[position : position + size], np.uint8)
        if len(block) != size:
            raise ValueError("an LZ4 frame is cut off")
        if not is_plain:
            done = int(_decompress_block(block, output, done))
            if done < 0:
                raise ValueError(_REASONS[done])
        elif done + size > limit:
            raise ValueError(_REASONS[_TOO_LONG])
        else:
            output[done : done + size] = block
            done += size
        position += size + (4 if flags & _BLOCK_CHECKSUM else 0)
    return output[:done].tobytes()


# numba keeps compiled code in __pycache__ beside this file, as Python does; where that cannot be written, it would
# look for other places. It checks no index by itself: whatever comes from a block is held against the ends here.
_compiled = njit(nogil=True, cache=os.access(Path(__file__).parent, os.W_OK))


@_compiled  # type: ignore[untyped-decorator]
def _read_length(block: NDArray[np.uint8], position: int, nibble: int) -> tuple[int, int]:
    """A length that begins with four bits, and the place after it; ``_CUT_OFF`` where the block ends in it."""
    length, more = nibble, 255 if nibble == 15 else 0
    while more == 255:
        if position >= block.size:
            return _CUT_OFF, position
        # For numba, sums of unsigned and signed integers are floats.
        more = int(np.int64(block[position]))
        position += 1
        length += more
    return length, position


@_compiled  # type: ignore[untyped-decorator]
def _decompress_block(block: NDArray[np.uint8], output: NDArray[np.uint8], done: int) -> int:
    """Put the content of a block behind what is done; gives what is done then, or what is wrong."""
    position, end, limit = 0, block.size, output.size
    while position < end:
        token = int(np.int64(block[position]))
        position += 1
        literals, position = _read_length(block, position, token >> 4)
        if literals < 0 or literals > end - position:
            return _CUT_OFF
        if literals > limit - done:
            return _TOO_LONG
        for step in range(literals):
            output[done + step] = block[position + step]
        position += literals
        done += literals
        # The last sequence is literals alone.
        if position == end:
            return done
        if end - position < 2:
            return _CUT_OFF
        distance = int(block[position]) | int(block[position + 1]) << 8
        length, position = _read_length(block, position + 2, token & 15)
        if length < 0:
            return _CUT_OFF
        length += 4
        if distance == 0 or distance > done:
            return _NO_MATCH
        if length > limit - done:
            return _TOO_LONG
        # Byte by byte: a match may reach into what it writes.
        for step in range(length):
            output[done + step] = output[done + step - distance]
        done += length
    return done
