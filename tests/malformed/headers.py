"""Headers: one file in a folder without a config."""

from __future__ import annotations

import os
import pickle
import random
from typing import Any

from converter.errors import printable
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
)


def _add_header_case(name: str, content: bytes, *message: str) -> None:
    def build(site: Site) -> None:
        site.write(f"source/{SMALL_FILE}", content)

    add_case(f"header-{name}", build, "MalformedCheckpoint", SMALL_FILE, *message, hint=("the file again",))


_HEADER_END = len(WHOLE_FILE) - 8
for _name, _content, *_message in (
    ("trailing-byte", WHOLE_FILE + b"\0", "has trailing bytes"),
    ("appended-file", WHOLE_FILE + WHOLE_FILE, "has trailing bytes"),
    ("length-one-short", encode_file({}, length=1), "not JSON"),
    ("length-one-long", encode_file({}, length=3), "header of 3 bytes", "the file ends at byte 10"),
    ("length-at-the-limit", encode_file({}, length=10**8), "header of 100000000 bytes, but the file ends at byte 10"),
    ("length-big-endian", b"\0\0\0\0\0\0\0\2{}", "this is not a safetensors file"),
    ("noise", random.Random(0).randbytes(4096), "this is not a safetensors file"),  # noqa: S311 - only noise
    ("web-page", b"<!DOCTYPE html><html>404</html>", "this is not a safetensors file"),
    ("git-lfs-pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "not a safetensors file"),
    ("zip-archive", b"PK\x03\x04" + bytes(60), "claims a header of 67324752 bytes"),
    ("pickle", pickle.dumps({"weight": [1.0] * 40}), "this is not a safetensors file"),
    ("name-raw-control-character", encode_file(b'{"a\x1b":{}}'), "not JSON"),
    ("name-lone-surrogate", encode_file({"w\ud800": entry()}, b"x"), "w\\ud800", "not valid Unicode"),
    ("name-hostile", encode_file({HOSTILE_TEXT: entry("X")}, b"x"), "tensor evil\\r\\n\\x1b[2J", "\\x07\\u202e"),
    ("name-very-long", encode_file({"n" * 10**6: entry("X")}, b"x"), "tensor nnn", "n…"),
    ("nested-too-deep", encode_file(b'{"w":' + b"[" * 10**5 + b"]" * 10**5 + b"}"), "nested too deeply"),
    ("repeated-tensor", encode_file(b'{"w":{},"w":{}}'), "names w twice"),
    ("repeated-tensor-escaped", encode_file(b'{"w":{},"\\u0077":{}}'), "names w twice"),
    ("repeated-key-in-entry", encode_file(b'{"w":{"dtype":"U8","dtype":"U8"}}'), "names dtype twice"),
    ("repeated-metadata", encode_file(b'{"__metadata__":{},"__metadata__":{}}'), "names __metadata__ twice"),
    ("repeated-key-in-metadata", encode_file(b'{"__metadata__":{"a":"","a":""}}'), "names a twice"),
    ("metadata-nan", encode_file(b'{"__metadata__":{"a":NaN}}'), "__metadata__ must map names to strings"),
    ("f4-half-a-byte", encode_file({"w": entry("F4", [3], [0, 1])}, b"x"), "tensor w", "does not fill whole bytes"),
    ("f6-part-of-a-byte", encode_file({"w": entry("F6_E2M3", [1])}, b"x"), "tensor w", "does not fill whole bytes"),
    ("size-minus-zero", encode_file(b'{"w":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}'), SMALL_FILE),
    ("size-5000-digits", encode_file(b'{"w":{"shape":[' + b"9" * 5000 + b"]}}"), "not JSON"),
    ("shape-overflows-64-bits", encode_file({"w": entry(shape=[2**32, 2**32])}, b"x"), "w", "has more elements"),
    ("shape-overflows-in-bits", encode_file({"w": entry("F64", [2**61, 1])}, b"x"), "tensor w", "takes"),
    ("shape-overflows-before-a-zero", encode_file({"w": entry(shape=[2**62, 2**62, 0], offsets=[0, 0])}), "tensor w"),
    ("dimensions-65", encode_file({"w": entry(shape=[1] * 65)}, b"x"), "tensor w", "at most 64 sizes"),
    ("wrong-size-for-the-shape", encode_file({"w": entry("F32", [2], [0, 4])}, bytes(4)), "tensor w", "takes 8 bytes"),
    ("scalar-of-two-bytes", encode_file({"w": entry(shape=[], offsets=[0, 2])}, b"xx"), "tensor w", "takes 1 bytes"),
    ("offsets-5000-digits", encode_file(b'{"w":{"data_offsets":[0,' + b"9" * 5000 + b"]}}"), "not JSON"),
    ("offsets-reversed", encode_file({"w": entry(offsets=[1, 0])}, b"x"), "tensor w", "its offsets span -1"),
    ("offsets-past-the-end", encode_file({"w": entry(shape=[9], offsets=[0, 9])}, bytes(8)), "is cut short"),
    ("offsets-overlap", encode_file({"a": entry(shape=[2], offsets=[0, 2]), "b": entry(offsets=[1, 2])}, b"xx"), "b"),
    ("offsets-same-twice", encode_file({"a": entry(), "b": entry()}, b"x"), "tensor b", "overlaps"),
    ("offsets-hole-first", encode_file({"w": entry(offsets=[1, 2])}, b"xx"), "tensor w", "leaves a gap"),
    ("offsets-hole", encode_file({"a": entry(), "b": entry(offsets=[2, 3])}, b"xxx"), "tensor b", "leaves a gap"),
    ("offsets-no-tensor-for-the-data", encode_file({}, b"x"), "has trailing bytes"),
):
    _add_header_case(_name, _content, *_message)

for _length in (0, 1, 7):
    _add_header_case(
        f"{_length}-bytes", WHOLE_FILE[:_length], f"is {_length} bytes long; a safetensors file has at least 8"
    )
for _length in (8, 9, _HEADER_END // 2, _HEADER_END - 1):
    _add_header_case(f"cut-at-{_length}", WHOLE_FILE[:_length], f"but the file ends at byte {_length}")
for _length in (0, 3, 7):
    _said = f"is cut short: its tensors take 8 bytes, its data has {_length}"
    _add_header_case(f"data-cut-at-{_length}", WHOLE_FILE[: _HEADER_END + _length], _said)
for _length in (100_000_001, 2**63, 2**64 - 1):
    _add_header_case(f"length-{_length}", encode_file({}, length=_length), f"header of {_length} bytes; this is not")
# Bodies of headers that are not an object, not JSON or not UTF-8.
_NO_OBJECT = (b"[]", b'"w"', b" {}", b"\xef\xbb\xbf{}", "{}".encode("utf-16"), b"", bytes(4))
_NO_JSON = (b"{not json", b'{"w":{"dtype":"U8"', b"{}{}", b"{}\0\0\0\0\0\0")
_NO_TEXT = (b'{"\xff\xfe":{}}', b'{"\xc0\xaf":{}}', b'{"\xed\xa0\x80":{}}')
for _bodies, _said in ((_NO_OBJECT, "does not start with '{'"), (_NO_JSON, "not JSON"), (_NO_TEXT, "not UTF-8")):
    for _body in _bodies:
        _add_header_case(f"of-{_body!r}", encode_file(_body), _said)
# Values of the wrong types, and beyond what 64 bits or the format allow.
_SHAPES: list[Any] = [None, {}]
_SHAPES += [[[[1]]], [True], [1.0], ["1"], [None], [float("nan")], [float("inf")], [-1], [-1, -1], [2**63]]
_OFFSETS = (None, [0], [0, 1, 2], [False, True], [0.0, 1.0], ["0", "1"], [-1, 0], [2**64, 2**64 + 1], [10**4000, 0])
for _shape in _SHAPES:
    _add_header_case(f"shape-{_shape}", encode_file({"w": entry(shape=_shape)}, b"x"), "tensor w: its shape must")
for _offsets in _OFFSETS:
    _file = encode_file({"w": entry(offsets=_offsets)}, b"xx")
    _add_header_case(
        f"offsets-{str(_offsets)[:50]}", _file, "tensor w: its data_offsets must be two positions, neither"
    )
for _dtype in ("F128", "u8", 8, None, ["U8"], HOSTILE_TEXT):
    _add_header_case(
        f"dtype-{_dtype!r}",
        encode_file({"w": entry(_dtype)}, b"x"),
        f"tensor w: its dtype {printable(str(_dtype))} is not one",
    )
_metadata: Any
for _metadata in ([], None, {"a": 1}, {"a": {"b": "c"}}):
    _add_header_case(f"metadata-{_metadata}", encode_file({"__metadata__": _metadata}), "__metadata__ must map names")
for _metadata in ({"a": "\ud800"}, {"\ud800": "a"}):
    _add_header_case(
        f"metadata-{_metadata!a}", encode_file({"__metadata__": _metadata}), "its __metadata__ is not valid"
    )
_WHOLE = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}
_PARTS = ({key: value for key, value in _WHOLE.items() if key != gone} for gone in _WHOLE)
for _entry in (["U8", [1], [0, 1]], None, {}, {**_WHOLE, "stride": [1]}, *_PARTS):
    _said = "tensor w: its entry must have dtype, shape and data_offsets, and nothing else"
    _add_header_case(f"entry-{_entry}", encode_file({"w": _entry}, b"x"), _said)


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
