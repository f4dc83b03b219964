"""The names of a release's files, and the manifest that lists them.

``convert`` makes the manifest, ``card`` amends it; ``verify``, ``card`` and ``publish`` read it. Like every file that
lensconv writes into a release, it contains no time, path, host or anything else that differs between two runs on the
same input.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.checkpoint.files import is_plain_name, read_json
from converter.conversion.adapters.described import ManifestAdapter
from converter.conversion.release.rounding import ManifestRounding
from converter.errors import MalformedCheckpoint
from converter.fields import Fields

MANIFEST_NAME = "lensconv_manifest.json"
SUMMARY_NAME = "sdnq_quantization_summary.json"
QUANTIZATION_CONFIG_NAME = "quantization_config.json"
CONFIG_NAME = "config.json"
CARD_NAME = "README.md"
#: Folder in a release for what lensconv notes about it on this machine; it is never published.
STATE_FOLDER = ".lensconv"
#: What the manifest says of its own format. Version 1 described one component, by the same keys at its top.
MANIFEST_FORMAT = "lensconv-manifest"
MANIFEST_VERSION = 2
_READ_VERSIONS = (1, MANIFEST_VERSION)


@dataclass(frozen=True)
class ReleaseFile:
    """A file as the manifest lists it."""

    name: str
    """Path inside the release, with slashes."""
    bytes: int
    sha256: str

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"name": self.name, "bytes": self.bytes, "sha256": self.sha256}


def describe_file(name: str, content: bytes) -> ReleaseFile:
    """The entry of the manifest for a file with this content."""
    return ReleaseFile(name, len(content), hashlib.sha256(content).hexdigest())


def write_file(folder: Path, name: str, content: bytes) -> ReleaseFile:
    """Write a small file durably.

    Raises:
        OSError: it cannot be written.
    """
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    return describe_file(name, content)


def encode_json(content: Mapping[str, Any]) -> bytes:
    """JSON as diffusers and transformers write their configs."""
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


@dataclass(frozen=True)
class ManifestComponent:
    """What a manifest says about one component that was converted."""

    name: str
    """Its folder in the pipeline repo; empty outside of one."""
    source: Mapping[str, Any]
    """The JSON object about what it was made from."""
    recipe: Mapping[str, Any]
    """The JSON object about how it was quantized."""
    class_name: str
    headers: Mapping[str, str]
    """sha256 of the headers of its weight files, by path inside the release."""
    sdnq: Mapping[str, Any]
    """SDNQ's configuration."""
    shapes: Mapping[str, tuple[int, ...]]
    """Shapes of the weights that were quantized, by module."""
    tensors: int
    parameters: int
    bytes_by_dtype: Mapping[str, int]
    """Bytes of the tensors that were written, by dtype."""
    source_tensors: int
    source_parameters: int
    source_bytes_by_dtype: Mapping[str, int]
    nonfinite: Mapping[str, int]
    """Numbers that are not finite, by tensor of the source."""
    device: str
    """The device on which SDNQ's functions ran, where its bytes differ from the CPU's; else empty."""
    assumed_config: Mapping[str, Any]
    """Config values that were assumed, as the source has no config."""
    adapters: tuple[ManifestAdapter, ...]
    """What was added to the weights of the source, in this order."""
    rounding: ManifestRounding
    """How its codes were chosen."""

    @classmethod
    def parse(cls, fields: Fields) -> ManifestComponent:
        """Check the values of a component's JSON object.

        Raises: the error of the fields.
        """
        source, recipe, output = (_table(fields, key) for key in ("source", "recipe", "output"))
        headers = output.take("headers", dict)
        if not all(isinstance(digest, str) for digest in headers.values()):
            raise fields.error(fields.where, "the sha256 of a header is not a string")
        if not all(isinstance(file, dict) for file in source.take("files", list)):
            raise fields.error(fields.where, "lists a file of the source that is not an object")
        adapters = source.take("adapters", list, [])
        if not all(isinstance(adapter, dict) for adapter in adapters):
            raise fields.error(fields.where, "lists an adapter that is not an object")
        return cls(
            name=fields.take("component", str),
            source=source.content,
            recipe=recipe.content,
            class_name=source.take("class_name", str, ""),
            headers=headers,
            sdnq=recipe.take("sdnq", dict),
            shapes=dict(_shapes(recipe)),
            tensors=output.take("tensors", int),
            parameters=output.take("parameters", int),
            bytes_by_dtype=_bytes_by_dtype(output),
            source_tensors=source.take("tensors", int),
            source_parameters=source.take("parameters", int),
            source_bytes_by_dtype=_bytes_by_dtype(source),
            nonfinite=_counts(source, "nonfinite"),
            device=fields.take("device", str, ""),
            assumed_config=source.take("assumed_config", dict, {}),
            adapters=tuple(
                ManifestAdapter.parse(Fields(adapter, f"{source.where}: adapters", fields.error))
                for adapter in adapters
            ),
            rounding=ManifestRounding.parse(recipe),
        )


