"""What the Hub says of a repo: the properties that a client may choose from, and the tags by which it is found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from converter.front_matter import parse_front_matter
from converter.rehearsal.call import parse_object
from converter.rehearsal.hub import Hub
from converter.rehearsal.replies import Refusal
from converter.rehearsal.repos import Entry, Repo

#: What ``expand`` takes. What huggingface.co finds in weights and configs, and from other services, is missing here.
_EXPANDABLE = (
    "author baseModels cardData childrenModelCount config createdAt disabled downloads downloadsAllTime evalResults "
    "gated gguf inference inferenceProviderMapping lastModified library_name likes mask_token model-index pipeline_tag "
    "private resourceGroup safetensors sha siblings spaces tags transformersInfo trendingScore usedStorage widgetData"
)
_ALWAYS = ("_id", "id")
#: What only ``expand`` shows.
_ON_REQUEST = ("downloadsAllTime", "trendingScore")


def describe(hub: Hub, repo: Repo, commit: str, *, with_blobs: bool = False) -> dict[str, Any]:
    """Return all that is known of a repo at a commit."""
    tree, row = repo.tree(commit), repo.commit(commit)
    metadata, config = _metadata(hub.text(tree.get("README.md"))), _config(hub, tree)
    answer: dict[str, Any] = {
        "_id": f"{repo.number:024x}",
        "id": repo.identity,
        "modelId": repo.identity,
        "author": repo.owner,
        "private": repo.private,
        "gated": repo.gated or False,
        "createdAt": repo.created,
        "downloads": 0,
        "downloadsAllTime": 0,
        "likes": 0,
        "trendingScore": 0,
        "tags": _tags(metadata, config, tree),
        "sha": commit,
        "lastModified": repo.created if row is None else row["date"],
        "disabled": False,
        "cardData": metadata,
        "siblings": [_sibling(entry, with_blobs=with_blobs) for entry in tree.values()],
        "spaces": [],
        "usedStorage": repo.used_storage(),
    }
    names = ("library_name", "pipeline_tag")
    answer |= {"config": config} if config else {}
    return answer | {name: metadata[name] for name in names if isinstance(metadata.get(name), str)}


def choose(answer: dict[str, Any], expand: list[str], default: tuple[str, ...] | None = None) -> dict[str, Any]:
    """Return the properties that a client asks for.

    Args:
        answer: all of them.
        expand: their names; if there are none, the default.
        default: the names without ``expand``; None for all that are not only shown on request.

    Raises:
        Refusal: a name is unknown.
    """
    allowed = _EXPANDABLE.split()
    if not set(expand) <= set(allowed):
        raise Refusal(400, f'"expand" must be one of [{", ".join(allowed)}]')
    names = {*_ALWAYS, *expand} if expand else set(default or answer.keys() - _ON_REQUEST)
    return {name: value for name, value in answer.items() if name in names}


def _config(hub: Hub, tree: Mapping[str, Entry]) -> dict[str, Any]:
    """Return what the Hub shows of the configs of diffusers and transformers; empty if there are none."""
    config: dict[str, Any] = {}
    with suppress(Refusal):
        index = parse_object(hub.text(tree.get("model_index.json")).encode())
        config |= {"diffusers": {"_class_name": index["_class_name"]}} if "_class_name" in index else {}
    with suppress(Refusal):
        own = parse_object(hub.text(tree.get("config.json")).encode())
        config |= {name: own[name] for name in ("architectures", "model_type") if name in own}
    return config


def _tags(metadata: Mapping[str, Any], config: Mapping[str, Any], tree: Mapping[str, Entry]) -> list[str]:
    """Return the tags of a card, and those that the Hub makes of its other metadata, each once."""
    base_models, relation = _texts(metadata, "base_model"), metadata.get("base_model_relation")
    found = [
        *_texts(metadata, "library_name"),
        *(["safetensors"] if any(path.endswith(".safetensors") for path in tree) else []),
        *_texts(metadata, "pipeline_tag"),
        *_texts(metadata, "tags"),
        *_texts(metadata, "language"),
        *(f"dataset:{name}" for name in _texts(metadata, "datasets")),
        *(f"base_model:{name}" for name in base_models),
        *(f"base_model:{relation}:{name}" for name in base_models if isinstance(relation, str)),
        *(f"license:{name}" for name in _texts(metadata, "license")),
        *(f"diffusers:{name}" for name in _texts(config.get("diffusers", {}), "_class_name")),
        "region:us",
    ]
    return list(dict.fromkeys(found))


def _texts(metadata: Mapping[str, Any], name: str) -> list[str]:
    value = metadata.get(name)
    return [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]


def _sibling(entry: Entry, *, with_blobs: bool) -> dict[str, Any]:
    answer: dict[str, Any] = {"rfilename": entry.path}
    if with_blobs:
        answer |= {"blobId": entry.oid, "size": entry.size}
        if entry.is_lfs:
            answer["lfs"] = {"sha256": entry.sha256, "size": entry.size, "pointerSize": entry.pointer_size}
    return answer


def _metadata(card: str) -> dict[str, Any]:
    """Return the metadata of a card as JSON has them; empty if there are none that can be read."""
    metadata, _ = parse_front_matter(card)
    try:
        # YAML has dates and infinities, JSON has not.
        plain: dict[str, Any] = json.loads(json.dumps(metadata, default=str), parse_constant=str)
    except (ValueError, TypeError, RecursionError):
        return {}
    return plain
