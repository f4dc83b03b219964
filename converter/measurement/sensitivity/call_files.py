"""Recorded calls on disk, so that an interrupted measurement goes on with the same ones.

The file is a safetensors file. Its tensors are numbered; the metadata has one JSON object, in which lists of calls name
them. What several calls share is written once. The file is not trusted when it is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from converter.checkpoint.header import Header, parse_json_object, read_header
from converter.errors import EvidenceError
from converter.fields import Fields
from converter.measurement.sensitivity.calls import Call
from converter.measurement.sensitivity.tensor_files import read_tensors, spec_of, write_tensors

#: What the metadata of such a file says.
FORMAT = "lensconv-calls/1"
#: Levels of lists and dictionaries in an argument; models have two.
_DEPTH = 16
_HINT = "Remove the file, and record the calls again."


def write_calls(calls: Sequence[Call], file: Path) -> str:
    """Write calls, as a whole or not at all.

    Returns:
        sha256 of the file, in hexadecimal digits.

    Raises:
        OutputError: it cannot be written.
        DiskError: the disk is full.
    """
    tensors: dict[int, tuple[str, torch.Tensor]] = {}

    def encode(tree: Any) -> Any:
        if isinstance(tree, torch.Tensor):
            return {"tensor": tensors.setdefault(id(tree), (str(len(tensors)), tree))[0]}
        if isinstance(tree, Mapping):
            return {"dict": [[key, encode(value)] for key, value in tree.items()]}
        if isinstance(tree, tuple | list):
            return {"tuple" if isinstance(tree, tuple) else "list": [encode(value) for value in tree]}
        return {"value": tree}

    content = [
        {
            "prompt": call.prompt,
            "step": call.step,
            "arguments": encode(call.arguments),
            "options": encode(call.options),
            "output": encode(call.output),
        }
        for call in calls
    ]
    named = list(tensors.values())
    metadata = {"format": FORMAT, "calls": json.dumps({"calls": content}, separators=(",", ":"))}
    return write_tensors(file, [spec_of(*pair) for pair in named], named, metadata)


def read_calls(file: Path) -> list[Call]:
    """Read what ``write_calls`` wrote.

    Raises:
        MissingInput: the file cannot be read.
        MalformedCheckpoint: it is not a safetensors file, or its metadata is not JSON.
        EvidenceError: it does not describe calls.
    """
    header = read_header(file)
    tables = _tables(header)
    tensors = read_tensors(header)
    return [_decode_call(table, tensors) for table in tables]


def count_calls(file: Path) -> int:
    """The number of calls in a file that ``write_calls`` wrote; their tensors are not read.

    Raises: as ``read_calls``.
    """
    return len(_tables(read_header(file)))


def _tables(header: Header) -> tuple[Fields, ...]:
    """What the metadata says of each call."""
    if header.metadata.get("format") != FORMAT:
        raise EvidenceError(header.file, f"is not a file of recorded calls ({FORMAT})", _HINT)
    content = parse_json_object(header.metadata.get("calls", "").encode(), header.file, "calls in its metadata")
    return Fields(content, str(header.file), EvidenceError).take_tables("calls", "call")


def _decode_call(table: Fields, tensors: Mapping[str, torch.Tensor]) -> Call:
    def decode(tree: Any, depth: int = 0) -> Any:
        if not isinstance(tree, dict) or len(tree) != 1 or depth > _DEPTH:
            raise _malformed(table)
        ((kind, content),) = tree.items()
        if kind == "tensor" and isinstance(content, str) and content in tensors:
            return tensors[content]
        if kind == "value" and isinstance(content, bool | int | float | str | None):
            return content
        if kind in ("list", "tuple") and isinstance(content, list):
            values = [decode(value, depth + 1) for value in content]
            return values if kind == "list" else tuple(values)
        if kind == "dict" and isinstance(content, list):
            return dict(_decode_pair(pair, depth) for pair in content)
        raise _malformed(table)

    def _decode_pair(pair: Any, depth: int) -> tuple[str, Any]:
        if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str):
            raise _malformed(table)
        return pair[0], decode(pair[1], depth + 1)

    arguments, options, output = (decode(table.take(key, dict)) for key in ("arguments", "options", "output"))
    step = table.take("step", int)
    is_output = isinstance(output, tuple) and output and all(_is_number(value) for value in output)
    if not (isinstance(arguments, tuple) and isinstance(options, dict) and is_output and step >= 0):
        raise _malformed(table)
    return Call(table.take("prompt", str), step, arguments, options, output)


def _is_number(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _malformed(table: Fields) -> EvidenceError:
    return EvidenceError(table.where, "does not describe a call of a denoiser", _HINT)
