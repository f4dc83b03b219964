"""What the Hub checks in the metadata of a card: the YAML between two lines of dashes at its top."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from converter.presentation.card.hub_lists import BASE_MODEL_RELATIONS, LICENSES, PIPELINE_TAGS

_BLOCK = re.compile(r"\A\ufeff?\s*---[ \t]*\r?\n(?P<yaml>.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
_MODEL = re.compile(r"[A-Za-z0-9_.-]+(?:/[A-Za-z0-9_.-]+)?")
_LICENSE_NAME = re.compile(r"[a-z0-9.-]+")
_STRINGS = ("library_name", "thumbnail", "license_name", "license_link", "pipeline_tag", "base_model_relation")
_LISTS = ("tags", "language", "datasets", "metrics", "license", "base_model", "new_version")


def parse_metadata(card: str) -> Any:
    """The metadata of a card; None if it has none.

    Raises:
        yaml.YAMLError: they are no YAML.
    """
    match = _BLOCK.match(card)
    return None if match is None else yaml.safe_load(match["yaml"])


def check_card(card: str, kind: str) -> tuple[list[str], list[str]]:
    """What is wrong with the metadata of a card, and what it lacks.

    Args:
        card: the text of README.md.
        kind: of the repo.

    Returns:
        Errors, for which the Hub refuses the card, and warnings.
    """
    try:
        metadata = parse_metadata(card)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 2}" if mark is not None else ""
        return [f"Invalid YAML{where}: {getattr(error, 'problem', None) or 'cannot be parsed'}"], []
    except (ValueError, RecursionError):
        return ["Invalid YAML: cannot be parsed"], []
    if metadata is None:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(metadata, dict) or not all(isinstance(key, str) for key in metadata):
        return ["Invalid metadata: must be an object"], []
    return _check(metadata, kind), []


def _check(metadata: Mapping[str, Any], kind: str) -> list[str]:
    errors = [f'"{key}" must be a string' for key in _STRINGS if key in metadata and not isinstance(metadata[key], str)]
    for key in _LISTS:
        if key in metadata and not _is_text_or_texts(metadata[key], only_list=key == "tags"):
            errors.append(f'"{key}" must be {"an array" if key == "tags" else "a string or an array"} of strings')
    if errors:
        return errors
    for name in _texts(metadata, "license"):
        if name not in LICENSES:
            errors.append(
                f'"license" must be one of the licenses of https://hf.co/docs/hub/repositories-licenses: {name}'
            )
    if not _LICENSE_NAME.fullmatch(metadata.get("license_name", "other")):
        errors.append('"license_name" must use lowercase letters, digits, "-" and "."')
    link = metadata.get("license_link", "LICENSE")
    if not re.match(r"(?i)https://|LICENSE(?:\.\w+)?$", link):
        errors.append('"license_link" must be "LICENSE" or an https address')
    for model in _texts(metadata, "base_model"):
        if not _MODEL.fullmatch(model):
            errors.append(f'"base_model" with value "{model}" is not valid. Use a model id from https://hf.co/models.')
    if metadata.get("base_model_relation", "quantized") not in BASE_MODEL_RELATIONS:
        errors.append(f'"base_model_relation" must be one of {", ".join(sorted(BASE_MODEL_RELATIONS))}')
    if kind == "model" and metadata.get("pipeline_tag", "other") not in PIPELINE_TAGS:
        errors.append(f'"pipeline_tag" must be one of the tasks of https://hf.co/tasks: {metadata["pipeline_tag"]}')
    return errors + _check_model_index(metadata)


def _check_model_index(metadata: Mapping[str, Any]) -> list[str]:
    if "model-index" not in metadata:
        return []
    index = metadata["model-index"]
    if not isinstance(index, list) or not all(
        isinstance(model, dict) and isinstance(model.get("name"), str) and isinstance(model.get("results"), list)
        for model in index
    ):
        return ['"model-index" must be an array of objects with a name and results']
    return []


def _texts(metadata: Mapping[str, Any], key: str) -> list[str]:
    value = metadata.get(key, [])
    return [value] if isinstance(value, str) else list(value)


def _is_text_or_texts(value: object, *, only_list: bool) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, str) for item in value)
    return isinstance(value, str) and not only_list
