"""Tables of a release: what was quantized and how, what it was made from, and its files."""

from __future__ import annotations

import json
from collections.abc import Sequence

from converter.checkpoint.footprint import ComponentFootprint
from converter.conversion.release.manifest import ReleaseFile
from converter.presentation.card.markdown import Markdown, code
from converter.presentation.card.metadata import CardMetadata
from converter.presentation.card.release import CardRelease
from converter.presentation.tables.figures import count, percent
from converter.presentation.tables.table import NOTHING, Code, Table

_RECIPE_KEYS = (
    "weights_dtype",
    "quantized_matmul_dtype",
    "use_quantized_matmul",
    "group_size",
    "dequantize_fp32",
    "use_svd",
    "use_hadamard",
)


def families_table(release: CardRelease) -> Table:
    """Return what was done to each family, and its bytes."""
    total = release.total_bytes
    rows = []
    for entry in release.families:
        done = f"{entry.quantized_modules:,} modules quantized" if entry.quantized_modules else "kept"
        dtypes = ", ".join(sorted(entry.bytes_by_dtype))
        share = percent(100 * entry.bytes / total if total else None)
        rows.append([Code(entry.name), release.role(entry.name), done, dtypes, count(entry.bytes), share])
    return Table(["Family", "Contents", "What was done", "Stored as", "Bytes", "Share"], rows, "llllrr")


def components_table(release: CardRelease) -> Table:
    """Return the size of each model of the pipeline, and of the whole pipeline."""

    def row(footprint: ComponentFootprint, done: str, source: int) -> list[object]:
        dtypes = ", ".join(sorted(footprint.bytes_by_dtype)) or NOTHING
        return [Code(footprint.name), footprint.class_name, done, dtypes, count(footprint.bytes), count(source)]

    own = release.audit.checkpoint
    quantized = ComponentFootprint(own.component, release.audit.class_name, own.total_bytes, own.bytes_by_dtype)
    rows = [row(quantized, "quantized", release.source_bytes)]
    for other in release.others:
        method = release.quantizations.get(other.name)
        rows.append(row(other, f"as in the source{f' ({method})' if method else ''}", other.bytes))
    rows.append(["all", "", "", "", count(release.whole.bytes), count(release.whole.source_bytes)])
    return Table(["Component", "Class", "What was done", "Stored as", "Bytes", "Bytes in the source"], rows, "llllrr")


def recipe_table(release: CardRelease, metadata: CardMetadata) -> Table:
    """Return how the release was quantized, and which components were kept."""
    config, component = release.audit.config, release.manifest.main.name
    kind = "dynamic" if config.get("use_dynamic_quantization") else "static"
    rows: list[list[object]] = [
        ["Method", f"SDNQ {config.get('weights_dtype', '')} {kind}"],
        ["Recipe", Code(release.manifest.main.recipe.get("name", ""))],
        ["Source model", metadata.base_model or "not named"],
        ["Quantized component", f"{component or 'the model'} ({release.audit.class_name})"],
    ]
    for name, class_name in sorted(release.components.items()):
        if name != component:
            stored = release.quantizations.get(name, "")
            rows.append([Code(name), f"as in the source ({class_name}{', ' if stored else ''}{stored})"])
    rows += [[Code(key), Code(json.dumps(config[key]))] for key in _RECIPE_KEYS if key in config]
    if release.group_sizes:
        rows.append(["Weights that share a scale", ", ".join(map(str, release.group_sizes))])
    if release.skip_patterns:
        rows.append(["Kept by the recipe", Markdown(", ".join(map(code, release.skip_patterns)))])
    return Table(["Field", "Value"], rows, "ll")


def provenance_table(release: CardRelease, metadata: CardMetadata) -> Table:
    """Return what the release was made from, and with which versions."""
    recipe = release.manifest.main.recipe
    rows: list[list[object]] = [
        ["Source model", metadata.base_model or "not named"],
        ["Revision of the source", Code(metadata.base_revision) if metadata.base_revision else "not named"],
        ["Recipe", Code(recipe.get("name", ""))],
        ["Seed", recipe.get("seed", "")],
        ["Quantized from", recipe.get("quantize_from", "")],
    ]
    if release.manifest.main.device:
        rows.append(["Quantized on", release.manifest.main.device])
    rows += [[f"Made with {name}", version] for name, version in sorted(release.content["versions"].items())]
    return Table(["Field", "Value"], rows, "ll")


def source_table(release: CardRelease) -> Table:
    """Return the files of the source."""
    rows = [
        [Code(file["name"]), count(file["bytes"]), Code(file["header_sha256"])]
        for file in release.manifest.main.source.get("files", ())
    ]
    return Table(["Source file", "Bytes", "sha256 of its header"], rows, "lrl")


def files_table(release: CardRelease, additions: Sequence[ReleaseFile]) -> Table:
    """Return what was converted and measured; pictures are listed in the manifest only."""
    rows = [(name, release.manifest.files[name].bytes, digest) for name, digest in release.written.items()]
    rows += [(file.name, file.bytes, file.sha256) for file in additions if "/" not in file.name]
    shown = [[Code(name), count(size), Code(digest)] for name, size, digest in sorted(rows)]
    return Table(["File", "Bytes", "sha256"], shown, "lrl")
