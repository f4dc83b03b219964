"""A sha256 that stops, is written down, and continues."""

from __future__ import annotations

import ctypes
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.checkpoint import running_hash
from converter.checkpoint.running_hash import RunningSha256


def feed(checksum: RunningSha256, content: bytes) -> None:
    checksum.update(memoryview(bytearray(content)))


def test_this_machine_can_continue_a_sum() -> None:
    assert RunningSha256().save() is not None


@given(st.lists(st.binary(max_size=300), max_size=8), st.data())
def test_pieces_of_any_length_in_several_processes(pieces: list[bytes], data: st.DataObject) -> None:
    checksum, whole = RunningSha256(), b""
    for piece in pieces:
        feed(checksum, piece)
        whole += piece
        assert checksum.hexdigest() == hashlib.sha256(whole).hexdigest()
        if data.draw(st.booleans()):
            checksum = RunningSha256(checksum.save())
    assert checksum.hexdigest() == hashlib.sha256(whole).hexdigest()


def test_lengths_of_more_than_32_bits() -> None:
    """The length is in bits, in two words."""
    checksum, expected = RunningSha256(), hashlib.sha256()
    block = memoryview(bytearray(1 << 25))
    for _ in range(17):
        checksum.update(block)
        expected.update(block)
    checksum = RunningSha256(checksum.save())
    feed(checksum, b"end")
    expected.update(b"end")
    assert checksum.hexdigest() == expected.hexdigest()


@pytest.mark.parametrize("state", ["", "zz", "00" * 111, "00" * 112, "00" * 104 + "ff000000" + "20000000"])
def test_what_is_not_a_state_is_refused(state: str) -> None:
    """A number of waiting bytes that is too large would let the library write outside of the state."""
    with pytest.raises(ValueError, match=r"sha256|hexadecimal"):
        RunningSha256(state)


def test_without_a_library_it_works_and_cannot_be_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    state = RunningSha256().save()
    monkeypatch.setattr(running_hash, "_library", lambda: None)
    checksum = RunningSha256()
    feed(checksum, b"abc")
    assert checksum.hexdigest() == hashlib.sha256(b"abc").hexdigest()
    assert checksum.save() is None
    with pytest.raises(ValueError, match="on this machine"):
        RunningSha256(state)


@pytest.mark.parametrize("broken", ["writes past its end", "computes something else"])
def test_a_library_that_does_not_do_it_right_is_not_used(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        def __getattr__(self, name: str) -> Library:
            return self

        def __call__(self, state: object, *arguments: object) -> int:
            if broken == "writes past its end" and len(arguments) == 2:
                ctypes.memset(ctypes.addressof(state) + 112, 0, 8)  # type: ignore[arg-type]
            return 1

    monkeypatch.setattr(running_hash, "_candidates", lambda: iter([Library()]))
    running_hash._library.cache_clear()
    try:
        assert running_hash._library() is None
    finally:
        running_hash._library.cache_clear()
