"""The header parser against safetensors itself: the same files, the same entries, and nothing worse than a refusal."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.torch import save

from converter.checkpoint.dtypes import BITS, tensor_bytes
from converter.checkpoint.header import Header, TensorEntry, changed_since, encode_header, parse_header, read_header
from converter.errors import MalformedCheckpoint
from converter.models import classes
from tests.conftest import Lensconv
from tests.malformed.site import encode_file, entry

#: torch's dtypes by the names that safetensors gives them, and those that no tensor of torch can have.
TORCH_DTYPES: dict[str, torch.dtype] = (
    {"U64": torch.uint64, "I64": torch.int64, "F64": torch.float64, "C64": torch.complex64}
    | {"F32": torch.float32, "U32": torch.uint32, "I32": torch.int32, "BF16": torch.bfloat16}
    | {"F16": torch.float16, "U16": torch.uint16, "I16": torch.int16, "F8_E5M2FNUZ": torch.float8_e5m2fnuz}
    | {"F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E8M0": torch.float8_e8m0fnu, "F8_E4M3": torch.float8_e4m3fn}
    | {"F8_E5M2": torch.float8_e5m2, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool}
)
NOT_IN_TORCH = {"F6_E3M2", "F6_E2M3"}
#: torch sees two numbers of four bits as one element.
PAIRS_OF_F4 = torch.float4_e2m1fn_x2

FILE = Path("model.safetensors")
NAMES = st.text(max_size=20).filter(lambda name: name != "__metadata__")
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)
TENSORS = st.dictionaries(NAMES, st.tuples(st.sampled_from(sorted(TORCH_DTYPES)), SHAPES), max_size=8)
METADATA = st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3)


def write_with_safetensors(tensors: dict[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str]) -> bytes:
    """A file with tensors of zeros, as the library writes it."""
    zeros = {name: torch.zeros(shape).to(TORCH_DTYPES[dtype]) for name, (dtype, shape) in tensors.items()}
    return bytes(save(zeros, metadata or None))


def parse(content: bytes) -> Header:
    """Parse the header of a file in memory."""
    return parse_header(content, len(content), FILE)


def with_length(body: bytes, data: bytes = b"") -> bytes:
    """A file with a true length field."""
    return struct.pack("<Q", len(body)) + body + data


@given(TENSORS, METADATA)
def test_files_of_safetensors_are_read_and_encoded_again(
    tensors: dict[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str]
) -> None:
    content = write_with_safetensors(tensors, metadata)
    header = parse(content)
    assert {name: (entry.dtype, entry.shape) for name, entry in header.tensors.items()} == tensors
    assert all(entry.bytes == tensor_bytes(entry.dtype, entry.shape) for entry in header.tensors.values())
    assert header.metadata == metadata
    assert header.file_bytes == len(content)
    assert encode_header(header.tensors.values(), header.metadata) == content[: header.data_start]
    assert header.sha256 == hashlib.sha256(content[: header.data_start]).hexdigest()


def test_order_of_dtypes() -> None:
    """A file with a tensor of each dtype that torch has; names that sort the other way must not change the order."""
    storable = {}
    for dtype in {value for value in vars(torch).values() if isinstance(value, torch.dtype)}:
        try:
            tensor = torch.zeros(16, dtype=torch.uint8).view(dtype)
            save({"tensor": tensor})
        except (RuntimeError, TypeError, ValueError, KeyError, SafetensorError):
            continue
        storable[str(dtype)] = tensor
    assert classes.TORCH_DTYPES == TORCH_DTYPES
    orders = []
    for names in (sorted(storable), sorted(storable, reverse=True)):
        header = parse(bytes(save({f"{number:03}": storable[name] for number, name in enumerate(names)})))
        orders.append([entry.dtype for entry in header.tensors.values()])
        assert all(entry.bytes == 16 for entry in header.tensors.values())
    assert orders[0] == orders[1] == [dtype for dtype in BITS if dtype not in NOT_IN_TORCH]


def test_pairs_of_four_bits() -> None:
    content = bytes(save({"w": torch.zeros(3, 4, dtype=torch.uint8).view(PAIRS_OF_F4)}))
    header = parse(content)
    assert header.tensors == {"w": TensorEntry("w", "F4", (3, 8), 0, 12)}
    assert encode_header(header.tensors.values(), {}) == content[: header.data_start]


def test_limits_that_a_header_may_reach(tmp_path: Path) -> None:
    """Most dimensions, and an empty tensor that is listed after the one that starts in its place."""
    shapes = {"b": [1] * 64, "a": [2**63 - 1, 0]}
    entries = {name: entry(shape=shape, offsets=[0, int(name == "b")]) for name, shape in shapes.items()}
    file = tmp_path / "model.safetensors"
    file.write_bytes(encode_file(entries, b"x"))
    header = read_header(file)
    assert ([*header.tensors], changed_since(header)) == (["a", "b"], False)
    file.unlink()
    assert changed_since(header)


@pytest.mark.parametrize(
    ("before", "after"),
    [(b" \n\t\r", b""), (b"", b"\n\t\r"), (b"", b"        "), (b"        ", b"        ")],
    ids=["in front", "behind", "padded", "both"],
)
def test_whitespace_and_missing_metadata_change_nothing(before: bytes, after: bytes) -> None:
    tensors = b'"w":{"data_offsets":[0,4],"dtype":"F32","shape":[1]}'
    plain = parse(with_length(b"{" + tensors + b"}", b"1234"))
    for metadata in (b"", b'"__metadata__":null,', b'"__metadata__":{},'):
        header = parse(with_length(before + b"{" + metadata + tensors + b"}" + after, b"1234"))
        assert (header.tensors, header.metadata) == (plain.tensors, {})


@pytest.mark.parametrize("command", [("verify",), ("plan",), ("convert", "out")])
@pytest.mark.parametrize("metadata", [b"", b'"__metadata__":{"format":"pt"}'])
def test_files_without_tensors(command: tuple[str, ...], metadata: bytes, tmp_path: Path, lensconv: Lensconv) -> None:
    """All names of no tensor are names of Lens, and yet it is none."""
    file = tmp_path / "model.safetensors"
    file.write_bytes(with_length(b"{" + metadata + b"}"))
    name, *output = command
    outcome = lensconv(name, "--json", file, *(tmp_path / place for place in output))
    assert (outcome.code, outcome.result["error"]["message"]) == (2, f"{file}: contains no tensors")


# Files that nobody should have written.


#: What the parser refuses on purpose, though safetensors takes it.
STRICTER = re.compile(
    r"names .* twice$|its entry must have|its dtype \{.*\} is not a dtype"
    r"|its shape must be a list of at most 64 sizes"
)


def check_verdict(content: bytes, folder: Path) -> None:
    """Parser and safetensors accept the same files and see the same in them; the rest is refused, and nothing worse.

    An error of any other kind ends the test.
    """
    file = folder / "fuzzed.safetensors"
    file.write_bytes(content)
    try:
        header = read_header(file)
    except MalformedCheckpoint as error:
        refusal = error.message
    else:
        check_agreement(header, content)
        return
    assert refusal.isprintable()
    assert str(file) in refusal
    if not STRICTER.search(refusal):
        with pytest.raises(SafetensorError):
            safe_open(file, framework="numpy")


def check_agreement(header: Header, content: bytes) -> None:
    """Check that safetensors sees what the parser has seen."""
    with safe_open(header.file, framework="numpy") as opened:
        seen = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
        described = {name: (entry.get_dtype(), tuple(entry.get_shape())) for name, entry in seen.items()}
        assert (opened.metadata() or {}) == header.metadata
    assert described == {name: (entry.dtype, entry.shape) for name, entry in header.tensors.items()}
    read: list[tuple[str, dict[str, Any]]] = deserialize(content)  # type: ignore[no-untyped-call]
    data = {name: bytes(tensor["data"]) for name, tensor in read}
    start = header.data_start
    assert data == {name: content[start + entry.start : start + entry.end] for name, entry in header.tensors.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples."""
    return tmp_path_factory.mktemp("fuzzed")


