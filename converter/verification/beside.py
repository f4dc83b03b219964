"""Files in a repo that are not of its release: which of them must not stay there."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from converter.checkpoint.source import PIPELINE_INDEX
from converter.checkpoint.weights import holds_weights

#: transformers adds an adapter to a model without being asked, and diffusers loads what this index names.
_LOADED_NAMES = ("adapter_config.json", PIPELINE_INDEX)
#: Ends of the names of settings, vocabularies, chat templates and code. Most loaders look for files of several names
#: in a component's folder: transformers adds the tokens of added_tokens.json, and all of additional_chat_templates.
_READ_SUFFIXES = (".json", ".jinja", ".model", ".py", ".txt")


def dangers(others: Iterable[str], own: Collection[str]) -> dict[str, str]:
    """Find files that must not be in a repo beside a release.

    Args:
        others: paths in the repo that the release does not contain.
        own: paths of the release.

    Returns:
        What is wrong with each of them, by path.
    """
    known = {name.casefold(): name for name in own}
    folders = {"", *map(_folder, known)}
    # In the root, people keep settings and programs of their own.
    components = {_folder(name) for name in known if name.endswith(".json")} - {""}
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
        elif _folder(folded) in folders and _is_loaded(folded.rpartition("/")[2]):
            found[name] = "may be loaded in place of the release's weights"
        elif folded.endswith(_READ_SUFFIXES) and not components.isdisjoint(_parents(folded)):
            found[name] = "may be loaded together with the release's files"
    return found


def _parents(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _is_loaded(name: str) -> bool:
    return holds_weights(name) or name in _LOADED_NAMES
