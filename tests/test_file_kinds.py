"""Files that are something else than their names say: each kind is named, wherever a header or JSON should be."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from converter.checkpoint.file_kinds import KIND_BYTES, foreign_kind, weights_kind
from converter.checkpoint.header import read_header
from converter.checkpoint.source import open_checkpoint
from converter.checkpoint.weights import FOREIGN_SUFFIXES
from converter.errors import MalformedCheckpoint, UnsupportedCheckpoint
from tests.conftest import Lensconv
from tests.test_header import VALID, with_length

WEIGHTS = "model.safetensors"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 8441024\n" % (b"0123" * 16)
PAGE = b"\n  <!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"
ERROR = b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code><Message>Expired</Message></Error>'
INDEX = json.dumps({"metadata": {"total_size": 4}, "weight_map": {"w": "model-00001-of-00002.safetensors"}}).encode()


def written(write: Callable[[io.BytesIO], object]) -> bytes:
    """What a function writes into a file."""
    stream = io.BytesIO()
    write(stream)
    return stream.getvalue()


def write_tar(stream: io.BytesIO) -> None:
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.safetensors"))


def write_zip(stream: io.BytesIO) -> None:
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("model/config.json", "{}")


def write_old_torch(stream: io.BytesIO) -> None:
    torch.save({"w": torch.ones(2)}, stream, _use_new_zipfile_serialization=False)


PICKLE = "a pickle, which can run code when it is opened"
TO_SAFETENSORS, AGAIN, UNPACK = "Convert it to safetensors first.", "Download the file again.", "Unpack it, then"
#: The kind, a file of it as its own library writes it where that is at hand, what the message says, and the hint.
KINDS: dict[str, tuple[bytes, str, str]] = {
    "GGUF": (b"GGUF\3\0\0\0" + bytes(40), "a GGUF file", "Convert the checkpoint that it was made from."),
    "pointer": (POINTER, "a Git LFS pointer, not the file itself", "Run `git lfs pull`"),
    "page": (PAGE, "an HTML page", f"{AGAIN} A page"),
    "page after a mark": (b"\xef\xbb\xbf<HTML>", "an HTML page", AGAIN),
    "page in XML": (b'<?xml version="1.0"?><!DOCTYPE html><html/>', "an HTML page", AGAIN),
    "error of a store": (ERROR, "an XML error message of a storage service", f"{AGAIN} The link has expired"),
    "XML": (b'<?xml version="1.0"?><model/>', "an XML file", AGAIN),
    "torch.save": (
        written(lambda stream: torch.save({"w": torch.ones(2)}, stream)),
        "an archive of torch.save, which contains a pickle",
        TO_SAFETENSORS,
    ),
    "old torch.save": (written(write_old_torch), PICKLE, TO_SAFETENSORS),
    **{f"pickle {number}": (pickle.dumps([1.0] * 9, number), PICKLE, TO_SAFETENSORS) for number in range(2, 6)},
    "npz": (written(lambda stream: np.savez(stream, w=np.ones(2))), "an npz archive of NumPy", TO_SAFETENSORS),
    "npy": (written(lambda stream: np.save(stream, np.ones(2))), "a NumPy array", TO_SAFETENSORS),
    "zip": (written(write_zip), "a zip archive", UNPACK),
    "tar": (written(write_tar), "a tar archive", UNPACK),
    "gzip": (gzip.compress(bytes(99)), "a gzip archive", UNPACK),
    "bzip2": (bz2.compress(bytes(99)), "a bzip2 archive", UNPACK),
    "xz": (lzma.compress(bytes(99)), "an xz archive", UNPACK),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(40), "a zstd archive", UNPACK),
    "7-Zip": (b"7z\xbc\xaf\x27\x1c" + bytes(40), "a 7-Zip archive", UNPACK),
    "RAR": (b"Rar!\x1a\x07\1\0" + bytes(40), "a RAR archive", UNPACK),
    "empty zip": (written(lambda stream: zipfile.ZipFile(stream, "w").close()), "an empty zip archive", AGAIN),
    "PNG": (written(lambda stream: Image.new("L", (2, 2)).save(stream, "PNG")), "a PNG image", "Check the path."),
    "JPEG": (written(lambda stream: Image.new("L", (2, 2)).save(stream, "JPEG")), "a JPEG image", "Check the path."),
    "ELF": (Path(sys.executable).resolve().read_bytes()[:600], "a program or library of Linux", "Check the path."),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(40), "an HDF5 file", TO_SAFETENSORS),
    "zeros": (bytes(4096), "filled with zeros from its beginning", f"{AGAIN} The download did not finish."),
}
#: Kinds that only show where a header should be, because JSON is text.
TEXTS: dict[str, tuple[bytes, str, str]] = {
    "nothing": (b"", "empty", AGAIN),
    "index": (INDEX, "an index of shards", "Give the folder"),
    "JSON": (b'{"error": "Invalid credentials"}', "JSON text", AGAIN),
    "short text": (b"Entry not found", "a text file that says 'Entry not found'", AGAIN),
    "long text": ("café ".encode() * 300, "a text file that says 'café café", AGAIN),
}


@pytest.mark.parametrize(("content", "name", "hint"), (KINDS | TEXTS).values(), ids=[*KINDS, *TEXTS])
def test_in_place_of_a_safetensors_file(content: bytes, name: str, hint: str, tmp_path: Path) -> None:
    file = tmp_path / WEIGHTS
    file.write_bytes(content)
    with pytest.raises(MalformedCheckpoint) as caught:
        read_header(file)
    assert caught.value.message.startswith(f"{file}: should be a safetensors file, but is {name}")
    assert caught.value.hint.startswith(hint)


@pytest.mark.parametrize("place", ["config.json", "model.safetensors.index.json", "../model_index.json"])
@pytest.mark.parametrize(("content", "name", "hint"), KINDS.values(), ids=KINDS)
def test_in_place_of_json(content: bytes, name: str, hint: str, place: str, tmp_path: Path) -> None:
    component = tmp_path / "transformer"
    component.mkdir()
    (component / WEIGHTS).write_bytes(with_length(b"{}"))
    (component / place).write_bytes(content)
    with pytest.raises(MalformedCheckpoint) as caught:
        open_checkpoint(tmp_path if place.startswith("..") else component)
    assert caught.value.message.endswith(f"{Path(place).name}: should be JSON, but is {name}")
    assert caught.value.hint.startswith(hint)


@pytest.mark.parametrize("command", [("verify",), ("plan",), ("convert", "out")])
def test_commands_name_the_kind(command: tuple[str, ...], tmp_path: Path, lensconv: Lensconv) -> None:
    file = tmp_path / WEIGHTS
    file.write_bytes(POINTER)
    outcome = lensconv(command[0], file, *(tmp_path / name for name in command[1:]))
    assert outcome.code == 2
    assert (
        "should be a safetensors file, but is a Git LFS pointer, not the file itself. Run `git lfs pull`"
        in outcome.stderr
    )


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "../model_index.json"])
def test_a_source_that_is_the_json_of_a_folder(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text("{}")
    with pytest.raises(UnsupportedCheckpoint) as caught:
        open_checkpoint(file)
    assert (caught.value.message, caught.value.hint) == (
        f"{file}: contains no weights",
        "Give the folder that contains it.",
    )


@pytest.mark.parametrize("suffix", FOREIGN_SUFFIXES)
def test_folders_with_weights_in_another_format(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"model{suffix}").touch()
    with pytest.raises(UnsupportedCheckpoint, match=rf"contains model\{suffix} and no safetensors weights"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("length", [0x0280, 0x0580, 0x088B1F, 0x04034B50])
def test_a_cut_file_whose_length_looks_like_a_magic(length: int, tmp_path: Path) -> None:
    """The lengths begin as pickles, gzip and zip archives do."""
    file = tmp_path / WEIGHTS
    for body in (b'{"w":', b" \n{"):
        file.write_bytes(length.to_bytes(8, "little") + body)
        with pytest.raises(MalformedCheckpoint, match=f"claims a header of {length} bytes, but the file ends at byte"):
            read_header(file)


@given(VALID)
def test_no_safetensors_file_is_taken_for_another(content: bytes) -> None:
    assert weights_kind(content[:KIND_BYTES]) is None


@given(st.binary(max_size=KIND_BYTES) | st.sampled_from([case[0] for case in KINDS.values()]))
def test_kinds_are_found_in_any_bytes(content: bytes) -> None:
    """Nothing else than an answer, however short the file; what shows in JSON shows in weights, too."""
    for end in (*range(40), KIND_BYTES):
        kind = foreign_kind(content[:end])
        assert weights_kind(content[:end]) == kind or kind is None