#: Sizes at which products leave 32 or 64 bits, signed or not, counted in elements, bytes or bits.
SIZES = st.sampled_from([0, 1, 2, 3, 4, 7, 2**31, 2**32 - 1, 2**32, 2**60, 2**61, 2**62, 2**63 - 1, 2**63, 2**64])


@st.composite
def headers_with_odd_shapes(draw: st.DrawFn) -> bytes:
    """Headers whose tensors follow each other without a hole and whose shapes are extreme, and little data."""
    header: dict[str, Any] = {}
    position = 0
    for number in range(draw(st.integers(1, 3))):
        dtype = draw(st.sampled_from(sorted(BITS)))
        shape = draw(st.lists(SIZES, max_size=4) | st.lists(st.sampled_from([1, 2]), min_size=62, max_size=66))
        size = tensor_bytes(dtype, tuple(shape))
        # Sizes as they come out where 64 bits overflow silently.
        end = position + (draw(st.integers(0, 8)) if size is None else size % draw(st.sampled_from([2**128, 2**64])))
        header[f"t{number}"] = {"dtype": dtype, "shape": shape, "data_offsets": [position, end]}
        position = end
    return with_length(json.dumps(header).encode(), bytes(position if position < 1000 else draw(st.integers(0, 8))))


def _single(entry: str, data: bytes = b"") -> bytes:
    return with_length(f'{{"w":{entry}}}'.encode(), data)


