"""The front matter of a card: written through the Hub client's own class, and checked by the Hub's rules."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from converter.errors import printable
from converter.presentation.card.hub_lists import BASE_MODEL_RELATIONS, LANGUAGES, LICENSES, NO_LANGUAGE, PIPELINE_TAGS
from converter.presentation.card.markdown import one_line

if TYPE_CHECKING:
    import yaml

#: The first block between lines of three dashes, as huggingface_hub's REGEX_YAML_BLOCK and the Hub find it.
_FRONT_MATTER = re.compile(
    r"\A\s*---[ \t]*\r?\n(?P<yaml>.*?)(?:\r?\n)?^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE
)
#: Longest front matter that is parsed; a gallery of a hundred prompts is a tenth of it.
_MAXIMUM_CHARACTERS = 1_000_000
#: OWNER/NAME, by the rules of huggingface_hub.utils.validate_repo_id; names without an owner are of old models.
_REPO_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9_][\w.-]*", re.ASCII)
_REPO_ID_LIMIT = 96
_COMMIT = re.compile(r"[0-9a-f]{40}")
#: As 1e3, 0o17 and 08.
_LIKE_A_NUMBER = re.compile(r"[-+.]*[0-9][\w.+:-]*", re.ASCII)
#: The Hub cuts tags that are longer.
_TAG_LIMIT = 100


@dataclass(frozen=True)
class GalleryImage:
    """An image of the gallery above the card."""

    text: str
    """Its prompt."""
    path: str
    """In the release, with slashes."""


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
    """A text that stands in quotes."""

    __slots__ = ()


def _in_quotes(dumper: yaml.Dumper, text: _Quoted) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style="'")


def _text(text: str) -> str:
    """One line, in quotes where YAML 1.2 would read a number and YAML 1.1, for which PyYAML writes, a text."""
    line = one_line(text)
    return _Quoted(line) if _LIKE_A_NUMBER.fullmatch(line) else line


def is_repo_id(text: str, *, with_owner: bool = True) -> bool:
    """Whether the Hub could have a repo of that name."""
    return (
        bool(_REPO_ID.fullmatch(text))
        and (not with_owner or "/" in text)
        and len(text) <= _REPO_ID_LIMIT
        and not any(part in text for part in ("--", ".."))
        and not text.endswith((".git", "-", "."))
    )


def split_card(text: str) -> tuple[str | None, str]:
    """The front matter, without its dashes, and the rest; None where there is none."""
    found = _FRONT_MATTER.match(text)
    return (found["yaml"], text[found.end() :]) if found else (None, text)


def parse_metadata(text: str) -> tuple[dict[str, Any], list[str]]:
    """The front matter of a card as values, and what keeps it from being read.

    Args:
        text: the whole card.
    """
    import yaml

    front, _ = split_card(text)
    if front is None:
        return {}, ["it has no front matter, which begins and ends with a line of three dashes"]
    if len(front) > _MAXIMUM_CHARACTERS:
        return {}, [f"its front matter is longer than {_MAXIMUM_CHARACTERS} characters"]
    try:
        content = yaml.safe_load(front)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        return {}, [f"its front matter is no YAML: {printable(' '.join(str(error).split()))}"]
    if not isinstance(content, dict):
        return {}, ["its front matter is no mapping of names to values"]
    return {str(key): value for key, value in content.items()}, []


def check_metadata(text: str) -> list[str]:
    """What the Hub would refuse or misread in the front matter of a card; empty when all is well.

    Args:
        text: the whole card.
    """
    if text.startswith("\ufeff"):
        return ["it begins with a byte order mark, before which the Hub sees no front matter"]
    content, problems = parse_metadata(text)
    return problems or list(_problems(content))


def _problems(content: Mapping[str, Any]) -> Iterator[str]:
    yield from _license_problems(content)
    yield from _base_model_problems(content)
    tag = content.get("pipeline_tag")
    if tag is not None and not _is_one_of(tag, PIPELINE_TAGS):
        yield f"pipeline_tag {_shown(tag)} is no task of the Hub"
    for language in _listed(content.get("language")):
        yield from _language_problems(language)
    for tag in _listed(content.get("tags"), "tags"):
        if not isinstance(tag, str) or not tag.strip():
            yield f"tags: {_shown(tag)} is no text; put it in quotes"
        elif len(tag) > _TAG_LIMIT or "\n" in tag:
            yield f"tags: {_shown(tag)} is longer than {_TAG_LIMIT} characters or a line"
    if "tags" in content and content["tags"] is not None and not isinstance(content["tags"], list):
        yield "tags is no list"
    library = content.get("library_name")
    if library is not None and (not isinstance(library, str) or not re.fullmatch(r"[\w.-]+", library)):
        yield f"library_name {_shown(library)} is no name of a library"
    yield from _widget_problems(content.get("widget"))


def _license_problems(content: Mapping[str, Any]) -> Iterator[str]:
    found = content.get("license")
    for name in _listed(found):
        if not _is_one_of(name, LICENSES):
            yield f"license {_shown(name)} is no id that the Hub knows; other licenses are `other` with a license_name"
    if found == "other":
        for key in ("license_name", "license_link"):
            if not isinstance(content.get(key), str) or not content[key].strip():
                yield f"license other needs a {key}"
    elif found is not None and content.get("license_name") is not None:
        yield f"license_name is for license other, not for {_shown(found)}"
    link = content.get("license_link")
    if isinstance(link, str) and link.strip() and not re.fullmatch(r"https?://\S+|LICENSE(\.md|\.txt)?", link):
        yield f"license_link {_shown(link)} is neither an address nor LICENSE or LICENSE.md of the repo"


def _base_model_problems(content: Mapping[str, Any]) -> Iterator[str]:
    for name in _listed(content.get("base_model")):
        if not isinstance(name, str) or not is_repo_id(name, with_owner=False):
            yield f"base_model {_shown(name)} is no name of a repo"
    relation = content.get("base_model_relation")
    if relation is not None:
        if not _is_one_of(relation, BASE_MODEL_RELATIONS):
            yield f"base_model_relation {_shown(relation)} is none of {', '.join(sorted(BASE_MODEL_RELATIONS))}"
        if not _listed(content.get("base_model")):
            yield "base_model_relation needs a base_model"
    revision = content.get("base_model_revision")
    if revision is not None and not (isinstance(revision, str) and _COMMIT.fullmatch(revision)):
        yield f"base_model_revision {_shown(revision)} is no commit of 40 hexadecimal digits, in quotes where needed"


def _language_problems(language: Any) -> Iterator[str]:
    if language is False:
        yield "language: YAML reads no as false; put it in quotes"
    elif not isinstance(language, str):
        yield f"language {_shown(language)} is no text"
    elif language not in LANGUAGES | NO_LANGUAGE and not re.fullmatch("[a-z]{3}", language):
        yield f"language {_shown(language)} is no code of ISO 639, such as en"


def _widget_problems(widget: Any) -> Iterator[str]:
    if widget is None:
        return
    if not isinstance(widget, list):
        yield "widget is no list"
        return
    for number, entry in enumerate(widget, 1):
        output = entry.get("output") if isinstance(entry, dict) else None
        if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
            yield f"widget: entry {number} has no text"
        elif output is not None and not (isinstance(output, dict) and isinstance(output.get("url", ""), str)):
            yield f"widget: the output of entry {number} has a url that is no text"
        elif isinstance(output, dict) and not _is_image_address(output.get("url", "")):
            yield f"widget: entry {number} shows {_shown(output.get('url'))}, neither an address nor in the repo"


def _is_image_address(url: str) -> bool:
    if re.match(r"[a-z][a-z0-9+.-]*:|//", url, re.IGNORECASE):
        return url.startswith("https://")
    return not url.startswith("/") and ".." not in url.split("/")


def _listed(value: Any, name: str = "") -> Sequence[Any]:
    """One value or several."""
    if value is None or (name and not isinstance(value, list)):
        return ()
    return value if isinstance(value, list) else (value,)


def _is_one_of(value: Any, names: frozenset[str]) -> bool:
    """Whether a value, which may be of any type, is one of the names."""
    return isinstance(value, str) and value in names


def _shown(value: Any) -> str:
    """A value from the front matter, safe to show."""
    if isinstance(value, str | int | float | bool | date) or value is None:
        return printable(str(value), 80)
    return f"a {type(value).__name__}"


def _line(text: str | None) -> str | None:
    return None if text is None else one_line(text)
