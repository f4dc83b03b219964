"""The cases of the corpus, the folder in which each builds its files, and what they are built with."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

_INPUT = "InputError UsageError MissingInput MalformedCheckpoint UnsupportedCheckpoint NonFiniteWeight"
_CODES = {2: f"{_INPUT} RecipeError OutputError", 3: "DiskError MemoryLimitError DeviceError"}
#: Exit codes of the contract (section 4 of the design), by the type of the error.
EXIT_CODES = {name: code for code, names in _CODES.items() for name in names.split()}
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


class Invocation(NamedTuple):
    """A command line and the place that it asks to write to."""

    arguments: tuple[str, ...]
    output: Path


@dataclass
class Site:
    """The folder in which one case builds its files."""

    root: Path
    lens: Path
    """A valid Lens checkpoint, to copy and not to change."""

    def __post_init__(self) -> None:
        self.source = self.root / "source"
        """Where a case puts what it gives to the command."""
        self.work = self.root / "work"
        """The folder, made beforehand, in which the output is asked for."""
        self.output = self.work / "out"
        """Where the output is asked for unless a case says otherwise."""

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


#: Makes the files of a case; returns its command line, None where that is ``Site.convert`` without options.
Builder = Callable[[Site], Invocation | None]


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

    def prepare(self, site: Site) -> Invocation:
        """Make the files of the case; returns its command line."""
        return self.build(site) or site.convert()

    @property
    def exit_code(self) -> int:
        """Exit code of the command."""
        return EXIT_CODES[self.error]


CASES: dict[str, Case] = {}


def add_case(name: str, build: Builder, error: str, *message: str, hint: tuple[str, ...] = ()) -> None:
    """Put a case into the registry."""
    assert name not in CASES, name
    CASES[name] = Case(name, build, error, message, hint)


def case(name: str, error: str, *message: str, hint: tuple[str, ...] = ()) -> Callable[[Builder], Builder]:
    """Register the decorated function as the builder of a case."""

    def register(build: Builder) -> Builder:
        add_case(name, build, error, *message, hint=hint)
        return build

    return register


def rows_of(table: str) -> list[Any]:
    """Rows of a table in ``tables.jsonl``, where each line has the name of its table and some rows."""
    lines = map(json.loads, Path(__file__).with_name("tables.jsonl").read_text("utf-8").splitlines())
    return [row for name, *rows in lines if name == table for row in rows]


# Safetensors files, written without the code that is under test.


@dataclass
class Stored:
    """A tensor in a file: its dtype, its shape and its bytes."""

    dtype: str
    shape: list[int]
    data: bytes


def encode_file(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file, its header given by bytes or as JSON; its length field says the truth unless told other."""
    body = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(body) if length is None else length) + body + data


def entry(dtype: Any = "U8", shape: Any = (1,), offsets: Any = (0, 1), **others: Any) -> dict[str, Any]:
    """A header's entry for one tensor; by default one byte at the start of the data."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **others}


def read_tensors(file: Path) -> dict[str, Stored]:
    """All tensors of a valid file."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    header.pop("__metadata__", None)
    places = {name: slice(*item["data_offsets"]) for name, item in header.items()}
    return {name: Stored(item["dtype"], item["shape"], data[places[name]]) for name, item in header.items()}


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


#: A valid file of one tensor that is not a model.
WHOLE_FILE = encode_file({"w": entry("F32", [2], [0, 8])}, bytes(8))