@given(st.binary(max_size=200) | st.binary(max_size=100).map(lambda body: with_length(b"{" + body, b"data")))
@example(b"")
@example(bytes(8))
@example(with_length(b"{}"))
@example(_single('{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}'))
@example(_single('{"dtype":"U8","shape":[0],"data_offsets":[-0,0]}'))
@example(_single(f'{{"dtype":"U8","shape":[{2**62},{2**62},0],"data_offsets":[0,0]}}'))
@example(_single(f'{{"dtype":"F64","shape":[{2**62},0],"data_offsets":[0,0]}}'))
@example(_single(f'{{"dtype":"U8","shape":[0,{2**62},{2**62}],"data_offsets":[0,0]}}'))
@example(with_length(b'{"__metadata__":{"a":"\\ud800"}}'))
@example(with_length(b'{"__metadata__":{"\\ud800":"a"}}'))
@example(with_length(b'\n\t\r {"__metadata__":null}\n'))
@example(with_length(b"\xef\xbb\xbf{}"))
@example(_single('{"data_offsets":[0,1],"shape":[1],"dtype":"U8"}', b"x"))
@example(_single('["U8",[1],[0,1]]', b"x"))
@example(_single('{"dtype":{"U8":null},"shape":[1],"data_offsets":[0,1]}', b"x"))
def test_arbitrary_bytes(folder: Path, content: bytes) -> None:
    check_verdict(content, folder)


VALID = st.builds(write_with_safetensors, TENSORS, METADATA)


#: Pieces of JSON that look like what belongs into a header.
TOKENS = (
    *("{", "}", "[", "]", ",", ":", " ", "\t", "\n", "0", "1", "2", "4", "00", "-0", "-1", "1.0", "1e0", "0e0", "+1"),
    *("true", "false", "null", "NaN", "Infinity", "-Infinity", "9" * 25, str(2**62), str(2**63), str(2**64)),
    *('""', '"w"', '"\\u0077"', '"\\ud800"', '"\\udc00\\ud800"', '"\\ud83d\\ude00"', '"é"', '"\\u0000"', '"\x7f"'),
    *('"__metadata__"', '"dtype"', '"shape"', '"data_offsets"', '"U8"', '"F4"', '"F6_E2M3"', '"BOOL"', '"F128"'),
    *(
        '"__metadata__":null,',
        '"a":null,',
        '"dtype":"U8",',
        '{"U8":null}',
        '["U8",[0],[0,0]]',
        "\r",
        "\f",
        "\ufeff",
        "\0",
    ),
    *('"__metadata__":{"a":"b"},', '"v":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},', '"\\u0000":"\\uDBFF",'),
)
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|-?\d+|\s+|.')


def replace_tokens(body: str, changes: Iterable[tuple[int, str, bool]]) -> bytes:
    """Replace tokens of a header, or put others in front of them.

    Args:
        body: the header.
        changes: by place, counted around, the new token and whether it takes the place of the old one.
    """
    tokens: list[str] = _TOKEN.findall(body)
    for place, token, replaces in changes:
        position = place % len(tokens)
        tokens[position : position + int(replaces)] = [token]
    return "".join(tokens).encode()


_CHANGES = st.lists(st.tuples(st.integers(0, 400), st.sampled_from(TOKENS), st.booleans()), min_size=1, max_size=4)


@given(VALID, _CHANGES)
@settings(max_examples=400)
def test_mutated_headers(folder: Path, content: bytes, changes: Sequence[tuple[int, str, bool]]) -> None:
    header = parse(content)
    body = replace_tokens(content[8 : header.data_start].decode(), changes)
    check_verdict(with_length(body, content[header.data_start :]), folder)


@given(VALID, st.integers(0, 400), st.integers(0, 12), st.binary(max_size=8))
@settings(max_examples=300)
def test_mutated_files(folder: Path, content: bytes, start: int, length: int, inserted: bytes) -> None:
    """Bytes are changed, taken out, put in or cut off, in the length field or behind it."""
    start %= len(content) + 1
    check_verdict(content[:start] + inserted + content[start + length :], folder)


@given(headers_with_odd_shapes())
@settings(max_examples=300)
def test_odd_shapes(folder: Path, content: bytes) -> None:
    check_verdict(content, folder)
