"""A corpus of checkpoints and command lines that ``lensconv convert`` must refuse.

A case builds its files in a folder of its own: what is given lies under ``source``, the output is asked for under
``work``. ``tests/test_malformed.py`` runs every case and compares the whole folder before and after, so that a marker
left by an unpickled file, a changed source or a forgotten staging folder all show as a difference.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.conversion.convert import convert
from converter.conversion.options import ConvertOptions

#: Exit codes of the contract (section 4 of the design), by the type of the error.
EXIT_CODES: dict[str, int] = {
    "InputError": 2,
    "UsageError": 2,
    "MissingInput": 2,
    "MalformedCheckpoint": 2,
    "UnsupportedCheckpoint": 2,
    "NonFiniteWeight": 2,
    "RecipeError": 2,
    "OutputError": 2,
    "DiskError": 3,
    "MemoryLimitError": 3,
    "DeviceError": 3,
}
#: A rule that keeps the plan from being predicted without SDNQ: planning in this process, whose imports all cases
#: share, is quicker than waiting for a planning process to import everything again.
IN_PROCESS = ("--set", "*.attn.to_out.0=int8")

LENS_FILE = "diffusion_pytorch_model.safetensors"
SMALL_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
#: Tensors of the Lens checkpoint: one that the default recipe quantizes, and one that it keeps.
QUANTIZED = "transformer_blocks.0.attn.img_qkv.weight"
KEPT = "proj_out.bias"
#: Ends a line, clears a terminal, renames its window, writes from right to left.
HOSTILE_TEXT = "evil\r\n\x1b[2J\x1b]0;owned\x07\u202e"


@dataclass(frozen=True)
class Invocation:
    """A command line and the place that it asks to write to."""

    arguments: tuple[str, ...]
    output: Path


@dataclass(frozen=True)
class Site:
    """The folder in which one case builds its files."""

    root: Path
    lens: Path
    """A valid Lens checkpoint, to copy and not to change."""

    @property
    def source(self) -> Path:
        """Where a case puts what it gives to the command."""
        return self.root / "source"

    @property
    def work(self) -> Path:
        """The folder, made beforehand, in which the output is asked for."""
        return self.root / "work"

    @property
    def output(self) -> Path:
        """Where the output is asked for unless a case says otherwise."""
        return self.work / "out"

    def convert(self, *options: str, source: Path | None = None, output: Path | None = None) -> Invocation:
        """The command line that converts the source."""
        place = output or self.output
        return Invocation(("convert", str(source or self.source), str(place), *options), place)

    def copy_lens(self, folder: str = "source") -> Path:
        """A valid Lens checkpoint of the case's own; returns its folder."""
        return Path(shutil.copytree(self.lens, self.root / folder))

    def write(self, name: str, content: bytes | str) -> Path:
        """Write a file below the root, with the folders above it."""
        file = self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return file


Builder = Callable[[Site], Invocation]


@dataclass(frozen=True)
class Case:
    """Something that must be refused, and how."""

    name: str
    build: Builder
    error: str
    """Type of the error that ``--json`` names, or a base of it."""
    message: tuple[str, ...]
    """What the message must contain: the file or the tensor at fault, and the fault."""
    hint: tuple[str, ...] = ()
    """What the hint must contain."""

    @property
    def exit_code(self) -> int:
        """Exit code of the command."""
        return EXIT_CODES[self.error]


CASES: dict[str, Case] = {}


def add_case(name: str, build: Builder, error: str, *message: str, hint: tuple[str, ...] = ()) -> None:
    """Put a case into the registry."""
    if name in CASES:
        raise ValueError(f"two cases are called {name}")
    CASES[name] = Case(name, build, error, message, hint)


def case(name: str, error: str, *message: str, hint: tuple[str, ...] = ()) -> Callable[[Builder], Builder]:
    """Register the decorated function as the builder of a case."""

    def register(build: Builder) -> Builder:
        add_case(name, build, error, *message, hint=hint)
        return build

    return register


# Safetensors files, written without the code that is under test.


@dataclass
class Stored:
    """A tensor in a file: its dtype, its shape and its bytes."""

    dtype: str
    shape: list[int]
    data: bytes


