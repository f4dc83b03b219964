"""Tables of a release: what was quantized and how, what it was made from, and its files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from converter.checkpoint.footprint import ComponentFootprint
from converter.conversion.release.manifest import ReleaseFile
from converter.presentation.card.component import CardComponent
from converter.presentation.card.markdown import Markdown, code
from converter.presentation.card.metadata import CardMetadata
from converter.presentation.card.release import CardRelease
from converter.presentation.tables.figures import count, percent
from converter.presentation.tables.table import NOTHING, Code, Table, keep_measured

_RECIPE_KEYS = (
    "weights_dtype",
    "quantized_matmul_dtype",
    "use_quantized_matmul",
    "group_size",
    "dequantize_fp32",
    "use_svd",
    "use_hadamard",
)


def families_table(component: CardComponent) -> Table:
    """Return what was done to each family of a component, and its bytes."""
    total = component.bytes
    rows = []
    for entry in component.families:
        done = f"{entry.quantized_modules:,} modules quantized" if entry.quantized_modules else "kept"
        dtypes = ", ".join(sorted(entry.bytes_by_dtype))
        share = percent(100 * entry.bytes / total if total else None)
        rows.append([Code(entry.name), component.contents(entry.name), done, dtypes, count(entry.bytes), share])
    return Table(["Family", "Contents", "What was done", "Stored as", "Bytes", "Share"], rows, "llllrr")


def components_table(release: CardRelease) -> Table:
    """Return the size of each model of the pipeline, and of the whole pipeline."""

    def row(footprint: ComponentFootprint, done: str, source: int) -> list[object]:
        dtypes = ", ".join(sorted(footprint.bytes_by_dtype)) or NOTHING
        return [Code(footprint.name), footprint.class_name, done, dtypes, count(footprint.bytes), count(source)]

    rows = [row(component.footprint, "quantized", component.source_bytes) for component in release.converted]
    for other in release.others:
        method = release.quantizations.get(other.name)
        rows.append(row(other, f"as in the source{f' ({method})' if method else ''}", other.bytes))
    rows.append(["all", "", "", "", count(release.whole.bytes), count(release.whole.source_bytes)])
    return Table(["Component", "Class", "What was done", "Stored as", "Bytes", "Bytes in the source"], rows, "llllrr")


def recipe_table(release: CardRelease, metadata: CardMetadata) -> Table:
    """Return how components were quantized, a column for each; of a single one, also what else the release has."""
    converted = release.converted
    rows: list[list[object]] = [
        ["Method", *(_method(component) for component in converted)],
        ["Recipe", *(Code(component.described.recipe.get("name", "")) for component in converted)],
    ]
    titles = ["Field", *(code(component.name) for component in converted)]
    if len(converted) == 1:
        titles = ["Field", "Value"]
        named = f"{release.main.name or 'the model'} ({release.main.class_name})"
        rows += [["Source model", metadata.base_model or "not named"], ["Quantized component", named]]
        rows += [[Code(name), f"as in the source ({words})"] for name, words in release.kept.items()]
    else:
        rows.append(["Class", *(component.class_name for component in converted)])
    for key in _RECIPE_KEYS:
        rows.append([Code(key), *(_option(component, key) for component in converted)])
    rows.append(["Weights that share a scale", *(_listed(component.group_sizes) for component in converted)])
    patterns = (", ".join(map(code, component.skip_patterns)) for component in converted)
    rows.append(["Kept by the recipe", *(Markdown(names) if names else NOTHING for names in patterns)])
    return Table(titles, keep_measured(rows), "l" * len(titles))


def _method(component: CardComponent) -> str:
    return f"SDNQ {component.weights_dtype} {'dynamic' if component.is_dynamic else 'static'}"


def _option(component: CardComponent, key: str) -> str:
    config = component.audit.config
    return Code(json.dumps(config[key])) if key in config else NOTHING


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values)) or NOTHING


def provenance_table(release: CardRelease, metadata: CardMetadata) -> Table:
    """Return what the release was made from, and with which versions."""
    recipes = {component.name: component.described.recipe for component in release.converted}
    devices = {component.name: component.described.device for component in release.converted}
    rows: list[list[object]] = [
        ["Source model", metadata.base_model or "not named"],
        ["Revision of the source", Code(metadata.base_revision) if metadata.base_revision else "not named"],
        *_adapters(release),
        *_by_component("Recipe", {name: Code(recipe.get("name", "")) for name, recipe in recipes.items()}),
        *_by_component("Seed", {name: recipe.get("seed", "") for name, recipe in recipes.items()}),
        *_by_component("Quantized from", {name: recipe.get("quantize_from", "") for name, recipe in recipes.items()}),
    ]
    if any(devices.values()):
        rows += _by_component("Quantized on", {name: device or "CPU" for name, device in devices.items()})
    rows += [[f"Made with {name}", version] for name, version in sorted(release.content["versions"].items())]
    return Table(["Field", "Value"], rows, "ll")


def _adapters(release: CardRelease) -> list[list[object]]:
    """A row for each LoRA adapter that was added to a component."""
    return [
        [
            f"LoRA, {component.name}" if len(release.converted) > 1 else "LoRA",
            Markdown(f"{code(adapter.name)}, scale {code(adapter.shown_scale)}, sha256 {code(adapter.sha256)}"),
        ]
        for component in release.converted
        for adapter in component.described.adapters
    ]


def _by_component(label: str, values: Mapping[str, object]) -> list[list[object]]:
    """One row if the value is the same for all components, else a row for each."""
    first, *others = values.values()
    if all(value == first for value in others):
        return [[label, first]]
    return [[f"{label}, {name}", value] for name, value in values.items()]


def source_table(release: CardRelease) -> Table:
    """Return the files of the source."""
    files = [
        (f"{component.name}/" if len(release.converted) > 1 else "", file)
        for component in release.converted
        for file in component.described.source.get("files", ())
    ]
    rows = [[Code(place + file["name"]), count(file["bytes"]), Code(file["header_sha256"])] for place, file in files]
    return Table(["Source file", "Bytes", "sha256 of its header"], rows, "lrl")


def files_table(release: CardRelease, additions: Sequence[ReleaseFile]) -> Table:
    """Return what was converted and measured; pictures are listed in the manifest only."""
    rows = [(name, release.manifest.files[name].bytes, digest) for name, digest in release.written.items()]
    rows += [(file.name, file.bytes, file.sha256) for file in additions if "/" not in file.name]
    shown = [[Code(name), count(size), Code(digest)] for name, size, digest in sorted(rows)]
    return Table(["File", "Bytes", "sha256"], shown, "lrl")
