"""A sha256 that can stop, be written down, and continue in another process.

``hashlib`` does not give its state away. OpenSSL's own functions work on a structure in memory (``SHA256_CTX`` in
``openssl/sha.h``, the same in all versions), which can be copied out and in. They use the same instructions of the
processor as ``hashlib`` does. Where the library cannot be found, the sum works and cannot be saved.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import hashlib
import struct
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from typing import Any

#: Bytes of ``SHA256_CTX``: eight words of state, two of the length in bits, sixteen of input that waits for a full
#: block, the number of bytes that wait, and the length of the digest.
_STATE_BYTES = 112
_DIGEST_BYTES = 32


class RunningSha256:
    """The sha256 of bytes that arrive in order.

    Args:
        state: where an earlier one stopped, as ``save`` returned it; None to begin.

    Raises:
        ValueError: the state is not one, or this machine cannot continue from one.
    """

    def __init__(self, state: str | None = None) -> None:
        self._library = _library()
        self._plain = hashlib.sha256()
        if self._library is None:
            if state is not None:
                raise ValueError("no library continues a sha256 on this machine")
            return
        self._state = ctypes.create_string_buffer(_STATE_BYTES)
        self._library.SHA256_Init(self._state)
        if state is not None:
            self._state.raw = _checked(bytes.fromhex(state))

    def update(self, data: memoryview) -> None:
        """Take the next bytes, which must be writable memory; other threads run meanwhile."""
        if self._library is None:
            self._plain.update(data)
        elif data.nbytes:
            self._library.SHA256_Update(self._state, ctypes.byref(ctypes.c_char.from_buffer(data)), data.nbytes)

    def save(self) -> str | None:
        """The state in hexadecimal digits, for another one; None where that cannot be had."""
        return None if self._library is None else self._state.raw.hex()

    def hexdigest(self) -> str:
        """The sum of all bytes so far, in hexadecimal digits."""
        if self._library is None:
            return self._plain.hexdigest()
        # Finishing changes the state.
        copy = ctypes.create_string_buffer(self._state.raw, _STATE_BYTES)
        digest = ctypes.create_string_buffer(_DIGEST_BYTES)
        self._library.SHA256_Final(digest, copy)
        return digest.raw.hex()


def _checked(state: bytes) -> bytes:
    """A state that the library can use without writing outside of it.

    Raises:
        ValueError: it is not one.
    """
    if len(state) != _STATE_BYTES:
        raise ValueError("not the state of a sha256")
    low, high, waiting, digest_bytes = *struct.unpack_from("2I", state, 32), *struct.unpack_from("2I", state, 104)
    if (low + (high << 32)) // 8 % 64 != waiting or digest_bytes != _DIGEST_BYTES:
        raise ValueError("not the state of a sha256")
    return state


@cache
def _library() -> Any:
    """OpenSSL's library, if one is there whose functions compute and continue a sum correctly; else None."""
    for library in _candidates():
        with suppress(AttributeError):
            for function in (library.SHA256_Init, library.SHA256_Update, library.SHA256_Final):
                function.restype = ctypes.c_int
            library.SHA256_Update.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
            if _works(library):
                return library
    return None


def _candidates() -> Iterator[Any]:
    """The library that Python itself has loaded, then that of the system."""
    with suppress(AttributeError, ImportError, OSError):
        # Functions of the libraries that an extension is linked with are found through it. One that is built in has no
        # file.
        import _hashlib

        yield ctypes.CDLL(_hashlib.__file__)
    with suppress(OSError):
        name = ctypes.util.find_library("crypto")
        if name:
            yield ctypes.CDLL(name)


def _works(library: Any) -> bool:
    """Whether a sum that is copied in the middle is that of ``hashlib``, and nothing is written past the structure."""
    data, guard = b"lensconv" * 100, b"\xa5" * 64
    state = ctypes.create_string_buffer(_STATE_BYTES + len(guard))
    ctypes.memset(state, 0xA5, len(state))
    library.SHA256_Init(state)
    library.SHA256_Update(state, data, 333)
    other = ctypes.create_string_buffer(state.raw, len(state))
    library.SHA256_Update(other, data[333:], len(data) - 333)
    digest = ctypes.create_string_buffer(_DIGEST_BYTES)
    library.SHA256_Final(digest, other)
    return other.raw[_STATE_BYTES:] == guard and digest.raw == hashlib.sha256(data).digest()
