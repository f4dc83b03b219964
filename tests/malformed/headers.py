"""Headers: one file in a folder without a config."""

from __future__ import annotations

import os
import pickle
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
)


def _add_header_case(name: str, content: bytes, *message: str) -> None:
    def build(site: Site) -> None:
        site.write(f"source/{SMALL_FILE}", content)

    add_case(f"header-{name}", build, "MalformedCheckpoint", SMALL_FILE, *message)


_HEADER_END = len(WHOLE_FILE) - 8
for _name, _content, *_message in (
    ("empty", b"", "is 0 bytes long"),
    ("one-byte", WHOLE_FILE[:1], "is 1 bytes long"),
    ("seven-bytes", WHOLE_FILE[:7], "is 7 bytes long"),
    ("length-field-only", WHOLE_FILE[:8], "the file ends at byte 8"),
    ("cut-after-the-brace", WHOLE_FILE[:9], "the file ends at byte 9"),
    ("cut-in-the-header", WHOLE_FILE[: _HEADER_END // 2], "the file ends at byte"),
    ("cut-before-the-last-brace", WHOLE_FILE[: _HEADER_END - 1], "the file ends at byte"),
    ("cut-after-the-header", WHOLE_FILE[:_HEADER_END], "is cut short", "its data has 0"),
    ("cut-in-the-data", WHOLE_FILE[: _HEADER_END + 3], "is cut short", "its data has 3"),
    ("cut-before-the-last-byte", WHOLE_FILE[:-1], "is cut short", "its data has 7"),
    ("trailing-byte", WHOLE_FILE + b"\0", "has trailing bytes"),
    ("appended-file", WHOLE_FILE + WHOLE_FILE, "has trailing bytes"),
    ("length-zero", bytes(8), "does not start with '{'"),
    ("length-zero-with-data", bytes(64), "does not start with '{'"),
    ("length-one-short", encode_file({}, length=1), "not JSON"),
    ("length-one-long", encode_file({}, length=3), "header of 3 bytes", "the file ends at byte 10"),
    ("length-beyond-the-limit", encode_file({}, length=100_000_001), "header of 100000001 bytes"),
    ("length-huge", encode_file({}, length=2**64 - 1), f"header of {2**64 - 1} bytes"),
    ("length-sign-bit", encode_file({}, length=2**63), f"header of {2**63} bytes"),
    ("length-big-endian", b"\0\0\0\0\0\0\0\2{}", "this is not a safetensors file"),
    ("noise", random.Random(0).randbytes(4096), "this is not a safetensors file"),  # noqa: S311 - only noise
    ("web-page", b"<!DOCTYPE html><html>404</html>", "this is not a safetensors file"),
    ("git-lfs-pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "not a safetensors file"),
    ("zip-archive", b"PK\x03\x04" + bytes(60), "claims a header of 67324752 bytes"),
    ("pickle", pickle.dumps({"weight": [1.0] * 40}), "this is not a safetensors file"),
    ("not-json", encode_file(b"{not json"), "not JSON"),
    ("unfinished-json", encode_file(b'{"w":{"dtype":"U8"'), "not JSON"),
    ("two-objects", encode_file(b"{}{}"), "not JSON"),
    ("padded-with-nul", encode_file(b"{}\0\0\0\0\0\0"), "not JSON"),
    ("array", encode_file([]), "does not start with '{'"),
    ("string", encode_file("w"), "does not start with '{'"),
    ("leading-space", encode_file(b" {}"), "does not start with '{'"),
    ("byte-order-mark", encode_file(b"\xef\xbb\xbf{}"), "does not start with '{'"),
    ("utf-16", encode_file("{}".encode("utf-16")), "does not start with '{'"),
    ("name-not-utf-8", encode_file(b'{"\xff\xfe":{}}'), "not UTF-8"),
    ("name-overlong-utf-8", encode_file(b'{"\xc0\xaf":{}}'), "not UTF-8"),
    ("name-encoded-surrogate", encode_file(b'{"\xed\xa0\x80":{}}'), "not UTF-8"),
    ("name-raw-control-character", encode_file(b'{"a\x1b":{}}'), "not JSON"),
    ("name-lone-surrogate", encode_file({"w\ud800": entry()}, b"x"), "w\\ud800", "not valid Unicode"),
    ("name-hostile", encode_file({HOSTILE_TEXT: entry("X")}, b"x"), "tensor evil\\r\\n\\x1b[2J", "\\x07\\u202e"),
    ("name-very-long", encode_file({"n" * 10**6: entry("X")}, b"x"), "tensor nnn", "n…"),
    ("nested-too-deep", encode_file(b'{"w":' + b"[" * 10**5 + b"]" * 10**5 + b"}"), "nested too deeply"),
    ("nested-shape", encode_file({"w": entry(shape=[[[1]]])}, b"x"), "tensor w", "shape"),
    ("repeated-tensor", encode_file(b'{"w":{},"w":{}}'), "names w twice"),
    ("repeated-tensor-escaped", encode_file(b'{"w":{},"\\u0077":{}}'), "names w twice"),
    ("repeated-key-in-entry", encode_file(b'{"w":{"dtype":"U8","dtype":"U8"}}'), "names dtype twice"),
    ("repeated-metadata", encode_file(b'{"__metadata__":{},"__metadata__":{}}'), "names __metadata__ twice"),
    ("repeated-key-in-metadata", encode_file(b'{"__metadata__":{"a":"","a":""}}'), "names a twice"),
    ("metadata-list", encode_file({"__metadata__": []}), "__metadata__ must map names to strings"),
    ("metadata-null", encode_file({"__metadata__": None}), "__metadata__ must map names to strings"),
    ("metadata-number", encode_file({"__metadata__": {"a": 1}}), "__metadata__ must map names to strings"),
    ("metadata-nan", encode_file(b'{"__metadata__":{"a":NaN}}'), "__metadata__ must map names to strings"),
    ("metadata-nested", encode_file({"__metadata__": {"a": {"b": "c"}}}), "__metadata__ must map names to strings"),
    ("metadata-lone-surrogate", encode_file({"__metadata__": {"a": "\ud800"}}), "__metadata__"),
    ("metadata-key-lone-surrogate", encode_file({"__metadata__": {"\ud800": "a"}}), "__metadata__"),
    ("entry-list", encode_file({"w": ["U8", [1], [0, 1]]}, b"x"), "tensor w", "its entry must have"),
    ("entry-null", encode_file({"w": None}), "tensor w", "its entry must have"),
    ("entry-empty", encode_file({"w": {}}), "tensor w", "its entry must have"),
    ("entry-extra-key", encode_file({"w": entry(stride=[1])}, b"x"), "tensor w", "and nothing else"),
    ("entry-without-dtype", encode_file({"w": {"shape": [1], "data_offsets": [0, 1]}}, b"x"), "tensor w", "dtype"),
    ("entry-without-shape", encode_file({"w": {"dtype": "U8", "data_offsets": [0, 1]}}, b"x"), "tensor w", "shape"),
    ("entry-without-offsets", encode_file({"w": {"dtype": "U8", "shape": [1]}}, b"x"), "tensor w", "data_offsets"),
    ("dtype-unknown", encode_file({"w": entry("F128")}, b"x"), "tensor w", "dtype F128"),
    ("dtype-lower-case", encode_file({"w": entry("u8")}, b"x"), "tensor w", "dtype u8"),
    ("dtype-number", encode_file({"w": entry(8)}, b"x"), "tensor w", "dtype 8"),
    ("dtype-list", encode_file({"w": entry(["U8"])}, b"x"), "tensor w", "dtype"),
    ("dtype-null", encode_file({"w": entry(None)}, b"x"), "tensor w", "dtype None"),
    ("dtype-hostile", encode_file({"w": entry(HOSTILE_TEXT)}, b"x"), "tensor w", "dtype evil\\r\\n"),
    ("f4-half-a-byte", encode_file({"w": entry("F4", [3], [0, 1])}, b"x"), "tensor w", "does not fill whole bytes"),
    ("f6-part-of-a-byte", encode_file({"w": entry("F6_E2M3", [1])}, b"x"), "tensor w", "does not fill whole bytes"),
    ("shape-null", encode_file({"w": entry(shape=None)}, b"x"), "tensor w", "shape"),
    ("shape-object", encode_file({"w": entry(shape={})}, b"x"), "tensor w", "shape"),
    ("size-true", encode_file({"w": entry(shape=[True])}, b"x"), "tensor w", "shape"),
    ("size-float", encode_file({"w": entry(shape=[1.0])}, b"x"), "tensor w", "shape"),
    ("size-string", encode_file({"w": entry(shape=["1"])}, b"x"), "tensor w", "shape"),
    ("size-null", encode_file({"w": entry(shape=[None])}, b"x"), "tensor w", "shape"),
    ("size-nan", encode_file({"w": entry(shape=[float("nan")])}, b"x"), "tensor w", "shape"),
    ("size-infinity", encode_file({"w": entry(shape=[float("inf")])}, b"x"), "tensor w", "shape"),
    ("size-negative", encode_file({"w": entry(shape=[-1])}, b"x"), "tensor w", "shape"),
    ("sizes-negative-twice", encode_file({"w": entry(shape=[-1, -1])}, b"x"), "tensor w", "shape"),
    ("size-minus-zero", encode_file(b'{"w":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}'), SMALL_FILE),
    ("size-5000-digits", encode_file(b'{"w":{"shape":[' + b"9" * 5000 + b"]}}"), "not JSON"),
    ("size-4000-digits", encode_file({"w": entry(shape=[10**4000])}, b"x"), "tensor w", "shape"),
    ("size-beyond-64-bits", encode_file({"w": entry(shape=[2**64 + 1])}, b"x"), "tensor w", "shape"),
    ("shape-overflows-64-bits", encode_file({"w": entry(shape=[2**32, 2**32])}, b"x"), "tensor w", "[4294967296, "),
    ("shape-overflows-in-bits", encode_file({"w": entry("F64", [2**61, 1])}, b"x"), "tensor w", "takes"),
    ("shape-overflows-before-a-zero", encode_file({"w": entry(shape=[2**62, 2**62, 0], offsets=[0, 0])}), "tensor w"),
    ("dimensions-65", encode_file({"w": entry(shape=[1] * 65)}, b"x"), "tensor w", "at most 64 sizes"),
    ("wrong-size-for-the-shape", encode_file({"w": entry("F32", [2], [0, 4])}, bytes(4)), "tensor w", "takes 8 bytes"),
    ("scalar-of-two-bytes", encode_file({"w": entry(shape=[], offsets=[0, 2])}, b"xx"), "tensor w", "takes 1 bytes"),
    ("offsets-null", encode_file({"w": entry(offsets=None)}, b"x"), "tensor w", "data_offsets"),
    ("offsets-one", encode_file({"w": entry(offsets=[0])}, b"x"), "tensor w", "data_offsets"),
    ("offsets-three", encode_file({"w": entry(offsets=[0, 1, 2])}, b"xx"), "tensor w", "data_offsets"),
    ("offsets-true", encode_file({"w": entry(offsets=[False, True])}, b"x"), "tensor w", "data_offsets"),
    ("offsets-float", encode_file({"w": entry(offsets=[0.0, 1.0])}, b"x"), "tensor w", "data_offsets"),
    ("offsets-string", encode_file({"w": entry(offsets=["0", "1"])}, b"x"), "tensor w", "data_offsets"),
    ("offsets-negative", encode_file({"w": entry(offsets=[-1, 0])}, b"x"), "tensor w", "data_offsets"),
    ("offsets-beyond-64-bits", encode_file({"w": entry(offsets=[2**64, 2**64 + 1])}, b"x"), "tensor w", "data_offsets"),
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
