"""Comparing the files of a release with its manifest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.checkpoint.checksum import file_sha256
from converter.checkpoint.source import is_plain_name, read_json
from converter.console import Progress
from converter.conversion.release.manifest import CONFIG_NAME, MANIFEST_NAME, MANIFEST_VERSION, QUANTIZATION_CONFIG_NAME
from converter.errors import InputError, MalformedCheckpoint, printable
from converter.models.lens.layout import CLASS_NAME
from converter.verification.configuration import differing_options, shown
from converter.verification.report import NAMED_PROBLEMS, Check, list_problems

if TYPE_CHECKING:
    from converter.verification.audit import Audit


@dataclass(frozen=True)
class ListedFile:
    """A file as the manifest lists it."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a manifest says of a release, once it has been found to make sense."""

    files: Mapping[str, ListedFile]
    """By path inside the release."""
    component: str
    """The one that was converted; empty outside of a pipeline repo."""
    headers: Mapping[str, str]
    """sha256 of the headers of its weight files, by path inside the release."""
    sdnq: Mapping[str, Any]
    """SDNQ's configuration."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of the weights that were quantized, by module."""
    figures: Mapping[str, Any]
    """``tensors``, ``parameters`` and ``bytes_by_dtype`` of the output."""
    source_tensors: int
    source_parameters: int


def read_manifest(root: Path) -> Manifest | None:
    """Read the manifest of a release; None when it has none.

    Raises:
        MissingInput: it cannot be read.
        MalformedCheckpoint: it is no manifest of this version, or lists what it cannot mean.
    """
    file = root / MANIFEST_NAME
    if not file.is_file():
        return None
    content = read_json(file)
    version = content.get("format_version")
    if content.get("format") != "lensconv-manifest" or type(version) is not int or version != MANIFEST_VERSION:
        raise MalformedCheckpoint(
            file, f"is {shown(content.get('format'))}, version {shown(version)}; version {MANIFEST_VERSION} is known"
        )
    source, recipe, output = (_typed(content, key, dict, file) for key in ("source", "recipe", "output"))
    headers = _typed(output, "headers", dict, file)
    if not all(isinstance(digest, str) for digest in headers.values()):
        raise MalformedCheckpoint(file, "has a header's sha256 that is no string")
    return Manifest(
        files=_listed_files(_typed(content, "files", list, file), file),
        component=_typed(content, "component", str, file),
        headers=headers,
        sdnq=_typed(recipe, "sdnq", dict, file),
        shapes=dict(_quantized_shapes(_typed(recipe, "quantized", dict, file), file)),
        figures={
            "tensors": _typed(output, "tensors", int, file),
            "parameters": _typed(output, "parameters", int, file),
            "bytes_by_dtype": _typed(output, "bytes_by_dtype", dict, file),
        },
        source_tensors=_typed(source, "tensors", int, file),
        source_parameters=_typed(source, "parameters", int, file),
    )


def _typed(content: Mapping[str, Any], key: str, kind: type, file: Path) -> Any:
    if type(content.get(key)) is not kind:
        raise MalformedCheckpoint(file, f"has no {key} that is a {kind.__name__}")
    return content[key]


def _listed_files(files: list[Any], file: Path) -> dict[str, ListedFile]:
    """The files that a manifest lists, once no name leads out of the folder."""
    listed: dict[str, ListedFile] = {}
    for entry in files:
        if not isinstance(entry, dict) or {type(entry.get(key)) for key in ("name", "sha256")} != {str}:
            raise MalformedCheckpoint(file, "lists a file without a name or a sha256")
        name = entry["name"]
        if type(entry.get("bytes")) is not int or not all(is_plain_name(part) for part in name.split("/")):
            raise MalformedCheckpoint(file, f"lists {name}, which it cannot mean")
        if name in listed:
            raise MalformedCheckpoint(file, f"lists {name} twice")
        listed[name] = ListedFile(entry["bytes"], entry["sha256"])
    return listed


