"""The front matter of a card: written through the Hub client's own class, and checked by the Hub's rules.

What cannot be right is an error. A license, a task or a language that is not in hub_lists.toml is a warning: the Hub
adds to its lists, and decides.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from converter.errors import printable
from converter.front_matter import parse_front_matter
from converter.hub.addresses import is_repo_id
from converter.presentation.card.markdown import one_line

if TYPE_CHECKING:
    import yaml

_COMMIT = re.compile(r"[0-9a-f]{40}")
#: What an id of a license, a task or a language may look like.
_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,95}")
#: Codes of ISO 639-3.
_LANGUAGE = re.compile(r"[a-z]{3}")
#: How a model can come from another, as hub-docs, docs/hub/model-cards.md, names it.
_RELATIONS = ("adapter", "finetune", "merge", "quantized")
#: As 1e3, 0o17 and 08.
_LIKE_A_NUMBER = re.compile(r"[-+.]*[0-9][\w.+:-]*", re.ASCII)
#: The Hub cuts tags that are longer.
_TAG_LIMIT = 100
#: Keys whose value is one text, and those whose value is a text or a list of texts.
_TEXT_KEYS = (
    "base_model_relation",
    "base_model_revision",
    "library_name",
    "license_link",
    "license_name",
    "pipeline_tag",
    "thumbnail",
)
_TEXTS_KEYS = ("base_model", "datasets", "language", "license", "metrics", "new_version", "tags")


@dataclass(frozen=True)
class GalleryImage:
    """An image of the gallery above the card."""

    text: str
    """Its prompt."""
    path: str
    """Path inside the release, with slashes."""


@dataclass(frozen=True)
class CardMetadata:
    """What the front matter says."""

    license: str | None
    license_name: str | None
    license_link: str | None
    base_model: str | None
    base_revision: str | None
    library_name: str
    pipeline_tag: str
    languages: tuple[str, ...]
    tags: tuple[str, ...]
    gallery: tuple[GalleryImage, ...]

    def to_yaml(self) -> str:
        """The front matter with its dashes; every text is one line, so that none can end it."""
        import yaml
        from huggingface_hub import ModelCardData

        yaml.add_representer(_Quoted, _in_quotes)
        extra: dict[str, Any] = {}
        if self.base_model is not None:
            extra["base_model_relation"] = "quantized"
            if self.base_revision is not None:
                extra["base_model_revision"] = one_line(self.base_revision)
        if self.gallery:
            extra["widget"] = [
                {"text": _text(item.text), "output": {"url": quote(item.path, safe="/")}} for item in self.gallery
            ]
        data = ModelCardData(
            license=_line(self.license),
            license_name=_line(self.license_name),
            license_link=_line(self.license_link),
            base_model=_line(self.base_model),
            library_name=one_line(self.library_name),
            pipeline_tag=one_line(self.pipeline_tag),
            language=[one_line(language) for language in self.languages] or None,
            tags=list(dict.fromkeys(_text(tag) for tag in self.tags)) or None,
            **extra,
        )
        return f"---\n{data.to_yaml(line_break=chr(10)).strip()}\n---\n"


class _Quoted(str):
    """A text that is written in quotes."""

    __slots__ = ()


def _in_quotes(dumper: yaml.Dumper, text: _Quoted) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style="'")


def _text(text: str) -> str:
    """One line, in quotes where YAML 1.2 would read a number and YAML 1.1, for which PyYAML writes, a text."""
    line = one_line(text)
    return _Quoted(line) if _LIKE_A_NUMBER.fullmatch(line) else line


@dataclass(frozen=True)
class MetadataReport:
    """What was found in the front matter of a card."""

    errors: tuple[str, ...] = ()
    """What the Hub would refuse or misread."""
    warnings: tuple[str, ...] = ()
    """Names that the Hub may not know."""


def check_metadata(text: str) -> MetadataReport:
    """Check the front matter of a card.

    Args:
        text: the whole card.
    """
    if text.startswith("\ufeff"):
        return MetadataReport(("it begins with a byte order mark, so the Hub does not see its front matter",))
    content, fault = parse_front_matter(text)
    fault = fault or _unicode_fault(content)
    errors = [fault] if fault else list(_type_errors(content)) or list(_value_errors(content))
    return MetadataReport(tuple(errors), () if errors else tuple(_unknown_names(content)))


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
    index = content.get("model-index")
    if index is not None and not (isinstance(index, list) and all(map(_has_results, index))):
        yield "model-index is not a list of models with a name and results"


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
    yield from _base_model_errors(content)
    for tag in _listed(content.get("tags")):
        if len(tag) > _TAG_LIMIT or "\n" in tag:
            yield f"tags: {_shown(tag)} is longer than {_TAG_LIMIT} characters, or has several lines"
    library = content.get("library_name")
    if library is not None and not re.fullmatch(r"[\w.-]+", library):
        yield f"library_name {_shown(library)} is not the name of a library"


def _license_errors(content: Mapping[str, Any]) -> Iterator[str]:
    found, name, link = (content.get(key) for key in ("license", "license_name", "license_link"))
    if found == "other":
        for key in ("license_name", "license_link"):
            if not (content.get(key) or "").strip():
                yield f"license other needs a {key}"
    elif found is not None and name is not None:
        yield f"license_name is allowed only with license other, not with {_shown(found)}"
    if name and not re.fullmatch("[a-z0-9.-]+", name):
        yield f"license_name {_shown(name)} has other characters than a-z 0-9 . and -"
    if link and not re.fullmatch(r"https://\S+|LICENSE(\.\w+)?", link):
        yield f"license_link {_shown(link)} is neither an https address nor LICENSE or LICENSE.md of the repo"


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
            if name not in known and not (key == "language" and _LANGUAGE.fullmatch(name)):
                near = difflib.get_close_matches(name.lower(), known, n=1)
                hint = f"did you mean {near[0]}?" if near else "the Hub decides whether it is valid"
                yield f"{key} {_shown(name)} is not known to lensconv; {hint}"


@cache
def _hub_names() -> dict[str, list[str]]:
    """Names that the Hub knows, by key of the front matter."""
    return tomllib.loads(resources.files(__package__).joinpath("hub_lists.toml").read_text("utf-8"))


def _has_results(model: Any) -> bool:
    return isinstance(model, dict) and isinstance(model.get("name"), str) and isinstance(model.get("results"), list)


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


def _line(text: str | None) -> str | None:
    return None if text is None else one_line(text)
