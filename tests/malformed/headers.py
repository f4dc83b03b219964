"""Headers: one file in a folder without a config."""

from __future__ import annotations

import os
import random

from tests.malformed.site import (
    HOSTILE_TEXT,
    LENS_FILE,
    QUANTIZED,
    SMALL_FILE,
    WHOLE_FILE,
    Site,
    add_case,
    case,
    encode_file,
    entry,
    rows_of,
)


def _add_header_case(name: str, content: bytes, *message: str) -> None:
    def build(site: Site) -> None:
        site.write(f"source/{SMALL_FILE}", content)

    add_case(f"header-{name}", build, "MalformedCheckpoint", SMALL_FILE, *message, hint=("the file again",))


for _name, _header, _data, *_message in rows_of("headers"):
    _body = _header.encode() if isinstance(_header, str) else _header
    _add_header_case(_name, encode_file(_body, _data.encode()), *_message)
_HEADER_END = len(WHOLE_FILE) - 8
for _name, _content, *_message in (
    ("trailing-byte", WHOLE_FILE + b"\0", "has trailing bytes"),
    ("appended-file", WHOLE_FILE + WHOLE_FILE, "has trailing bytes"),
    ("length-one-short", encode_file({}, length=1), "not JSON"),
    ("length-one-long", encode_file({}, length=3), "header of 3 bytes", "the file ends at byte 10"),
    ("length-at-the-limit", encode_file({}, length=10**8), "header of 100000000 bytes, but the file ends at byte 10"),
    ("length-big-endian", b"\0\0\0\0\0\0\0\2{}", "this is not a safetensors file"),
    ("noise", random.Random(0).randbytes(4096), "this is not a safetensors file"),  # noqa: S311 - only noise
    ("name-hostile", encode_file({HOSTILE_TEXT: entry("X")}, b"x"), "tensor evil\\r\\n\\x1b[2J", "\\x07\\u202e"),
    ("name-very-long", encode_file({"n" * 10**6: entry("X")}, b"x"), "tensor nnn", "n…"),
    ("nested-too-deep", encode_file(b'{"w":' + b"[" * 10**5 + b"]" * 10**5 + b"}"), "nested too deeply"),
    ("size-5000-digits", encode_file(b'{"w":{"shape":[' + b"9" * 5000 + b"]}}"), "not JSON"),
    ("dimensions-65", encode_file({"w": entry(shape=[1] * 65)}, b"x"), "tensor w", "at most 64 sizes"),
    ("offsets-5000-digits", encode_file(b'{"w":{"data_offsets":[0,' + b"9" * 5000 + b"]}}"), "not JSON"),
    ("of-utf-16", encode_file("{}".encode("utf-16")), "does not start with '{'"),
    ("of-no-utf-8", encode_file(b'{"\xff\xfe":{}}'), "not UTF-8"),
    ("of-utf-8-too-long", encode_file(b'{"\xc0\xaf":{}}'), "not UTF-8"),
    ("of-utf-8-with-a-surrogate", encode_file(b'{"\xed\xa0\x80":{}}'), "not UTF-8"),
):
    _add_header_case(_name, _content, *_message)
_POSITIONS = "tensor w: its data_offsets must be two positions, neither"
_add_header_case("offsets-4001-digits", encode_file({"w": entry(offsets=[10**4000, 0])}, b"xx"), _POSITIONS)

for _length in (1, 7):
    _said = f"is {_length} bytes long; a safetensors file has at least 8"
    _add_header_case(f"{_length}-bytes", WHOLE_FILE[:_length], _said)
for _length in (8, 9, _HEADER_END // 2, _HEADER_END - 1):
    _add_header_case(f"cut-at-{_length}", WHOLE_FILE[:_length], f"but the file ends at byte {_length}")
for _length in (0, 3, 7):
    _said = f"is cut short: its tensors take 8 bytes, its data has {_length}"
    _add_header_case(f"data-cut-at-{_length}", WHOLE_FILE[: _HEADER_END + _length], _said)
for _length in (100_000_001, 2**63, 2**64 - 1):
    _add_header_case(f"length-{_length}", encode_file({}, length=_length), f"header of {_length} bytes; this is not")


@case("header-real-model-cut-short", "MalformedCheckpoint", LENS_FILE, "is cut short")
def _real_model_cut_short(site: Site) -> None:
    file = site.copy_lens() / LENS_FILE
    os.truncate(file, file.stat().st_size - 1)


def _add_flip_case(name: str, wanted: bytes, bit: int, error: str, *message: str) -> None:
    """A real model of which one bit is flipped, in the byte where a text of its header begins."""

    def build(site: Site) -> None:
        file = site.copy_lens() / LENS_FILE
        content = bytearray(file.read_bytes())
        content[content.index(wanted)] ^= 1 << bit
        file.write_bytes(content)

    add_case(f"bit-flip-{name}", build, error, *message)


_add_flip_case("in-the-brace", b'{"', 0, "MalformedCheckpoint", LENS_FILE, "does not start with '{'")
_add_flip_case("in-a-quote", b'"dtype"', 1, "MalformedCheckpoint", LENS_FILE, "not JSON")
_add_flip_case("in-a-dtype", b"F32", 0, "MalformedCheckpoint", LENS_FILE, "dtype G32")
_add_flip_case("in-a-key", b"shape", 1, "MalformedCheckpoint", LENS_FILE, "its entry must have")
_add_flip_case("in-an-offset", b"0,", 0, "MalformedCheckpoint", LENS_FILE, "tensor ")
_add_flip_case("in-a-name", QUANTIZED.encode(), 1, "UnsupportedCheckpoint", "source", QUANTIZED, "missing")


@case("bit-flip-in-the-length", "MalformedCheckpoint", LENS_FILE, "header of")
def _bit_flip_in_the_length(site: Site) -> None:
    file = site.copy_lens() / LENS_FILE
    content = bytearray(file.read_bytes())
    content[6] ^= 1
    file.write_bytes(content)