def _quantized_shapes(quantized: Mapping[str, Any], file: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, module in quantized.items():
        shape = module.get("shape") if isinstance(module, dict) else None
        if not isinstance(shape, list) or not all(type(size) is int and 0 < size < 1 << 63 for size in shape):
            raise MalformedCheckpoint(file, f"gives {name} a shape that no weight can have")
        yield name, tuple(shape)


def check_manifest(audit: Audit) -> Check | None:
    """Compare what the manifest says with the folder and the headers; None when there is no manifest."""
    if audit.manifest_problem:
        return Check("manifest", False, audit.manifest_problem)
    manifest = audit.manifest
    if manifest is None:
        return None
    problems = [f"{printable(name)} is not listed" for name in _audited_files(audit) if name not in manifest.files]
    for name, listed in manifest.files.items():
        size = _size(audit.root / name)
        if size is None:
            problems.append(f"{printable(name)} is missing")
        elif size != listed.bytes:
            problems.append(f"{printable(name)} has {size} bytes, should have {listed.bytes}")
    # A component that was only brought along is listed, and nothing more is said of it.
    if _is_described(audit):
        problems += _header_problems(audit, manifest)
        problems += _figure_problems(audit, manifest)
    return list_problems("manifest", problems, f"{len(manifest.files)} files are there at their sizes")


def _audited_files(audit: Audit) -> list[str]:
    """The files that make up the checkpoint, by path inside the release."""
    checkpoint = audit.checkpoint
    names = [header.file.name for header in checkpoint.headers]
    names += [checkpoint.index.name] if checkpoint.index else []
    names += [CONFIG_NAME]
    # A component that was only brought along need not have been quantized by lensconv, which writes this one.
    if _is_described(audit) or (checkpoint.folder / QUANTIZATION_CONFIG_NAME).exists():
        names.append(QUANTIZATION_CONFIG_NAME)
    return [checkpoint.prefix + name for name in names]


def _is_described(audit: Audit) -> bool:
    """Whether the checkpoint is the component that the manifest describes."""
    return audit.manifest is not None and audit.manifest.component == audit.checkpoint.component


def files_below(root: Path) -> dict[str, int]:
    """Sizes of the files in a folder and its folders that can be seen, by path inside it."""
    sizes = ((path.relative_to(root).as_posix(), _size(path)) for path in root.rglob("*"))
    return {name: size for name, size in sizes if size is not None}


def _size(file: Path) -> int | None:
    """Bytes of a file; None when there is no such file, or no file can have that name."""
    try:
        return file.stat().st_size if file.is_file() else None
    except (OSError, ValueError):
        return None


def _header_problems(audit: Audit, manifest: Manifest) -> Iterator[str]:
    found = {header.file.relative_to(audit.root).as_posix(): header.sha256 for header in audit.checkpoint.headers}
    for name in sorted(found.keys() | manifest.headers.keys()):
        if name not in found:
            yield f"{printable(name)} has a header in the manifest and is no weight file of the checkpoint"
        elif manifest.headers.get(name) != found[name]:
            yield f"the header of {printable(name)} is not the one that was written"


def _figure_problems(audit: Audit, manifest: Manifest) -> Iterator[str]:
    """Compare what the manifest tells people with what the headers tell."""
    different = differing_options(manifest.sdnq, audit.config)
    if different:
        yield f"its recipe and the quantization config disagree on {different}"
    tensors = len(audit.checkpoint.tensors)
    for name, value in (("tensors", tensors), ("bytes_by_dtype", audit.checkpoint.bytes_by_dtype)):
        if manifest.figures[name] != value:
            yield f"its {name} are not those of the headers"
    if not audit.is_renamed:
        yield from _parameter_problems(audit, manifest)
    yield from _module_problems(audit, manifest)


def _parameter_problems(audit: Audit, manifest: Manifest) -> Iterator[str]:
    # The source may hold tensors that its class does not load, and count them.
    parameters, has_more = audit.parameters, manifest.source_tensors > audit.unquantized_tensors
    for name, value in (("output", manifest.figures["parameters"]), ("source", manifest.source_parameters)):
        if value != parameters and not (has_more and value > parameters):
            yield f"the {name} has {value} parameters by the manifest, {parameters} by the headers"


def _module_problems(audit: Audit, manifest: Manifest) -> Iterator[str]:
    unknown = sorted(manifest.shapes.keys() - audit.modules.keys())
    others = sorted(audit.modules.keys() - manifest.shapes.keys())
    # transformers gives the tensors of some classes other names than their modules have; no other class does.
    if len(unknown) != len(others) or audit.class_name == CLASS_NAME:
        yield from (f"{printable(name)} is quantized by the manifest and not by its tensors" for name in unknown)
        yield from (f"{printable(name)} is quantized by its tensors and not by the manifest" for name in others)
    for name in manifest.shapes.keys() & audit.modules.keys():
        shape = manifest.shapes[name]
        if audit.modules[name].elements not in (None, prod(shape)):
            yield f"{printable(name)} has shape {list(shape)} by the manifest, which its tensors cannot hold"


def unlisted_files(audit: Audit) -> str:
    """A note about files that the manifest does not list, such as a README; empty when there are none."""
    if audit.manifest is None:
        return ""
    expected = {*audit.manifest.files, MANIFEST_NAME}
    # Tools keep their own records in hidden files and folders.
    found = (name for name in sorted(files_below(audit.root)) if "/." not in f"/{name}")
    unlisted = [printable(name) for name in found if name not in expected]
    if not unlisted:
        return ""
    more = f" and {len(unlisted) - NAMED_PROBLEMS} more" if len(unlisted) > NAMED_PROBLEMS else ""
    return f"the manifest does not list {', '.join(unlisted[:NAMED_PROBLEMS])}{more}"


def check_sums(root: Path, progress: Progress) -> Check:
    """Compare every file of a release with the sha256 in its manifest.

    Args:
        root: the release, which has a manifest.
        progress: is told how many bytes have been read.
    """
    try:
        manifest = read_manifest(root)
    except InputError as error:
        return Check("checksums", False, error.message)
    listed = manifest.files if manifest else {}
    problems = []
    for name, entry in listed.items():
        try:
            digest = file_sha256(root / name, progress)
        except (OSError, ValueError) as error:
            problems.append(f"{printable(name)} cannot be read: {printable(str(error), 80)}")
            continue
        if digest is None:
            problems.append(f"{printable(name)} is missing")
        elif digest != entry.sha256:
            problems.append(f"{printable(name)} has another sha256 than the manifest says")
    good = f"{len(listed)} files, of {len(files_below(root))} in the folder, are as written"
    return list_problems("checksums", problems, good)
