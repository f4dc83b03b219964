"""The front matter of a card, written through the Hub client's own class."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from converter.presentation.visible import one_line

if TYPE_CHECKING:
    import yaml

#: As 1e3, 0o17 and 08.
_LIKE_A_NUMBER = re.compile(r"[-+.]*[0-9][\w.+:-]*", re.ASCII)


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
                extra["base_model_revision"] = _text(self.base_revision)
        if self.gallery:
            extra["widget"] = [
                {"text": _text(item.text), "output": {"url": quote(item.path, safe="/")}} for item in self.gallery
            ]
        data = ModelCardData(
            license=_line(self.license),
            license_name=_line(self.license_name),
            license_link=_line(self.license_link),
            base_model=_line(self.base_model),
            library_name=_text(self.library_name),
            pipeline_tag=_text(self.pipeline_tag),
            language=[_text(language) for language in self.languages] or None,
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


def _line(text: str | None) -> str | None:
    return None if text is None else _text(text)