def encode_file(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file.

    Args:
        header: bytes, or what to write as JSON.
        data: the bytes after the header.
        length: what the length field says; the truth when None.
    """
    body = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(body) if length is None else length) + body + data


def entry(dtype: Any = "U8", shape: Any = (1,), offsets: Any = (0, 1), **others: Any) -> dict[str, Any]:
    """A header's entry for one tensor; by default one byte at the start of the data."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **others}


def read_tensors(file: Path) -> dict[str, Stored]:
    """All tensors of a valid file."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    data = content[8 + length :]
    return {
        name: Stored(item["dtype"], item["shape"], data[slice(*item["data_offsets"])]) for name, item in header.items()
    }


def write_tensors(file: Path, tensors: Mapping[str, Stored]) -> None:
    """Write a file that holds the tensors one after the other."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, tensor in tensors.items():
        header[name] = entry(tensor.dtype, tensor.shape, [position, position + len(tensor.data)])
        position += len(tensor.data)
    file.write_bytes(encode_file(header, b"".join(tensor.data for tensor in tensors.values())))


def edit_lens(site: Site, edit: Callable[[dict[str, Stored]], object]) -> Path:
    """A Lens checkpoint whose tensors are changed; returns its folder."""
    folder = site.copy_lens()
    tensors = read_tensors(folder / LENS_FILE)
    edit(tensors)
    write_tensors(folder / LENS_FILE, tensors)
    return folder


def edit_config(folder: Path, **changes: Any) -> None:
    """Change keys of a config.json; None removes one."""
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def plant(tensor: Stored, number: float, place: int) -> None:
    """Set one number of an F32 or F64 tensor."""
    code, size = {"F32": ("<f", 4), "F64": ("<d", 8)}[tensor.dtype]
    start = place * size
    tensor.data = tensor.data[:start] + struct.pack(code, number) + tensor.data[start + size :]


# Headers: one file in a folder without a config.


def _add_header_case(name: str, content: bytes, *message: str) -> None:
    def build(site: Site) -> Invocation:
        site.write(f"source/{SMALL_FILE}", content)
        return site.convert()

    add_case(f"header-{name}", build, "MalformedCheckpoint", SMALL_FILE, *message)


_WHOLE = encode_file({"w": entry("F32", [2], [0, 8])}, bytes(8))
_HEADER_END = len(_WHOLE) - 8
for _name, _content, *_message in (
    ("empty", b"", "is 0 bytes long"),
    ("one-byte", _WHOLE[:1], "is 1 bytes long"),
    ("seven-bytes", _WHOLE[:7], "is 7 bytes long"),
    ("length-field-only", _WHOLE[:8], "the file ends at byte 8"),
    ("cut-after-the-brace", _WHOLE[:9], "the file ends at byte 9"),
    ("cut-in-the-header", _WHOLE[: _HEADER_END // 2], "the file ends at byte"),
    ("cut-before-the-last-brace", _WHOLE[: _HEADER_END - 1], "the file ends at byte"),
    ("cut-after-the-header", _WHOLE[:_HEADER_END], "is cut short", "its data has 0"),
    ("cut-in-the-data", _WHOLE[: _HEADER_END + 3], "is cut short", "its data has 3"),
    ("cut-before-the-last-byte", _WHOLE[:-1], "is cut short", "its data has 7"),
    ("trailing-byte", _WHOLE + b"\0", "has trailing bytes"),
    ("appended-file", _WHOLE + _WHOLE, "has trailing bytes"),
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
    ("entry-list", encode_file({"w": ["U8", [1], [0, 1]]}, b"x"), "tensor w", "its entry must hold"),
    ("entry-null", encode_file({"w": None}), "tensor w", "its entry must hold"),
    ("entry-empty", encode_file({"w": {}}), "tensor w", "its entry must hold"),
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
    ("offsets-hole-first", encode_file({"w": entry(offsets=[1, 2])}, b"xx"), "tensor w", "leaves a hole"),
    ("offsets-hole", encode_file({"a": entry(), "b": entry(offsets=[2, 3])}, b"xxx"), "tensor b", "leaves a hole"),
    ("offsets-no-tensor-for-the-data", encode_file({}, b"x"), "has trailing bytes"),
):
    _add_header_case(_name, _content, *_message)


@case("header-real-model-cut-short", "MalformedCheckpoint", LENS_FILE, "is cut short")
def _real_model_cut_short(site: Site) -> Invocation:
    file = site.copy_lens() / LENS_FILE
    os.truncate(file, file.stat().st_size - 1)
    return site.convert()


def _add_flip_case(name: str, wanted: bytes, bit: int, error: str, *message: str) -> None:
    """A real model of which one bit is flipped, in the byte where a text of its header begins."""

    def build(site: Site) -> Invocation:
        file = site.copy_lens() / LENS_FILE
        content = bytearray(file.read_bytes())
        content[content.index(wanted)] ^= 1 << bit
        file.write_bytes(content)
        return site.convert()

    add_case(f"bit-flip-{name}", build, error, *message)


_add_flip_case("in-the-brace", b'{"', 0, "MalformedCheckpoint", LENS_FILE, "does not start with '{'")
_add_flip_case("in-a-quote", b'"dtype"', 1, "MalformedCheckpoint", LENS_FILE, "not JSON")
_add_flip_case("in-a-dtype", b"F32", 0, "MalformedCheckpoint", LENS_FILE, "dtype G32")
_add_flip_case("in-a-key", b"shape", 1, "MalformedCheckpoint", LENS_FILE, "its entry must hold")
_add_flip_case("in-an-offset", b"0,", 0, "MalformedCheckpoint", LENS_FILE, "tensor ")
_add_flip_case("in-a-name", QUANTIZED.encode(), 1, "UnsupportedCheckpoint", "source", QUANTIZED, "missing")


@case("bit-flip-in-the-length", "MalformedCheckpoint", LENS_FILE, "header of")
def _bit_flip_in_the_length(site: Site) -> Invocation:
    file = site.copy_lens() / LENS_FILE
    content = bytearray(file.read_bytes())
    content[6] ^= 1
    file.write_bytes(content)
    return site.convert()


# What is not there, or not a checkpoint.


@case("source-missing", "MissingInput", "source", "no such file or folder")
def _source_missing(site: Site) -> Invocation:
    return site.convert()


@case("source-missing-hostile-name", "MissingInput", "evil\\r\\n\\x1b[2J", "no such file or folder")
def _source_missing_hostile_name(site: Site) -> Invocation:
    return site.convert(source=site.root / HOSTILE_TEXT)


@case("source-is-a-dangling-link", "MissingInput", "source", "no such file or folder")
def _source_is_a_dangling_link(site: Site) -> Invocation:
    site.source.symlink_to("gone")
    return site.convert()


@case("source-is-a-link-to-itself", "MissingInput", "source", "no such file or folder")
def _source_is_a_link_to_itself(site: Site) -> Invocation:
    site.source.symlink_to("source")
    return site.convert()


@case("source-name-too-long", "InputError", "nnn", "too long")
def _source_name_too_long(site: Site) -> Invocation:
    return site.convert(source=site.root / ("n" * 300))


@case("source-is-a-pipe", "MissingInput", "source")
def _source_is_a_pipe(site: Site) -> Invocation:
    os.mkfifo(site.source)
    return site.convert()


@case("source-is-a-device", "MissingInput", "/dev/zero")
def _source_is_a_device(site: Site) -> Invocation:
    return site.convert(source=Path("/dev/zero"))


@case("source-is-a-text-file", "MalformedCheckpoint", "config.json", "not a safetensors file")
def _source_is_a_text_file(site: Site) -> Invocation:
    return site.convert(source=site.copy_lens() / "config.json")


@case("folder-empty", "MissingInput", "source", "holds no safetensors weights")
def _folder_empty(site: Site) -> Invocation:
    site.source.mkdir()
    return site.convert()


@case("folder-with-config-only", "MissingInput", "source", "holds no safetensors weights")
def _folder_with_config_only(site: Site) -> Invocation:
    (site.copy_lens() / LENS_FILE).unlink()
    return site.convert()


@case("folder-two-files-without-index", "MissingInput", "source", "2 safetensors files and no index")
def _folder_two_files_without_index(site: Site) -> Invocation:
    for shard in SHARDS:
        site.write(f"source/{shard}", _WHOLE)
    return site.convert()


@case("weights-are-a-folder", "MissingInput", SMALL_FILE, "not a regular file")
def _weights_are_a_folder(site: Site) -> Invocation:
    (site.source / SMALL_FILE).mkdir(parents=True)
    return site.convert()


@case("weights-are-a-pipe", "MissingInput", SMALL_FILE, "not a regular file")
def _weights_are_a_pipe(site: Site) -> Invocation:
    site.source.mkdir()
    os.mkfifo(site.source / SMALL_FILE)
    return site.convert()


@case("weights-are-a-dangling-link", "MissingInput", SMALL_FILE)
def _weights_are_a_dangling_link(site: Site) -> Invocation:
    site.source.mkdir()
    (site.source / SMALL_FILE).symlink_to("gone")
    return site.convert()


class _Mark:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self._file),)


@case("pickle-that-runs-code", "UnsupportedCheckpoint", "diffusion_pytorch_model.bin", "may hold a pickle")
def _pickle_that_runs_code(site: Site) -> Invocation:
    site.write("source/diffusion_pytorch_model.bin", pickle.dumps(_Mark(site.root / "marker")))
    return site.convert()


@case("pickle-named-itself", "UnsupportedCheckpoint", "pytorch_model.bin", "may hold a pickle")
def _pickle_named_itself(site: Site) -> Invocation:
    return site.convert(source=site.write("source/pytorch_model.bin", pickle.dumps(_Mark(site.root / "marker"))))


@case("pickle-is-a-pipe", "UnsupportedCheckpoint", "pytorch_model.bin", "may hold a pickle")
def _pickle_is_a_pipe(site: Site) -> Invocation:
    # Whoever opens a pipe that nobody writes to waits for ever.
    site.source.mkdir()
    os.mkfifo(site.source / "pytorch_model.bin")
    return site.convert()


@case("pickle-beside-a-config", "UnsupportedCheckpoint", "lens.ckpt", "may hold a pickle")
def _pickle_beside_a_config(site: Site) -> Invocation:
    (site.copy_lens() / LENS_FILE).rename(site.source / "lens.ckpt")
    return site.convert()


# Shards and their index; the model does not matter, for no index gets that far.


def _add_index_case(
    name: str,
    error: str,
    *message: str,
    weight_map: Any = (("a", SHARDS[0]), ("b", SHARDS[1])),
    content: bytes | None = None,
    prepare: Callable[[Site], object] = lambda _: None,
) -> None:
    """Two shards with a tensor each, and what an index says of them.

    Args:
        weight_map: pairs of tensor and shard, or what the index holds instead.
        content: the whole index, in place of the map.
        prepare: changes the files further.
    """

    def build(site: Site) -> Invocation:
        site.source.mkdir()
        for tensor, shard in zip("ab", SHARDS, strict=True):
            write_tensors(site.source / shard, {tensor: Stored("F32", [2], bytes(8))})
        mapped = dict(weight_map) if isinstance(weight_map, tuple) else weight_map
        index = json.dumps({"metadata": {"total_size": 16}, "weight_map": mapped}).encode()
        site.write(f"source/{INDEX_FILE}", index if content is None else content)
        prepare(site)
        return site.convert()

    add_case(f"index-{name}", build, error, *message)


def _add_shard_name_case(name: str, shard: Any, *message: str) -> None:
    weight_map = (("a", SHARDS[0]), ("b", shard))
    _add_index_case(f"shard-{name}", "MalformedCheckpoint", INDEX_FILE, "tensor b", *message, weight_map=weight_map)


_add_shard_name_case("in-the-parent-folder", "../secret.safetensors", "leads out of the folder")
_add_shard_name_case("in-a-subfolder", "sub/model.safetensors", "leads out of the folder")
_add_shard_name_case("absolute", "/etc/secret.safetensors", "leads out of the folder")
_add_shard_name_case("with-a-backslash", "..\\secret.safetensors", "leads out of the folder")
_add_shard_name_case("with-a-nul", "model\0.safetensors", "model\\x00.safetensors")
_add_shard_name_case("of-another-type", "model.bin", "no safetensors file")
_add_shard_name_case("empty", "", "no safetensors file")
_add_shard_name_case("a-number", 7, "no safetensors file")
_add_shard_name_case("a-list", [SHARDS[1]], "no safetensors file")
_add_shard_name_case("hostile", HOSTILE_TEXT, "evil\\r\\n\\x1b[2J")
_add_index_case("empty-file", "MalformedCheckpoint", INDEX_FILE, "not JSON", content=b"")
_add_index_case("not-json", "MalformedCheckpoint", INDEX_FILE, "not JSON", content=b"{'a': 1}")
_add_index_case("not-utf-8", "MalformedCheckpoint", INDEX_FILE, "not UTF-8", content=b'{"\xff": 1}')
_add_index_case("array", "MalformedCheckpoint", INDEX_FILE, "JSON list, not an object", content=b"[]")
_add_index_case("nested-too-deep", "MalformedCheckpoint", INDEX_FILE, "nested too deeply", content=b"[" * 10**5)
_add_index_case("without-a-map", "MalformedCheckpoint", INDEX_FILE, "has no weight_map", content=b"{}")
_add_index_case("map-empty", "MalformedCheckpoint", INDEX_FILE, "has no weight_map", weight_map={})
_add_index_case("map-a-list", "MalformedCheckpoint", INDEX_FILE, "has no weight_map", weight_map=["a", "b"])
_add_index_case("map-a-string", "MalformedCheckpoint", INDEX_FILE, "has no weight_map", weight_map="a")
_add_index_case(
    "repeated-tensor",
    "MalformedCheckpoint",
    INDEX_FILE,
    "names a twice",
    content=b'{"weight_map":{"a":"x.safetensors","a":"y.safetensors"}}',
)
_add_index_case(
    "tensor-missing-in-its-shard",
    "MalformedCheckpoint",
    INDEX_FILE,
    f"tensor c: is said to be in {SHARDS[1]}, which lacks it",
    weight_map=(("a", SHARDS[0]), ("b", SHARDS[1]), ("c", SHARDS[1])),
)
_add_index_case(
    "tensors-in-each-others-shards",
    "MalformedCheckpoint",
    INDEX_FILE,
    f"tensor a: is said to be in {SHARDS[1]}, which lacks it",
    weight_map=(("a", SHARDS[1]), ("b", SHARDS[0])),
)
_add_index_case(
    "tensor-it-does-not-name",
    "MalformedCheckpoint",
    SHARDS[1],
    f"tensor c: {INDEX_FILE} does not name it here",
    prepare=lambda site: write_tensors(
        site.source / SHARDS[1], {"b": Stored("U8", [1], b"x"), "c": Stored("U8", [1], b"x")}
    ),
)
_add_index_case(
    "tensor-in-two-shards",
    "MalformedCheckpoint",
    SHARDS[1],
    f"tensor a: is in {SHARDS[0]} as well",
    prepare=lambda site: write_tensors(
        site.source / SHARDS[1], {"a": Stored("U8", [1], b"x"), "b": Stored("U8", [1], b"x")}
    ),
)
_add_index_case(
    "shard-missing",
    "MissingInput",
    SHARDS[1],
    f"no such file, though {INDEX_FILE} names it",
    prepare=lambda site: (site.source / SHARDS[1]).unlink(),
)
_add_index_case(
    "shard-cut-short",
    "MalformedCheckpoint",
    SHARDS[1],
    "is cut short",
    prepare=lambda site: os.truncate(site.source / SHARDS[1], (site.source / SHARDS[1]).stat().st_size - 1),
)
_add_index_case(
    "and-a-single-file",
    "MalformedCheckpoint",
    "source",
    f"holds both {SMALL_FILE} and {INDEX_FILE}",
    prepare=lambda site: site.write(f"source/{SMALL_FILE}", _WHOLE),
)


# Tensors that are not those of the model.


def _add_tensor_case(name: str, edit: Callable[[dict[str, Stored]], object], *message: str) -> None:
    def build(site: Site) -> Invocation:
        edit_lens(site, edit)
        return site.convert()

    add_case(f"tensors-{name}", build, "UnsupportedCheckpoint", "source", *message)


def _set_dtype(tensor: str, dtype: str, size: int) -> Callable[[dict[str, Stored]], object]:
    """Replace a tensor by one of the same shape and another dtype, whose numbers take so many bytes."""

    def edit(tensors: dict[str, Stored]) -> None:
        old = tensors[tensor]
        tensors[tensor] = Stored(dtype, old.shape, b"\x38" * (len(old.data) // 4 * size))

    return edit


def _reshape(tensor: str, change: Callable[[Stored], Stored]) -> Callable[[dict[str, Stored]], object]:
    return lambda tensors: tensors.update({tensor: change(tensors[tensor])})


_EXTRA = {"extra.weight": Stored("F32", [1], bytes(4))}
_add_tensor_case("none-at-all", lambda tensors: tensors.clear(), "missing", "LensTransformer2DModel needs it")
_add_tensor_case("weight-missing", lambda tensors: tensors.pop(QUANTIZED), QUANTIZED, "missing")
_add_tensor_case("bias-missing", lambda tensors: tensors.pop(KEPT), KEPT, "missing")
_add_tensor_case("one-too-many", lambda tensors: tensors.update(_EXTRA), "extra.weight", "not part of")
_add_tensor_case(
    "renamed",
    lambda tensors: tensors.update({HOSTILE_TEXT: tensors.pop(KEPT)}),
    KEPT,
    "missing; LensTransformer2DModel",
)
_add_tensor_case(
    "one-too-many-hostile", lambda tensors: tensors.update({HOSTILE_TEXT: _EXTRA["extra.weight"]}), "evil\\r\\n\\x1b"
)
_add_tensor_case(
    "weight-transposed",
    _reshape(QUANTIZED, lambda old: Stored(old.dtype, old.shape[::-1], old.data)),
    QUANTIZED,
    "has shape [192, 576]",
    "needs [576, 192]",
)
_add_tensor_case(
    "weight-one-row-short",
    _reshape(QUANTIZED, lambda old: Stored(old.dtype, [575, 192], old.data[: -192 * 4])),
    QUANTIZED,
    "has shape [575, 192]",
)
_add_tensor_case(
    "weight-flat", _reshape(QUANTIZED, lambda old: Stored(old.dtype, [576 * 192], old.data)), QUANTIZED, "has shape"
)
_add_tensor_case("bias-a-scalar", _reshape(KEPT, lambda _: Stored("F32", [], bytes(4))), KEPT, "has shape []")
_add_tensor_case("weight-integers", _set_dtype(QUANTIZED, "I32", 4), QUANTIZED, "is I32")
_add_tensor_case("weight-complex", _set_dtype(QUANTIZED, "C64", 8), QUANTIZED, "is C64")
_add_tensor_case("bias-booleans", _set_dtype(KEPT, "BOOL", 1), KEPT, "is BOOL")
for _dtype in ("U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0"):
    # Eight bits are a quantized weight without the scales that would say what it means.
    _add_tensor_case(f"weight-{_dtype}".lower(), _set_dtype(QUANTIZED, _dtype, 1), QUANTIZED, f"is {_dtype}")
    _add_tensor_case(f"bias-{_dtype}".lower(), _set_dtype(KEPT, _dtype, 1), KEPT, f"is {_dtype}")


# Numbers that are none, or too large.

#: The largest finite number of float32, which bfloat16 rounds to infinity.
LARGEST_FLOAT32 = struct.unpack("<f", b"\xff\xff\x7f\x7f")[0]


def _add_number_case(name: str, tensor: str, number: float, dtype: str = "F32") -> None:
    def edit(tensors: dict[str, Stored]) -> None:
        if dtype == "F64":
            tensors[tensor] = Stored("F64", tensors[tensor].shape, bytes(2 * len(tensors[tensor].data)))
        plant(tensors[tensor], number, 77)

    def build(site: Site) -> Invocation:
        edit_lens(site, edit)
        return site.convert()

    add_case(f"number-{name}", build, "NonFiniteWeight", LENS_FILE, f"tensor {tensor}", hint=("--allow-nonfinite",))


for _place, _tensor in (("quantized", QUANTIZED), ("kept", KEPT)):
    _add_number_case(f"nan-{_place}", _tensor, float("nan"))
    _add_number_case(f"infinity-{_place}", _tensor, float("inf"))
    _add_number_case(f"minus-infinity-{_place}", _tensor, float("-inf"))
    _add_number_case(f"overflow-{_place}", _tensor, LARGEST_FLOAT32)
    _add_number_case(f"overflow-f64-{_place}", _tensor, 1e300, "F64")


@case("number-nan-and-overwrite", "NonFiniteWeight", LENS_FILE, QUANTIZED)
def _number_nan_and_overwrite(site: Site) -> Invocation:
    # What is there must stay as it is when its replacement fails.
    edit_lens(site, lambda tensors: plant(tensors[QUANTIZED], float("nan"), 3))
    site.copy_lens("work/out")
    return site.convert("--overwrite")


# Sources that are quantized already.


@case("quantized-says-the-config", "UnsupportedCheckpoint", "source", "already quantized (bitsandbytes)")
def _quantized_says_the_config(site: Site) -> Invocation:
    edit_config(site.copy_lens(), quantization_config={"quant_method": "bitsandbytes"})
    return site.convert()


@case("quantized-says-a-strange-config", "UnsupportedCheckpoint", "source", "already quantized")
def _quantized_says_a_strange_config(site: Site) -> Invocation:
    edit_config(site.copy_lens(), quantization_config=[])
    return site.convert()


@case("quantized-by-lensconv", "UnsupportedCheckpoint", "source", "already quantized (sdnq)")
def _quantized_by_lensconv(site: Site) -> Invocation:
    convert(site.lens, site.source, options=ConvertOptions(settings=IN_PROCESS[1:]))
    return site.convert()


@case("quantized-by-lensconv-without-its-config", "UnsupportedCheckpoint", "source", "already quantized: tensor")
def _quantized_by_lensconv_without_its_config(site: Site) -> Invocation:
    convert(site.lens, site.source, options=ConvertOptions(settings=IN_PROCESS[1:]))
    shutil.copy(site.lens / "config.json", site.source)
    return site.convert()


# Configs.


def _add_config_case(name: str, *message: str, error: str = "UnsupportedCheckpoint", **changes: Any) -> None:
    def build(site: Site) -> Invocation:
        edit_config(site.copy_lens(), **changes)
        return site.convert()

    add_case(f"config-{name}", build, error, *message)


def _add_config_content_case(name: str, content: bytes, *message: str) -> None:
    def build(site: Site) -> Invocation:
        (site.copy_lens() / "config.json").write_bytes(content)
        return site.convert()

    add_case(f"config-{name}", build, "MalformedCheckpoint", "config.json", *message)


@case("config-missing", "UnsupportedCheckpoint", "source", "no config.json that names a class")
def _config_missing(site: Site) -> Invocation:
    # The tensors of Lens tell what they are; those of this file do not.
    site.write(f"source/{SMALL_FILE}", _WHOLE)
    return site.convert()


@case("config-is-a-folder", "InputError", "config.json")
def _config_is_a_folder(site: Site) -> Invocation:
    config = site.copy_lens() / "config.json"
    config.unlink()
    config.mkdir()
    return site.convert()


@case("config-is-a-dangling-link", "MissingInput", "config.json")
def _config_is_a_dangling_link(site: Site) -> Invocation:
    # As in a cache of the Hub that lacks the file's blob.
    config = site.copy_lens() / "config.json"
    config.unlink()
    config.symlink_to("../blobs/gone")
    return site.convert()


@case("config-too-long", "MalformedCheckpoint", "config.json", "is longer than")
def _config_too_long(site: Site) -> Invocation:
    os.truncate(site.copy_lens() / "config.json", 10**12)
    return site.convert()


_add_config_content_case("empty", b"", "not JSON")
_add_config_content_case("garbage", b"\x89PNG\r\n\x1a\n", "not UTF-8")
_add_config_content_case("cut-short", b'{"_class_name": "LensTr', "not JSON")
_add_config_content_case("array", b"[]", "JSON list, not an object")
_add_config_content_case("5000-digits", b'{"num_layers": ' + b"9" * 5000 + b"}", "not JSON")
_add_config_content_case("nested-too-deep", b"[" * 10**5, "nested too deeply")
_add_config_content_case("repeated-key", b'{"num_layers": 1, "num_layers": 2}', "names num_layers twice")
_add_config_case("class-unknown", "config.json", "NoSuchModel", _class_name="NoSuchModel")
_add_config_case("class-hostile", "config.json", "evil\\r\\n\\x1b", _class_name=HOSTILE_TEXT)
_add_config_case("class-a-path", "config.json", "../../evil", _class_name="../../evil")
_add_config_case("class-private", "config.json", "__class__", _class_name="__class__")
_add_config_case("class-a-number", "config.json", "_class_name", error="InputError", _class_name=5)
_add_config_case("class-a-module", "config.json", "models", _class_name="models")
_add_config_case("class-a-pipeline", "config.json", "FluxPipeline", _class_name="FluxPipeline")
_add_config_case("class-a-scheduler", "config.json", "DDIMScheduler", _class_name="DDIMScheduler")
_add_config_case("class-a-factory", "config.json", "AutoModel", _class_name="AutoModel")
_add_config_case("class-a-base", "config.json", "ModelMixin", _class_name="ModelMixin")
_add_config_case("class-a-base-of-transformers", "config.json", "PreTrainedModel", _class_name="PreTrainedModel")
_add_config_case("class-of-other-tensors", "source", "FluxTransformer2DModel", _class_name="FluxTransformer2DModel")
_add_config_case(
    "architecture-of-other-tensors", "source", "Qwen3", _class_name=None, architectures=["Qwen3ForCausalLM"]
)
_add_config_case(
    "architecture-refuses-it", "config.json", "CLIPTextModel", _class_name=None, architectures=["CLIPTextModel"]
)
_add_config_case(
    "architecture-refuses-a-type",
    "config.json",
    "num_hidden_layers",
    _class_name=None,
    architectures=["LlamaForCausalLM"],
    num_hidden_layers="two",
)
_add_config_case("layers-a-billion", "config.json", "num_layers", num_layers=10**9)
_add_config_case("layers-4000-digits", "config.json", "num_layers", num_layers=10**4000)
_add_config_case("layers-negative", "LensTransformer2DModel", num_layers=-1)
_add_config_case("layers-none", "LensTransformer2DModel", num_layers=0)
_add_config_case("layers-a-string", "config.json", num_layers="1")
_add_config_case("layers-a-float", "config.json", num_layers=1.5)
_add_config_case("layers-true", "config.json", "num_layers", num_layers=True)
_add_config_case("layers-one-too-many", "transformer_blocks.1.", num_layers=2)
_add_config_case("heads-a-trillion", "config.json", num_attention_heads=10**12)
_add_config_case("axes-a-string", "config.json", "axes_dims_rope", axes_dims_rope="8,28,28")
_add_config_case("variant-without-gates", "config.json", "gate_mlp", gate_mlp=False)
_add_config_case(
    "layers-of-flux-a-billion", "config.json", _class_name="FluxTransformer2DModel", num_layers=10**9, inner_dim=None
)
_add_config_case(
    "layers-of-qwen-a-billion",
    "config.json",
    _class_name=None,
    architectures=["Qwen3ForCausalLM"],
    num_hidden_layers=10**9,
)


# Pipeline repos.


def make_pipeline(site: Site, **components: Any) -> Path:
    """A pipeline repo around a valid transformer; returns its folder.

    Args:
        components: further entries of its model_index.json; no folders are made for them.
    """
    site.source.mkdir()
    site.copy_lens("source/transformer")
    index = {
        "_class_name": "LensPipeline",
        "transformer": ["diffusers", "LensTransformer2DModel"],
        "scheduler": [None, None],
        **components,
    }
    site.write("source/model_index.json", json.dumps(index))
    return site.source


_OTHER = ["diffusers", "AutoencoderKL"]


def _add_pipeline_case(
    name: str,
    error: str,
    *message: str,
    components: Mapping[str, Any] | None = None,
    prepare: Callable[[Path], object] = lambda _: None,
    options: tuple[str, ...] = (),
    hint: tuple[str, ...] = (),
) -> None:
    def build(site: Site) -> Invocation:
        prepare(make_pipeline(site, **(components or {})))
        return site.convert(*options)

    add_case(f"pipeline-{name}", build, error, *message, hint=hint)


def _link(name: str, target: str) -> Callable[[Path], object]:
    def prepare(repo: Path) -> None:
        (repo / name).parent.mkdir(exist_ok=True)
        (repo / name).symlink_to(target)

    return prepare


def _pipe(name: str) -> Callable[[Path], object]:
    def prepare(repo: Path) -> None:
        (repo / name).parent.mkdir()
        os.mkfifo(repo / name)

    return prepare


def _link_component_outside(repo: Path) -> None:
    elsewhere = repo.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "secret.json").write_text("{}")
    (repo / "vae").symlink_to(elsewhere)


_INDEX = "model_index.json"
for _name, _component in (
    ("in-the-parent-folder", "../x"),
    ("the-parent-folder", ".."),
    ("the-repo-itself", "."),
    ("absolute", "/etc"),
    ("with-a-backslash", "..\\x"),
    ("with-a-nul", "x\0"),
    ("without-a-name", ""),
):
    _add_pipeline_case(
        f"component-{_name}",
        "MalformedCheckpoint",
        _INDEX,
        "leads out of the folder",
        components={_component: _OTHER},
    )
_add_pipeline_case(
    "component-missing", "MissingInput", "vae", "no such folder, though model_index.json", components={"vae": _OTHER}
)
_add_pipeline_case(
    "transformer-missing",
    "MissingInput",
    "transformer",
    "no such folder, though model_index.json",
    prepare=lambda repo: shutil.rmtree(repo / "transformer"),
)
_add_pipeline_case(
    "component-lone-surrogate", "MissingInput", "x\\ud800", "no such folder", components={"x\ud800": _OTHER}
)
_add_pipeline_case("component-name-too-long", "InputError", "xxx", components={"x" * 300: _OTHER})
_add_pipeline_case(
    "component-hostile", "UsageError", "nope", components={HOSTILE_TEXT: _OTHER}, options=("--component", "nope")
)
_add_pipeline_case(
    "no-denoiser",
    "UnsupportedCheckpoint",
    _INDEX,
    "neither transformer nor unet",
    prepare=lambda repo: (repo / _INDEX).write_text(json.dumps({HOSTILE_TEXT: _OTHER})),
    hint=("--component",),
)
_add_pipeline_case(
    "index-empty",
    "UnsupportedCheckpoint",
    _INDEX,
    "neither transformer nor unet",
    prepare=lambda repo: (repo / _INDEX).write_text("{}"),
)
_add_pipeline_case(
    "index-not-json",
    "MalformedCheckpoint",
    _INDEX,
    "not JSON",
    prepare=lambda repo: (repo / _INDEX).write_text("<html>"),
)
_add_pipeline_case(
    "index-array",
    "MalformedCheckpoint",
    _INDEX,
    "JSON list",
    prepare=lambda repo: (repo / _INDEX).write_text("[]"),
)
_add_pipeline_case(
    "link-to-a-file-outside",
    "MalformedCheckpoint",
    "vae/config.json",
    "is a link out of",
    components={"vae": _OTHER},
    prepare=_link("vae/config.json", "/etc/passwd"),
)
_add_pipeline_case(
    "link-to-a-file-outside-beside-the-weights",
    "MalformedCheckpoint",
    "transformer/notes.txt",
    "is a link out of",
    prepare=_link("transformer/notes.txt", "/etc/passwd"),
)
_add_pipeline_case(
    "link-to-a-folder-outside",
    "MalformedCheckpoint",
    "vae/deep",
    "is a link to a folder",
    components={"vae": _OTHER},
    prepare=_link("vae/deep", "/etc"),
)
_add_pipeline_case(
    "component-a-link-outside",
    "MalformedCheckpoint",
    "vae/secret.json",
    "is a link out of",
    components={"vae": _OTHER},
    prepare=_link_component_outside,
)
_add_pipeline_case(
    "link-to-nothing",
    "MissingInput",
    "vae/config.json",
    components={"vae": _OTHER},
    prepare=_link("vae/config.json", "gone"),
)
_add_pipeline_case(
    "link-to-itself",
    "InputError",
    "vae/config.json",
    components={"vae": _OTHER},
    prepare=_link("vae/config.json", "config.json"),
)
_add_pipeline_case(
    "pipe-in-a-component",
    "MalformedCheckpoint",
    "vae/config.json",
    "not a regular file",
    components={"vae": _OTHER},
    prepare=_pipe("vae/config.json"),
)


# Places to write to.


@case("output-is-a-folder", "OutputError", "out", "exists already", hint=("--overwrite",))
def _output_is_a_folder(site: Site) -> Invocation:
    site.copy_lens()
    site.output.mkdir()
    return site.convert()


@case("output-is-a-file", "OutputError", "out", "exists already")
def _output_is_a_file(site: Site) -> Invocation:
    site.copy_lens()
    site.output.write_text("precious")
    return site.convert()


@case("output-is-a-dangling-link", "OutputError", "out", "exists already")
def _output_is_a_dangling_link(site: Site) -> Invocation:
    site.copy_lens()
    site.output.symlink_to("gone")
    return site.convert()


@case("output-is-a-file-and-overwrite", "OutputError", "out", "not a plain folder")
def _output_is_a_file_and_overwrite(site: Site) -> Invocation:
    site.copy_lens()
    site.output.write_text("precious")
    return site.convert("--overwrite")


@case("output-is-a-link-and-overwrite", "OutputError", "out", "not a plain folder")
def _output_is_a_link_and_overwrite(site: Site) -> Invocation:
    site.copy_lens()
    site.copy_lens("work/real")
    site.output.symlink_to("real")
    return site.convert("--overwrite")


@case("output-is-no-checkpoint-and-overwrite", "OutputError", "out", "contains no checkpoint")
def _output_is_no_checkpoint_and_overwrite(site: Site) -> Invocation:
    site.copy_lens()
    site.write("work/out/thesis.txt", "precious")
    return site.convert("--overwrite")


@case("output-is-the-source", "OutputError", "source", "lies inside the source")
def _output_is_the_source(site: Site) -> Invocation:
    return site.convert("--overwrite", output=site.copy_lens())


@case("output-inside-the-source", "OutputError", "source/deep/out", "lies inside the source")
def _output_inside_the_source(site: Site) -> Invocation:
    return site.convert(output=site.copy_lens() / "deep" / "out")


@case("output-inside-the-source-by-a-link", "OutputError", "shortcut/out", "lies inside the source")
def _output_inside_the_source_by_a_link(site: Site) -> Invocation:
    site.copy_lens()
    (site.work / "shortcut").symlink_to(site.source)
    return site.convert(output=site.work / "shortcut" / "out")


@case("output-inside-the-pipeline", "OutputError", "source/out", "lies inside the source")
def _output_inside_the_pipeline(site: Site) -> Invocation:
    return site.convert(output=make_pipeline(site) / "out")


@case("output-holds-the-source", "OutputError", "lies inside the source, or the source inside it")
def _output_holds_the_source(site: Site) -> Invocation:
    site.copy_lens()
    return site.convert("--overwrite", output=site.root)


@case("output-without-a-name", "OutputError", "needs a name of its own")
def _output_without_a_name(site: Site) -> Invocation:
    site.copy_lens()
    return site.convert(output=site.work / "..")


@case("output-below-a-file", "OutputError", "notes.txt/deep/out", "cannot be written")
def _output_below_a_file(site: Site) -> Invocation:
    site.copy_lens()
    return site.convert(output=site.write("work/notes.txt", "precious") / "deep" / "out")


@case("output-below-a-link-to-itself", "OutputError", "loop/out")
def _output_below_a_link_to_itself(site: Site) -> Invocation:
    site.copy_lens()
    (site.work / "loop").symlink_to("loop")
    return site.convert(output=site.work / "loop" / "out")


@case("output-name-too-long", "OutputError", "nnn", "too long")
def _output_name_too_long(site: Site) -> Invocation:
    # Long enough to leave no room for the staging folder's name; the folder above it is made first.
    site.copy_lens()
    return site.convert(output=site.work / "new" / ("n" * 250))


@case("staging-is-a-file", "OutputError", "out")
def _staging_is_a_file(site: Site) -> Invocation:
    site.copy_lens()
    site.write("work/.out.lensconv", "precious")
    return site.convert()


@case("staging-is-a-link", "OutputError", "out")
def _staging_is_a_link(site: Site) -> Invocation:
    site.copy_lens()
    (site.work / "elsewhere").mkdir()
    (site.work / ".out.lensconv").symlink_to("elsewhere")
    return site.convert()


@case("staging-holds-something-else", "OutputError", "thesis.txt", "not made by lensconv")
def _staging_holds_something_else(site: Site) -> Invocation:
    site.copy_lens()
    site.write("work/.out.lensconv/thesis.txt", "precious")
    return site.convert()


@case("staging-of-another-conversion", "OutputError", "out", "an interrupted conversion differs", hint=("--restart",))
def _staging_of_another_conversion(site: Site) -> Invocation:
    site.copy_lens()
    release = site.work / ".out.lensconv" / "release"
    release.mkdir(parents=True)
    status = release.stat()
    journal = {"identity": {"recipe": "another"}, "release": [status.st_dev, status.st_ino], "content": ""}
    site.write("work/.out.lensconv/journal", json.dumps(journal) + "\n")
    return site.convert()


# Recipes.


def _add_recipe_case(
    name: str, content: bytes | str, *message: str, hint: tuple[str, ...] = (), file: str = "mine.toml"
) -> None:
    def build(site: Site) -> Invocation:
        site.copy_lens()
        recipe = site.write("work/mine.toml", content)
        return site.convert("--recipe", str(recipe))

    add_case(f"recipe-{name}", build, "RecipeError", *(message if not file else (file, *message)), hint=hint)


def _add_option_case(
    name: str, error: str, *message: str, options: tuple[str, ...], hint: tuple[str, ...] = ()
) -> None:
    def build(site: Site) -> Invocation:
        site.copy_lens()
        return site.convert(*options)

    add_case(name, build, error, *message, hint=hint)


_UINT4 = '[sdnq]\nweights_dtype = "uint4"\n'
_add_option_case(
    "recipe-unknown",
    "RecipeError",
    "lens-uint4",
    "no such recipe",
    options=("--recipe", "lens-uint4"),
    hint=("lens-uint4-static",),
)
_add_option_case("recipe-is-a-folder", "RecipeError", "/etc", "no such recipe", options=("--recipe", "/etc"))
_add_option_case("recipe-is-a-device", "RecipeError", "/dev/zero", "no such", options=("--recipe", "/dev/zero"))
_add_option_case("recipe-name-too-long", "InputError", "nnn", options=("--recipe", "n" * 300))
_add_recipe_case("not-toml", "{}", "not TOML")
_add_recipe_case("not-utf-8", b"name = '\xff'", "cannot be read")
_add_recipe_case("repeated-key", "name = 'a'\nname = 'b'", "not TOML")
_add_recipe_case("nested-too-deep", "name = " + "[" * 10**5)
_add_recipe_case("5000-digits", "seed = " + "9" * 5000)
_add_recipe_case("unknown-key", "[sdqn]\n", "sdqn is no key of a recipe", hint=("sdnq",))
_add_recipe_case("unknown-option", "[sdnq]\nweight_dtype = 'uint4'", "weight_dtype is no key", hint=("weights_dtype",))
_add_recipe_case("unknown-key-hostile", '"evil\\u001b[2J" = 1', "evil\\x1b[2J is no key")
_add_recipe_case("option-of-another-type", "[sdnq]\ngroup_size = '64'", "group_size must be an integer")
_add_recipe_case("seed-beyond-64-bits", f"seed = {10**30}\n{_UINT4}use_svd = true\nsvd_rank = 4", "seed")
_add_recipe_case("rule-without-a-glob", f"{_UINT4}[[rules]]\nkeep = true", "rule 1", "needs either match or family")
_add_recipe_case("rule-without-effect", f"{_UINT4}[[rules]]\nmatch = '*'", "rule 1", "keep = true or options")
_add_recipe_case("rule-no-table", f"rules = [1]\n{_UINT4}", "rule 1", "must be a table")
_add_recipe_case(
    "rule-with-unknown-key", f"{_UINT4}[[rules]]\nmatch = '*'\nkept = true", "rule 1", "kept is no key", hint=("keep",)
)
_add_recipe_case(
    "rule-for-nothing",
    f"{_UINT4}[[rules]]\nmatch = '*.img_mood.*'\nkeep = true",
    "*.img_mood.*",
    "matches nothing",
    hint=("img_mod",),
    file="",
)
_add_recipe_case(
    "rule-for-no-family",
    f"{_UINT4}[[rules]]\nfamily = 'atn'\nkeep = true",
    "family atn",
    hint=("attn",),
    file="",
)
_add_recipe_case(
    "unknown-dtype", "[sdnq]\nweights_dtype = 'uint99'", "weights_dtype = uint99", hint=("uint9",), file=""
)
_add_recipe_case("unknown-scale-dtype", f"{_UINT4}scale_dtype = 'F32'", "scale_dtype = F32", file="")
_add_recipe_case(
    "unknown-matmul-dtype", f"{_UINT4}quantized_matmul_dtype = 'uint4'", "quantized_matmul_dtype = uint4", file=""
)
_add_recipe_case(
    "dynamic-from-a-dtype-that-is-not-in-its-order",
    "[sdnq]\nweights_dtype = 'bool'\nuse_dynamic_quantization = true",
    "weights_dtype = bool",
    "dynamic quantization",
    hint=("uint4",),
    file="",
)
_add_option_case("set-without-a-value", "RecipeError", "--set *.attn.*", options=("--set", "*.attn.*"), hint=("int8",))
_add_option_case("set-without-a-glob", "RecipeError", "--set =int8", options=("--set", "=int8"))
_add_option_case(
    "set-for-nothing",
    "RecipeError",
    "*.atn.*",
    "matches nothing in the model",
    options=("--set", "*.atn.*=keep"),
    hint=("attn",),
)
_add_option_case(
    "set-for-what-stays-as-it-is", "RecipeError", "*.norm_q.*", "cannot quantize", options=("--set", "*.norm_q.*=int8")
)
_add_option_case(
    "set-unknown-dtype", "RecipeError", "uint44", options=("--set", "*.attn.to_out.0=uint44"), hint=("uint4",)
)


def _add_unsupported_recipe_case(name: str, content: str, *message: str) -> None:
    def build(site: Site) -> Invocation:
        site.copy_lens()
        return site.convert("--recipe", str(site.write("work/mine.toml", content)))

    add_case(f"recipe-{name}", build, "UnsupportedCheckpoint", *message)


_add_unsupported_recipe_case(
    "rotating-groups-of-nothing",
    f"{_UINT4}use_hadamard = true\nhadamard_group_size = 0",
    "SDNQ cannot quantize LensTransformer2DModel with this recipe",
)


# What the machine lacks.

_add_option_case(
    "memory-too-little", "MemoryLimitError", "--memory 1 ", options=("--memory", "1"), hint=("Allow at least",)
)
_add_option_case("device-unknown", "DeviceError", "nonsense", options=("--device", "nonsense"))
_add_option_case("device-without-data", "DeviceError", "meta", options=("--device", "meta"))
_add_option_case("device-without-data-for-sdnq", "DeviceError", "meta", options=("--device", "meta", *IN_PROCESS))


# Command lines that make no sense.

_add_option_case("usage-unknown-option", "UsageError", "--recipee", options=("--recipee", "x"))
_add_option_case("usage-too-many-arguments", "UsageError", "more", options=("more",))
_add_option_case("usage-value-missing", "UsageError", "--recipe", options=("--recipe",))
_add_option_case("usage-jobs-zero", "UsageError", "--jobs", options=("--jobs", "0"))
_add_option_case("usage-jobs-a-word", "UsageError", "--jobs", options=("--jobs", "many"))
_add_option_case("usage-memory-zero", "UsageError", "--memory", options=("--memory", "0"))
_add_option_case("usage-memory-unknown-unit", "UsageError", "--memory", options=("--memory", "5 lightyears"))
_add_option_case("usage-memory-negative", "UsageError", "--memory", options=("--memory", "-5GB"))
_add_option_case("usage-quantize-from-unknown", "UsageError", "int8", options=("--quantize-from", "int8"))
_add_option_case("usage-component-of-a-component", "UsageError", "source", options=("--component", "vae"))


@case("usage-component-of-a-file", "UsageError", LENS_FILE, "is a file")
def _usage_component_of_a_file(site: Site) -> Invocation:
    return site.convert("--component", "vae", source=site.copy_lens() / LENS_FILE)


@case("usage-no-arguments", "UsageError", "SOURCE")
def _usage_no_arguments(site: Site) -> Invocation:
    return Invocation(("convert",), site.output)


@case("usage-no-output", "UsageError", "OUT")
def _usage_no_output(site: Site) -> Invocation:
    return Invocation(("convert", str(site.copy_lens())), site.output)


@case("usage-unknown-command", "UsageError", "covnert")
def _usage_unknown_command(site: Site) -> Invocation:
    return Invocation(("covnert", str(site.copy_lens()), str(site.output)), site.output)
