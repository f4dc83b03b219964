"""What the Hub checks in the metadata of a card: the YAML between two lines of dashes at its top."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

#: Licenses by their names on the Hub: https://huggingface.co/docs/hub/repositories-licenses
LICENSES = frozenset(
    [
        "afl-3.0",
        "agpl-3.0",
        "apache-2.0",
        "apple-amlr",
        "apple-ascl",
        "artistic-2.0",
        "bigcode-openrail-m",
        "bigscience-bloom-rail-1.0",
        "bigscience-openrail-m",
        "bsd",
        "bsd-2-clause",
        "bsd-3-clause",
        "bsd-3-clause-clear",
        "bsl-1.0",
        "c-uda",
        "cc",
        "cc-by-2.0",
        "cc-by-2.5",
        "cc-by-3.0",
        "cc-by-4.0",
        "cc-by-nc-2.0",
        "cc-by-nc-3.0",
        "cc-by-nc-4.0",
        "cc-by-nc-nd-3.0",
        "cc-by-nc-nd-4.0",
        "cc-by-nc-sa-2.0",
        "cc-by-nc-sa-3.0",
        "cc-by-nc-sa-4.0",
        "cc-by-nd-4.0",
        "cc-by-sa-3.0",
        "cc-by-sa-4.0",
        "cc0-1.0",
        "cdla-permissive-1.0",
        "cdla-permissive-2.0",
        "cdla-sharing-1.0",
        "creativeml-openrail-m",
        "deepfloyd-if-license",
        "ecl-2.0",
        "epl-1.0",
        "epl-2.0",
        "etalab-2.0",
        "eupl-1.1",
        "eupl-1.2",
        "fair-noncommercial-research-license",
        "gemma",
        "gfdl",
        "gpl",
        "gpl-2.0",
        "gpl-3.0",
        "grok2-community",
        "h-research",
        "intel-research",
        "isc",
        "lgpl",
        "lgpl-2.1",
        "lgpl-3.0",
        "lgpl-lr",
        "llama2",
        "llama3",
        "llama3.1",
        "llama3.2",
        "llama3.3",
        "llama4",
        "lppl-1.3c",
        "mit",
        "mpl-2.0",
        "ms-pl",
        "ncsa",
        "odbl",
        "odc-by",
        "ofl-1.1",
        "open-mdw",
        "openmdw-1.0",
        "openrail",
        "openrail++",
        "osl-3.0",
        "other",
        "pddl",
        "postgresql",
        "unknown",
        "unlicense",
        "wtfpl",
        "zlib",
    ]
)
#: Tasks that a model may name: https://huggingface.co/tasks
TASKS = frozenset(
    [
        "any-to-any",
        "audio-classification",
        "audio-text-to-text",
        "audio-to-audio",
        "automatic-speech-recognition",
        "depth-estimation",
        "document-question-answering",
        "feature-extraction",
        "fill-mask",
        "graph-ml",
        "image-classification",
        "image-feature-extraction",
        "image-segmentation",
        "image-text-to-image",
        "image-text-to-text",
        "image-text-to-video",
        "image-to-3d",
        "image-to-image",
        "image-to-text",
        "image-to-video",
        "keypoint-detection",
        "mask-generation",
        "multiple-choice",
        "object-detection",
        "other",
        "question-answering",
        "reinforcement-learning",
        "robotics",
        "sentence-similarity",
        "summarization",
        "table-question-answering",
        "table-to-text",
        "tabular-classification",
        "tabular-regression",
        "tabular-to-text",
        "text-classification",
        "text-generation",
        "text-ranking",
        "text-retrieval",
        "text-to-3d",
        "text-to-audio",
        "text-to-image",
        "text-to-speech",
        "text-to-video",
        "time-series-forecasting",
        "token-classification",
        "translation",
        "unconditional-image-generation",
        "video-classification",
        "video-text-to-text",
        "video-to-video",
        "visual-document-retrieval",
        "visual-question-answering",
        "voice-activity-detection",
        "zero-shot-classification",
        "zero-shot-image-classification",
        "zero-shot-object-detection",
    ]
)
RELATIONS = ("adapter", "merge", "quantized", "finetune")

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
    if metadata.get("base_model_relation", "quantized") not in RELATIONS:
        errors.append(f'"base_model_relation" must be one of {", ".join(RELATIONS)}')
    if kind == "model" and metadata.get("pipeline_tag", "other") not in TASKS:
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
