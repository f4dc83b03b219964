"""Checks of a release against its manifest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path

from converter.checkpoint.checksum import file_sha256
from converter.checkpoint.ignored import is_ignored
from converter.console import Progress
from converter.conversion.release.code import CODE_SUFFIX
from converter.conversion.release.manifest import (
    CONFIG_NAME,
    MANIFEST_NAME,
    QUANTIZATION_CONFIG_NAME,
    ManifestComponent,
)
from converter.models.lens.layout import CLASS_NAME
from converter.verification.audit import Audit
from converter.verification.configuration import differing_options
from converter.verification.report import Check, list_problems


def check_manifest(audits: Sequence[Audit]) -> Check | None:
    """Compare the manifest with the folder and the headers; None if the manifest is missing.

    Args:
        audits: of components of one repo.
    """
    first = audits[0]
    if first.manifest_problem:
        return Check("manifest", False, first.manifest_problem)
    manifest = first.manifest
    if manifest is None:
        return None
    audited = [name for audit in audits for name in _audited_files(audit)]
    problems = [f"{name} is not listed" for name in audited if name not in manifest.files]
    for name, listed in manifest.files.items():
        size = file_size(first.root / name)
        if size is None:
            problems.append(f"{name} is missing")
        elif size != listed.bytes:
            problems.append(f"{name} has {size} bytes, should have {listed.bytes}")
    for audit in audits:
        # Of a component that was not converted, the manifest contains only sizes and sha256 of its files.
        if (described := audit.described) is not None:
            problems += _header_problems(audit, described)
            problems += _figure_problems(audit, described)
    return list_problems("manifest", problems, f"{len(manifest.files)} files exist and have the listed sizes")


def _audited_files(audit: Audit) -> list[str]:
    """The files that make up the checkpoint, by path inside the release."""
    checkpoint = audit.checkpoint
    names = [header.file.name for header in checkpoint.headers]
    names += [checkpoint.index.name] if checkpoint.index else []
    names += [CONFIG_NAME]
    # Another component need not have been quantized by lensconv, which writes this file.
    if audit.described is not None or (checkpoint.folder / QUANTIZATION_CONFIG_NAME).exists():
        names.append(QUANTIZATION_CONFIG_NAME)
    return [checkpoint.prefix + name for name in names]


def files_below(root: Path) -> dict[str, int]:
    """Sizes of the files in a folder and its subfolders, by path inside it; files that cannot be read are left out."""
    sizes = ((path.relative_to(root).as_posix(), file_size(path)) for path in root.rglob("*"))
    return {name: size for name, size in sizes if size is not None}


def visible_files(root: Path) -> dict[str, int]:
    """The same without files that no loader reads, in which tools keep their own records."""
    return {name: size for name, size in files_below(root).items() if not is_ignored(name)}


def code_files(audit: Audit) -> list[str]:
    """Files with code that loaders may run, by path inside the checkpoint; of a single file, those beside it are not
    its own."""
    if audit.checkpoint.is_single_file:
        return []
    return sorted(name for name in visible_files(audit.root) if name.endswith(CODE_SUFFIX))


def file_size(file: Path) -> int | None:
    """Bytes of a file; None if it does not exist, or no file can have this name."""
    try:
        return file.stat().st_size if file.is_file() else None
    except OSError:
        return None


def _header_problems(audit: Audit, described: ManifestComponent) -> Iterator[str]:
    found = {header.file.relative_to(audit.root).as_posix(): header.sha256 for header in audit.checkpoint.headers}
    for name in sorted(found.keys() | described.headers.keys()):
        if name not in found:
            yield f"{name} has a header in the manifest, but is not a weight file of the checkpoint"
        elif described.headers.get(name) != found[name]:
            yield f"the header of {name} is not the one that was written"


def _figure_problems(audit: Audit, described: ManifestComponent) -> Iterator[str]:
    """Compare the figures of the manifest with those of the headers."""
    different = differing_options(described.sdnq, audit.config)
    if different:
        yield f"the manifest's recipe and the quantization config disagree on {different}"
    tensors = len(audit.checkpoint.tensors)
    if described.tensors != tensors:
        yield f"the manifest lists {described.tensors} tensors, the headers {tensors}"
    if described.bytes_by_dtype != audit.checkpoint.bytes_by_dtype:
        yield "the manifest's bytes_by_dtype differ from those in the headers"
    if not audit.is_renamed:
        yield from _parameter_problems(audit, described)
    yield from _module_problems(audit, described)


def _parameter_problems(audit: Audit, described: ManifestComponent) -> Iterator[str]:
    # The source may contain tensors that its class does not load, and count them.
    parameters, has_more = audit.parameters, described.source_tensors > audit.unquantized_tensors
    for name, value in (("output", described.parameters), ("source", described.source_parameters)):
        if value != parameters and not (has_more and value > parameters):
            yield f"the {name} has {value} parameters according to the manifest, {parameters} according to the headers"


def _module_problems(audit: Audit, described: ManifestComponent) -> Iterator[str]:
    unknown = sorted(described.shapes.keys() - audit.modules.keys())
    others = sorted(audit.modules.keys() - described.shapes.keys())
    # transformers gives the tensors of some classes other names than their modules have; no other class does.
    if len(unknown) != len(others) or audit.class_name == CLASS_NAME:
        reason = "{} is quantized according to {}, but not according to {}"
        yield from (reason.format(name, "the manifest", "its tensors") for name in unknown)
        yield from (reason.format(name, "its tensors", "the manifest") for name in others)
    for name in described.shapes.keys() & audit.modules.keys():
        shape = described.shapes[name]
        if audit.modules[name].elements not in (None, prod(shape)):
            yield f"{name} has shape {list(shape)} according to the manifest, which does not fit its tensors"


def unlisted_files(audit: Audit) -> list[str]:
    """Files that the manifest does not list, such as a README; empty if the manifest is missing."""
    if audit.manifest is None:
        return []
    return sorted(visible_files(audit.root).keys() - {*audit.manifest.files, MANIFEST_NAME})


def check_sums(audit: Audit, progress: Progress) -> Check:
    """Compare every file of a release with the sha256 in its manifest.

    Args:
        audit: of the release.
        progress: counts the bytes that have been read.
    """
    if audit.manifest is None:
        return Check("checksums", False, audit.manifest_problem)
    listed = audit.manifest.files
    problems = []
    for name, entry in listed.items():
        try:
            digest = file_sha256(audit.root / name, progress)
        except OSError as error:
            problems.append(f"{name} cannot be read: {error!s:.80}")
            continue
        if digest is None:
            problems.append(f"{name} is missing")
        elif digest != entry.sha256:
            problems.append(f"{name} has another sha256 than the manifest says")
    return list_problems("checksums", problems, f"{len(listed)} files have the sha256 that the manifest lists")