@dataclass(frozen=True)
class Manifest:
    """Where a release comes from, what was decided, and the sha256 of every other file."""

    content: Mapping[str, Any]
    """The JSON object of the file. All other fields are made from it, and keys that have none are kept."""
    files: Mapping[str, ReleaseFile]
    """The files by their paths inside the release."""
    components: Mapping[str, ManifestComponent]
    """What was converted, by name; the main component, which is the denoiser if there is one, comes first."""
    versions: Mapping[str, str]
    """Versions of the packages that decide the bytes."""
    card_files: tuple[str, ...]
    """Paths of the card and of the files that came with it; none before ``card`` has run."""
    card_repository: str | None
    """The repo that the card tells people to load."""
    is_card_verified: bool
    """Whether every figure of the card belongs to the release's weights by their sha256."""

    @classmethod
    def parse(cls, content: Mapping[str, Any], where: str = MANIFEST_NAME) -> Manifest:
        """Check the values of a manifest's JSON object.

        Args:
            content: the object.
            where: the file, for messages.

        Raises:
            MalformedCheckpoint: it is not a manifest of a known version, or a value is missing, of another type, or
                impossible.
        """
        kind, version = content.get("format"), content.get("format_version")
        if kind != MANIFEST_FORMAT or type(version) is not int or version not in _READ_VERSIONS:
            found = f"format {kind!s:.80}, version {version!s:.80}"
            raise MalformedCheckpoint(where, f"is not a lensconv manifest of version {MANIFEST_VERSION} ({found})")
        fields = Fields(content, where, MalformedCheckpoint)
        parts = fields.take("components", list) if version > 1 else [content]
        if not all(isinstance(part, dict) for part in parts):
            raise MalformedCheckpoint(where, "describes a component that is not an object")
        components = [ManifestComponent.parse(Fields(part, where, MalformedCheckpoint)) for part in parts]
        by_name = {component.name: component for component in components}
        if not by_name or len(by_name) < len(components) or ("" in by_name and len(by_name) > 1):
            raise MalformedCheckpoint(where, "must describe one component without a name, or several by their names")
        for name, component in by_name.items():
            if foreign := next((file for file in component.headers if name and not file.startswith(f"{name}/")), None):
                raise MalformedCheckpoint(where, f"describes {foreign} as a file of {name}")
        files = _files(fields)
        versions = fields.take("versions", dict)
        for package, number in versions.items():
            if not isinstance(number, str):
                raise MalformedCheckpoint(where, f"the version of {package} is not a string")
        card = content.get("card")
        # The next card replaces the note of the last one, so that a bad one does no harm.
        note = card if isinstance(card, dict) else {}
        names = note["files"] if isinstance(note.get("files"), list) else []
        repository = note.get("repository")
        return cls(
            content=content,
            files=files,
            components=by_name,
            versions=versions,
            card_files=tuple(name for name in names if isinstance(name, str) and name in files),
            card_repository=repository if isinstance(repository, str) else None,
            is_card_verified=note.get("verified") is not False,
        )

    @property
    def main(self) -> ManifestComponent:
        """The main component."""
        return next(iter(self.components.values()))

    def with_card(self, files: Iterable[ReleaseFile], *, repository: str | None, verified: bool) -> Manifest:
        """The manifest of the release with a card, in place of an earlier one.

        Args:
            files: the card and the files that come with it.
            repository: the repo that it tells people to load.
            verified: whether every figure belongs to the release's weights by their sha256.
        """
        added = {file.name: file for file in files}
        kept = {name: file for name, file in self.files.items() if name not in self.card_files}
        listed = {**kept, **added}
        content = {
            **self.content,
            "files": [listed[name].to_dict() for name in sorted(listed)],
            "card": {"repository": repository, "verified": verified, "files": sorted(added)},
        }
        return self.parse(content)

    def encode(self) -> bytes:
        """The bytes of the file."""
        return encode_json(self.content)


