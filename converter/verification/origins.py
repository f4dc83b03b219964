"""Where the components of a release came from, and by which recipe, as its manifest or its configuration say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from converter.checkpoint.layout import DEFAULT_SHARD_BYTES
from converter.checkpoint.source import PIPELINE_INDEX, Checkpoint, open_checkpoint
from converter.checkpoint.weights import variant_of
from converter.conversion.options import ConvertOptions
from converter.conversion.recipe.recipe import CALIBRATED, ROUNDINGS, Recipe
from converter.conversion.release.manifest import ManifestComponent
from converter.conversion.request import Target
from converter.errors import MalformedCheckpoint, UnsupportedCheckpoint, UsageError
from converter.hub.addresses import HubAddress, is_address, parse_address
from converter.hub.client import quiet_hub
from converter.hub.readers import read_by_ranges
from converter.hub.shadow import Shadow, shadowed
from converter.verification.audit import Audit

#: Options of SDNQ whose results depend on the order in which weights are quantized.
_RANDOM = ("use_svd", "use_stochastic_rounding")


@dataclass(frozen=True)
class Place:
    """A folder on this machine, or one in place of a repo on the Hub."""

    folder: Path
    shadow: Shadow | None = None

    def __str__(self) -> str:
        """The path, or the address at the commit."""
        return str(self.shadow.repo.address if self.shadow else self.folder)


@contextmanager
def opened_place(
    place: Path | HubAddress,
    choose: Callable[[Path], Sequence[str | None]],
    variant: str | None = None,
    *,
    has_others: bool = True,
) -> Iterator[Place]:
    """Open a folder or a repo.

    Args:
        place: which one.
        choose: chooses the components of a repo whose headers are read.
        variant: the variant of the weights whose headers are read, where a repo has others, too.
        has_others: whether configs and indexes of the other components of a repo are needed.

    Raises: what ``shadowed`` raises, for a repo.
    """
    if isinstance(place, Path):
        yield Place(place)
        return
    with shadowed(place, choose, variant, has_others=has_others) as shadow, quiet_hub():
        yield Place(shadow.folder, shadow)


def parse_place(text: Path | str) -> Path | HubAddress:
    """A path, or the address of a repo on the Hub.

    Raises:
        UsageError: it is a malformed address.
    """
    return parse_address(text) if isinstance(text, str) and is_address(text) else Path(text)


def open_origins(stack: ExitStack, audits: Sequence[Audit], given: Path | str | None) -> list[tuple[Place, Checkpoint]]:
    """Open what the components of a release were made from.

    Args:
        stack: closes the sources.
        audits: of the components.
        given: the source that the user names; None for what the manifest names.

    Raises:
        UsageError: nothing names the source.
        MalformedCheckpoint: the manifest names something impossible, or the source is malformed.
        InputError: the source cannot be read.
        HubError: the Hub refuses, or cannot be reached.
    """
    # Headers of one variant are read at a time.
    wanted: dict[tuple[Path | HubAddress, str | None], list[tuple[int, str]]] = {}
    for number, audit in enumerate(audits):
        place, folder = (parse_place(given), audit.name) if given is not None else _pinned(audit)
        wanted.setdefault((place, _variant(audit.described)), []).append((number, folder))
    found: dict[int, tuple[Place, Checkpoint]] = {}
    for (place, variant), parts in wanted.items():
        choose = partial(_components, names=[folder for _, folder in parts])
        opened = stack.enter_context(opened_place(place, choose, variant, has_others=False))
        for number, folder in parts:
            found[number] = opened, _open(opened, folder, variant)
    return [found[number] for number in range(len(audits))]


def _components(folder: Path, names: Sequence[str]) -> Sequence[str | None]:
    return [name or None for name in names] if (folder / PIPELINE_INDEX).is_file() else [None]


def _pinned(audit: Audit) -> tuple[HubAddress, str]:
    """The repo at a commit that the manifest names for a component, and the folder in it."""
    described = audit.described
    hub = described.source.get("hub") if described is not None else None
    if not isinstance(hub, Mapping):
        raise UsageError(
            f"{audit.checkpoint.folder}: nothing says where its source is on the Hub",
            "Name the source: lensconv reproduce RELEASE SOURCE.",
        )
    repository, commit, folder = (hub.get(key) for key in ("repository", "commit", "folder"))
    if not all(isinstance(value, str) for value in (repository, commit, folder)):
        raise MalformedCheckpoint(audit.root, "the manifest does not say where the source is on the Hub")
    return parse_address(f"hf://{repository}@{commit}"), str(folder)


def _variant(described: ManifestComponent | None) -> str | None:
    """The variant of the weights that a component was made from; None for plain files."""
    files = described.source.get("files") if described is not None else None
    name = files[0].get("name") if files else None
    return (variant_of(name) or None) if isinstance(name, str) else None


def _open(place: Place, folder: str, variant: str | None) -> Checkpoint:
    """Open a component of a source."""
    is_pipeline = (place.folder / PIPELINE_INDEX).is_file()
    component = (folder or None) if is_pipeline else None
    return read_by_ranges(open_checkpoint(place.folder, component=component, variant=variant), place.shadow)


def inferred_target(audit: Audit, source: Checkpoint, connections: int) -> Target:
    """How a component was made, as far as the manifest says it; SDNQ's own defaults without a manifest.

    Args:
        audit: of the component.
        source: what it was made from.
        connections: files of a source on the Hub to read at a time.

    Raises:
        UnsupportedCheckpoint: it was made from more than its source.
        MalformedCheckpoint: the manifest has a value that cannot be.
    """
    described = audit.described
    where, recipe = str(audit.root), described.recipe if described is not None else {}
    if described is not None and (described.adapters or described.rounding.method == CALIBRATED):
        what = "LoRA adapters" if described.adapters else "a calibration"
        reason = f"{where}: was made with {what}, which the release does not contain"
        raise UnsupportedCheckpoint(reason, "Convert the source again with the same files, then compare the folders.")
    seed, shard_bytes = recipe.get("seed", 0), recipe.get("max_shard_bytes", DEFAULT_SHARD_BYTES)
    quantize_from = recipe.get("quantize_from", "bfloat16")
    rounding = described.rounding.method if described is not None else ROUNDINGS[0]
    if (
        type(seed) is not int
        or type(shard_bytes) is not int
        or shard_bytes < 1
        or quantize_from not in ("bfloat16", "float32")
        or rounding not in ROUNDINGS
    ):
        raise MalformedCheckpoint(where, "the manifest describes a recipe that this version does not know")
    options = ConvertOptions(
        quantize_from=quantize_from, shard_bytes=shard_bytes, connections=connections, allow_nonfinite=True
    )
    random = {name: True for name in _RANDOM if _uses(audit.config, name)}
    return Target(source, Recipe("the release's", random, seed=seed, rounding=rounding), options)


def _uses(config: Mapping[str, Any], option: str) -> bool:
    """Whether SDNQ's configuration has an option for all modules or for one."""
    by_module = config.get("modules_quant_config") or {}
    return bool(config.get(option)) or any(bool(options.get(option)) for options in by_module.values())
