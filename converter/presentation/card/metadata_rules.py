"""The Hub's rules for the front matter of a card.

What cannot be right is an error. A license, a task or a language that is not in hub_lists.toml is a warning: the Hub
adds to its lists, and decides.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache
from importlib import resources
from typing import Any
from urllib.parse import unquote

from converter.errors import printable
from converter.front_matter import parse_front_matter
from converter.hub.addresses import is_repo_id
from converter.presentation.card.model_index import index_faults

_COMMIT = re.compile(r"[0-9a-f]{40}")
#: What an id of a license, a task or a language may look like.
_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,95}")
#: Codes of ISO 639-1, and of ISO 639-3.
_LANGUAGE = re.compile(r"[a-z]{2,3}")
#: Files of the repo that can be the text of a license.
_LICENSE_FILE = re.compile(r"LICENSE(\.\w+)?")
#: How a model can come from another, as hub-docs, docs/hub/model-cards.md, names it.
_RELATIONS = ("adapter", "finetune", "merge", "quantized")
#: The Hub cuts tags that are longer.
_TAG_LIMIT = 100
#: Keys whose value is one text, and those whose value is a text or a list of texts.
_TEXT_KEYS = (
    "base_model_relation",
    "base_model_revision",
    "extra_gated_button_content",
    "extra_gated_description",
    "extra_gated_heading",
    "extra_gated_prompt",
    "library_name",
    "license_link",
    "license_name",
    "new_version",
    "pipeline_tag",
    "thumbnail",
)
_TEXTS_KEYS = ("base_model", "datasets", "language", "language_bcp47", "license", "metrics", "tags")


@dataclass(frozen=True)
class MetadataReport:
    """What was found in the front matter of a card."""

    errors: tuple[str, ...] = ()
    """What the Hub would refuse or misread."""
    warnings: tuple[str, ...] = ()
    """Names that the Hub may not know."""


def check_metadata(text: str, files: Collection[str] | None = None) -> MetadataReport:
    """Check the front matter of a card.

    Args:
        text: the whole card.
        files: paths of the release's files, if they are known.
    """
    if text.startswith("\ufeff"):
        return MetadataReport(("it begins with a byte order mark, so the Hub does not see its front matter",))
    content, fault = parse_front_matter(text)
    fault = fault or _unicode_fault(content)
    errors = [fault] if fault else list(_type_errors(content)) or list(_value_errors(content))
    if errors:
        return MetadataReport(tuple(errors))
    missing = _missing_files(content, files) if files is not None else ()
    return MetadataReport((), (*_unknown_names(content), *missing))


def _unicode_fault(content: Mapping[str, Any]) -> str:
    """Name what YAML can escape but UTF-8 cannot contain; empty if the front matter has no such text."""
    try:
        json.dumps(content, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        return "its front matter contains half of a surrogate pair, which is not text"
    except (TypeError, ValueError, RecursionError):
        # Keys that are not text, or values that contain themselves; the checks of values report them.
        return ""
    return ""


def _type_errors(content: Mapping[str, Any]) -> Iterator[str]:
    for key in (*_TEXT_KEYS, *_TEXTS_KEYS, "widget", "model-index"):
        if key in content and content[key] is None:
            yield f"{key} is empty; give it a value, or remove it"
    for key in _TEXT_KEYS:
        if not isinstance(content.get(key), str | None):
            yield _not_text(key, content[key])
    for key in _TEXTS_KEYS:
        for item in _listed(content.get(key)):
            if not isinstance(item, str) or not item.strip():
                yield _not_text(key, item)
    if not isinstance(content.get("tags"), list | None):
        yield "tags is not a list"
    yield from _widget_errors(content.get("widget"))
    if content.get("model-index") is not None:
        yield from index_faults(content["model-index"])


def _not_text(key: str, value: Any) -> str:
    if isinstance(value, dict | list):
        return f"{key}: must be text, not a {'list' if isinstance(value, list) else 'mapping'}"
    if isinstance(value, bool):
        return f'{key}: YAML reads no, yes, on and off as true or false; write such a word in quotes, as in "no"'
    if value is None or not str(value).strip():
        return f"{key}: an entry is empty"
    return f"{key} {_shown(value)} is not text; put it in quotes"


def _value_errors(content: Mapping[str, Any]) -> Iterator[str]:
    for key in _hub_names():
        for name in _listed(content.get(key)):
            if not _HUB_NAME.fullmatch(name):
                yield f"{key} {_shown(name)} cannot be a name on the Hub"
    yield from _license_errors(content)
    yield from _language_errors(content)
    yield from _base_model_errors(content)
    for key in ("datasets", "new_version"):
        for name in _listed(content.get(key)):
            if not is_repo_id(name, with_owner=False):
                yield f"{key} {_shown(name)} is not the name of a repo"
    for tag in _listed(content.get("tags")):
        if len(tag) > _TAG_LIMIT or "\n" in tag:
            yield f"tags: {_shown(tag)} is longer than {_TAG_LIMIT} characters, or has several lines"
    library = content.get("library_name")
    if library is not None and not re.fullmatch(r"[\w.-]+", library):
        yield f"library_name {_shown(library)} is not the name of a library"


def _license_errors(content: Mapping[str, Any]) -> Iterator[str]:
    found, name, link = (content.get(key) for key in ("license", "license_name", "license_link"))
    for written in _listed(found):
        if written not in _hub_names()["license"] and written.lower() in _hub_names()["license"]:
            yield f"license {_shown(written)} is written {written.lower()} on the Hub"
    if found == "other":
        for key in ("license_name", "license_link"):
            if not (content.get(key) or "").strip():
                yield f"license other needs a {key}"
    elif found is not None and name is not None:
        yield f"license_name is allowed only with license other, not with {_shown(found)}"
    if name and not re.fullmatch("[a-z0-9.-]+", name):
        yield f"license_name {_shown(name)} contains other characters than a-z, 0-9, . and -"
    if link and not re.fullmatch(r"https://\S+", link) and not _LICENSE_FILE.fullmatch(link):
        yield f"license_link {_shown(link)} is neither an https address nor LICENSE or LICENSE.md of the repo"


def _language_errors(content: Mapping[str, Any]) -> Iterator[str]:
    for name in _listed(content.get("language")):
        if _HUB_NAME.fullmatch(name) and not _LANGUAGE.fullmatch(name) and name not in _hub_names()["language"]:
            rule = "is not a code of two or three lower-case letters; BCP 47 codes go into language_bcp47"
            yield f"language {_shown(name)} {rule}"


def _base_model_errors(content: Mapping[str, Any]) -> Iterator[str]:
    models = _listed(content.get("base_model"))
    for name in models:
        if not is_repo_id(name, with_owner=False):
            yield f"base_model {_shown(name)} is not the name of a repo"
    relation = content.get("base_model_relation")
    if relation is not None:
        if relation not in _RELATIONS:
            yield f"base_model_relation {_shown(relation)} is not one of {', '.join(_RELATIONS)}"
        if not models:
            yield "base_model_relation needs a base_model"
    revision = content.get("base_model_revision")
    if revision is not None and not _COMMIT.fullmatch(revision):
        yield f"base_model_revision {_shown(revision)} is not a commit of 40 hexadecimal digits"


def _widget_errors(widget: Any) -> Iterator[str]:
    if not isinstance(widget, list | None):
        yield "widget is not a list"
        return
    for number, entry in enumerate(widget or (), 1):
        output = entry.get("output") if isinstance(entry, dict) else None
        if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
            yield f"widget: entry {number} has no text"
        elif output is not None and not (isinstance(output, dict) and isinstance(output.get("url", ""), str)):
            yield f"widget: the output of entry {number} has a url that is not text"
        elif isinstance(output, dict) and not _is_image_address(output.get("url", "")):
            shown = _shown(output.get("url"))
            yield f"widget: entry {number} shows {shown}, which is neither an https address nor a file of the repo"


def _unknown_names(content: Mapping[str, Any]) -> Iterator[str]:
    for key, known in _hub_names().items():
        for name in _listed(content.get(key)):
            # Codes of ISO 639-3 are thousands.
            if name not in known and not (key == "language" and len(name) > 2):
                near = difflib.get_close_matches(name.lower(), known, n=1)
                hint = f"did you mean {near[0]}?" if near else "the Hub decides whether it is valid"
                yield f"{key} {_shown(name)} is not known to lensconv; {hint}"


def _missing_files(content: Mapping[str, Any], files: Collection[str]) -> Iterator[str]:
    """Name files of the repo that the front matter shows, and the release does not contain."""
    link = content.get("license_link")
    if link and _LICENSE_FILE.fullmatch(link) and link not in files:
        yield f"license_link {link}: the release has no such file; the repo must have it"
    for number, entry in enumerate(content.get("widget") or (), 1):
        url = (entry.get("output") or {}).get("url")
        if url and not url.startswith("https://") and unquote(url) not in files:
            yield f"widget: entry {number} shows {_shown(url)}, which is not a file of the release"


@cache
def _hub_names() -> dict[str, list[str]]:
    """Names that the Hub knows, by key of the front matter."""
    return tomllib.loads(resources.files(__package__).joinpath("hub_lists.toml").read_text("utf-8"))


def _is_image_address(url: str) -> bool:
    if re.match(r"[a-z][a-z0-9+.-]*:|//", url, re.IGNORECASE):
        return url.startswith("https://")
    return not url.startswith("/") and ".." not in url.split("/")


def _listed(value: Any) -> Sequence[Any]:
    """One value or several."""
    if value is None:
        return ()
    return value if isinstance(value, list) else (value,)


def _shown(value: Any) -> str:
    """A value from the front matter, safe to show."""
    if isinstance(value, str | int | float | bool | date) or value is None:
        return printable(str(value), 80)
    return f"a {type(value).__name__}"
