"""The file of a calibration: second moments of the inputs of linear layers, gathered with the unquantized model.

It is a safetensors file. For a module, the tensor ``MODULE.hessian`` is H = mean(x·xᵀ) over inputs x, F32,
``[channels, channels]``, or only equal blocks on its diagonal, ``[blocks, size, size]``. Its metadata, all of them
strings, are:

``format``
    ``lensconv-calibration/1``.
``source``
    A JSON object: sha256 of the header of each weight file of the model, by name of the file.
``shares``
    A JSON object: by module whose inputs are always those of another one, that module or its tensor; may be missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from converter.checkpoint.checksum import file_sha256
from converter.checkpoint.header import Header, TensorEntry, changed_since, parse_json_object, read_header
from converter.checkpoint.source import Checkpoint, SourceTensor
from converter.errors import CalibrationError, MissingInput, first_few, unreadable

FORMAT = "lensconv-calibration/1"
#: What the name of a module's tensor ends with.
SUFFIX = ".hessian"
DTYPE = "F32"


@dataclass(frozen=True)
class Calibration:
    """What is known of the inputs of one component."""

    sha256: str
    """Of the file."""
    moments: Mapping[str, SourceTensor]
    """Second moments by module; empty if the file is about other components."""


@dataclass(frozen=True)
class CalibrationFile:
    """A calibration whose header and metadata were examined, and of which no tensor is held."""

    header: Header
    sha256: str
    """Of the whole file."""
    source: Mapping[str, str]
    """sha256 of the headers of the model's weight files, by name."""
    moments: Mapping[str, SourceTensor]
    """Second moments by module."""

    @property
    def file(self) -> Path:
        """Where it is."""
        return self.header.file

    def is_about(self, checkpoint: Checkpoint) -> bool:
        """Whether it was gathered with this model; False for a component whose files have other names.

        Raises:
            CalibrationError: files of the same names have other headers, or some are missing.
        """
        found = {header.file.name: header.sha256 for header in checkpoint.headers}
        if found.keys().isdisjoint(self.source):
            return False
        different = sorted(
            name for name in found.keys() | self.source.keys() if found.get(name) != self.source.get(name)
        )
        if different:
            raise CalibrationError(
                self.file,
                f"was gathered with another model than {checkpoint.folder}: headers differ in {first_few(different)}",
                "Gather it again, with this model.",
            )
        return True

    def of(self, checkpoint: Checkpoint) -> Calibration:
        """What it says of one component. Raises what ``is_about`` raises."""
        return Calibration(self.sha256, self.moments if self.is_about(checkpoint) else {})


def open_calibration(file: Path) -> CalibrationFile:
    """Read the header and the checksum of a calibration.

    Raises:
        MissingInput: the file does not exist or cannot be read.
        MalformedCheckpoint: it is not a safetensors file.
        CalibrationError: its metadata are not those of a calibration, a tensor is not a square of F32, or it was
            changed meanwhile.
    """
    if file.is_dir():
        raise MissingInput(file, "is a folder", "Name the file of the calibration.")
    header = read_header(file)
    name = header.metadata.get("format")
    if name != FORMAT:
        raise CalibrationError(file, f"is not a calibration: its format is {name!s:.80}, not {FORMAT}")
    source, shares = (_strings(header, key) for key in ("source", "shares"))
    if not source:
        raise CalibrationError(file, "does not name the files of the model that it was gathered with (source)")
    tensors = {
        name: SourceTensor(_checked(header, name), file, header.data_start + entry.start)
        for name, entry in header.tensors.items()
    }
    moments = {name.removesuffix(SUFFIX): tensor for name, tensor in tensors.items() if name.endswith(SUFFIX)}
    for module, shared in shares.items():
        found = tensors.get(shared) or tensors.get(shared + SUFFIX)
        if found is None:
            raise CalibrationError(file, f"does not contain it, though {module:.200} shares it", tensor=shared)
        moments[module] = found
    try:
        sha256 = file_sha256(file)
    except OSError as error:
        raise unreadable(file, error) from error
    if sha256 is None or changed_since(header):
        hint = "Wait until no program writes to it, then run the command again."
        raise CalibrationError(file, "was changed while it was read", hint)
    return CalibrationFile(header, sha256, source, moments)


def _checked(header: Header, name: str) -> TensorEntry:
    entry = header.tensors[name]
    is_square = len(entry.shape) in (2, 3) and entry.shape[-1] == entry.shape[-2]
    if not name.endswith(SUFFIX) or entry.dtype != DTYPE or not is_square or not entry.bytes:
        reason = f"is {entry.dtype} {list(entry.shape)}, not {DTYPE} [channels, channels] with a name in {SUFFIX}"
        raise CalibrationError(header.file, reason, tensor=name)
    return entry


def _strings(header: Header, key: str) -> dict[str, str]:
    """A JSON object of strings among the metadata; empty if the key is missing."""
    content = parse_json_object(header.metadata.get(key, "{}").encode(), header.file, f"its {key}")
    if not all(isinstance(value, str) for value in content.values()):
        raise CalibrationError(header.file, f"a value of its {key} is not a string")
    return content