def read_manifest(root: Path) -> Manifest | None:
    """Read the manifest of a release; None when it has none.

    Raises:
        MissingInput: it cannot be read.
        MalformedCheckpoint: it is not a manifest of this version, or a value in it is impossible.
    """
    file = root / MANIFEST_NAME
    if not file.is_file():
        return None
    manifest = Manifest.parse(read_json(file), str(file))
    for name in manifest.files:
        if not all(is_plain_name(part) for part in name.split("/")):
            raise MalformedCheckpoint(file, f"lists {name}, which is not a path inside the release")
    for name in manifest.components:
        if name and not is_plain_name(name):
            raise MalformedCheckpoint(file, f"describes {name}, which is not a component's folder")
    return manifest


def listed_names(root: Path) -> frozenset[str] | None:
    """The names in the manifest of a release, even if other parts of it are malformed; None if it has no manifest.

    Raises:
        MissingInput: it cannot be read.
        MalformedCheckpoint: it is not a JSON object.
    """
    if not (root / MANIFEST_NAME).is_file():
        return None
    return names_in(read_json(root / MANIFEST_NAME))


def names_in(content: Mapping[str, Any]) -> frozenset[str]:
    """The names that the JSON object of a manifest lists, whatever else is in it. They need not be paths."""
    files = content.get("files")
    names = (file.get("name") for file in (files if isinstance(files, list) else ()) if isinstance(file, dict))
    return frozenset(name for name in names if isinstance(name, str))


def _table(fields: Fields, key: str) -> Fields:
    return Fields(fields.take(key, dict), f"{fields.where}: {key}", fields.error)


def _bytes_by_dtype(fields: Fields) -> dict[str, int]:
    return _counts(fields, "bytes_by_dtype")


def _counts(fields: Fields, key: str) -> dict[str, int]:
    counts: dict[str, int] = fields.take(key, dict)
    if not all(type(count) is int for count in counts.values()):
        raise fields.error(fields.where, f"a value of {key} is not an integer")
    return counts


def _files(fields: Fields) -> dict[str, ReleaseFile]:
    listed: dict[str, ReleaseFile] = {}
    for entry in fields.take("files", list):
        if not isinstance(entry, dict):
            raise fields.error(fields.where, "lists a file that is not an object")
        values = Fields(entry, f"{fields.where}: files", fields.error)
        file = ReleaseFile(values.take("name", str), values.take("bytes", int), values.take("sha256", str))
        if file.name in listed:
            raise fields.error(fields.where, f"lists {file.name} twice")
        listed[file.name] = file
    return listed


def _shapes(recipe: Fields) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, module in recipe.take("quantized", dict).items():
        shape = module.get("shape") if isinstance(module, dict) else None
        if not isinstance(shape, list) or not all(type(size) is int and 0 < size < 1 << 63 for size in shape):
            raise recipe.error(recipe.where, f"gives {name} a shape that no weight can have")
        yield name, tuple(shape)
