"""The programs of a card: they load the release, and draw as the measured images were drawn."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from converter.models.lens.layout import PIPELINE_CLASS_NAME
from converter.presentation.card.markdown import Markdown
from converter.presentation.card.release import CardRelease
from converter.rendering import render

#: Settings of the published benchmark, for a Lens release that was not measured.
_LENS_SETTINGS: dict[str, Any] = {
    "base_resolution": 1440,
    "aspect_ratio": "1:1",
    "num_inference_steps": 20,
    "guidance_scale": 5.0,
}


def describe_usage(release: CardRelease, repository: str, settings: Mapping[str, Any]) -> Markdown | None:
    """Return programs that load the release and, as far as its pipeline is known, draw with it; None without any.

    Args:
        release: what the card describes.
        repository: the name by which programs load it.
        settings: those of its measurements; empty if there are none.
    """
    if release.main.is_lens and release.components:
        arguments = _literals(_call_of_lens(settings))
        return Markdown(render("usage.md.jinja", repository=_in_quotes(repository), arguments=arguments))
    # A pipeline that was measured drew images.
    is_measured = bool(release.pipeline_class) and settings.get("pipeline") == release.pipeline_class
    if release.pipeline_class in ("", PIPELINE_CLASS_NAME) or (release.code and not is_measured):
        return None
    text = render(
        "usage_diffusers.md.jinja",
        repository=_in_quotes(repository),
        pipeline=release.pipeline_class,
        draws=is_measured,
        arguments=_literals(_call(settings)),
    )
    return Markdown(text)


def _call_of_lens(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that drew the measured images; of what was not measured, those of the published benchmark."""
    shown = {key: default if settings.get(key) is None else settings[key] for key, default in _LENS_SETTINGS.items()}
    size = ("base_resolution", "aspect_ratio")
    # A size that has no name was given in pixels.
    if settings.get("base_resolution") is None and {"height", "width"} <= settings.keys():
        shown |= {"height": settings["height"], "width": settings["width"]}
        size = ("height", "width")
    arguments = {"negative_prompt": settings.get("negative_prompt") or None, **{name: shown[name] for name in size}}
    return arguments | {name: shown[name] for name in ("num_inference_steps", "guidance_scale")}


def _call(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that drew the measured images with a pipeline of diffusers."""
    guidance, negative = settings.get("guidance_argument"), settings.get("negative_prompt") or None
    found: dict[str, Any] = {
        # This guidance has no effect without a negative prompt, even an empty one.
        "negative_prompt": negative or ("" if guidance == "true_cfg_scale" else None),
        **({} if settings.get("fixed_size") else {name: settings.get(name) for name in ("height", "width")}),
        "num_inference_steps": settings.get("num_inference_steps"),
    }
    if isinstance(guidance, str) and guidance.isidentifier():
        found[guidance] = settings.get("guidance_scale")
    return {**found, "max_sequence_length": settings.get("max_sequence_length")}


def _literals(arguments: Mapping[str, Any]) -> dict[str, str]:
    """Arguments as Python writes them; those without a value are left out."""
    return {
        name: f'"{_in_quotes(value)}"' if isinstance(value, str) else str(value)
        for name, value in arguments.items()
        if value is not None
    }


def _in_quotes(text: str) -> str:
    """Escape a text so that Python reads the same text between double quotes."""
    # Three backticks would end the block of code around it.
    return json.dumps(text)[1:-1].replace("`", "\\u0060")
