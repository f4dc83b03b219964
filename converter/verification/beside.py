"""Files in a repo that are not of its release: which of them must not stay there."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from converter.checkpoint.source import PIPELINE_INDEX
from converter.checkpoint.weights import holds_weights

#: transformers adds an adapter to a model without being asked, and diffusers loads what this index names.
_LOADED_NAMES = ("adapter_config.json", PIPELINE_INDEX)


def dangers(others: Iterable[str], own: Collection[str]) -> dict[str, str]:
    """Find files that must not be in a repo beside a release.

    Args:
        others: paths in the repo that the release does not contain.
        own: paths of the release.

    Returns:
        What is wrong with each of them, by path.
    """
    folders = {"", *(name.rpartition("/")[0] for name in own)}
    known = {name.casefold(): name for name in own}
    parents = {parent for name in known for parent in _parents(name)}
    found = {}
    for name in others:
        folded = name.casefold()
        over = next((known[parent] for parent in _parents(folded) if parent in known), None)
        if folded in known:
            found[name] = f"differs from {known[folded]} in case only"
        elif folded in parents:
            found[name] = "is a file where the release has a folder"
        elif over is not None:
            found[name] = f"is in {over}, which is a file of the release"
        elif name.rpartition("/")[0] in folders and _is_loaded(folded.rpartition("/")[2]):
            found[name] = "may be loaded in place of the release's weights"
    return found


def _parents(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def _is_loaded(name: str) -> bool:
    return holds_weights(name) or name in _LOADED_NAMES
