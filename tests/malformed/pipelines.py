"""Pipeline repos."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.malformed.site import (
    HOSTILE_TEXT,
    Invocation,
    Site,
    add_case,
)


def make_pipeline(site: Site, **components: Any) -> Path:
    """A pipeline repo around a valid transformer; returns its folder.

    Args:
        components: further entries of its model_index.json; no folders are made for them.
    """
    site.source.mkdir()
    site.copy_lens("source/transformer")
    index = {
        "_class_name": "LensPipeline",
        "transformer": ["diffusers", "LensTransformer2DModel"],
        "scheduler": [None, None],
        **components,
    }
    site.write("source/model_index.json", json.dumps(index))
    return site.source


_OTHER = ["diffusers", "AutoencoderKL"]


def _add_pipeline_case(
    name: str,
    error: str,
    *message: str,
    components: Mapping[str, Any] | None = None,
    prepare: Callable[[Path], object] = lambda _: None,
    options: tuple[str, ...] = (),
    hint: tuple[str, ...] = (),
) -> None:
    def build(site: Site) -> Invocation:
        prepare(make_pipeline(site, **(components or {})))
        return site.convert(*options)

    add_case(f"pipeline-{name}", build, error, *message, hint=hint)


def _link(name: str, target: str) -> Callable[[Path], object]:
    def prepare(repo: Path) -> None:
        (repo / name).parent.mkdir(exist_ok=True)
        (repo / name).symlink_to(target)

    return prepare


def _pipe(name: str) -> Callable[[Path], object]:
    def prepare(repo: Path) -> None:
        (repo / name).parent.mkdir()
        os.mkfifo(repo / name)

    return prepare


def _link_component_outside(repo: Path) -> None:
    elsewhere = repo.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "secret.json").write_text("{}")
    (repo / "vae").symlink_to(elsewhere)


_INDEX = "model_index.json"
for _name, _component in (
    ("in-the-parent-folder", "../x"),
    ("the-parent-folder", ".."),
    ("the-repo-itself", "."),
    ("absolute", "/etc"),
    ("with-a-backslash", "..\\x"),
    ("with-a-nul", "x\0"),
    ("without-a-name", ""),
):
    _add_pipeline_case(
        f"component-{_name}",
        "MalformedCheckpoint",
        _INDEX,
        "leads out of the folder",
        components={_component: _OTHER},
    )
_add_pipeline_case(
    "component-missing", "MissingInput", "vae", "no such folder, though model_index.json", components={"vae": _OTHER}
)
_add_pipeline_case(
    "transformer-missing",
    "MissingInput",
    "transformer",
    "no such folder, though model_index.json",
    prepare=lambda repo: shutil.rmtree(repo / "transformer"),
)
_add_pipeline_case(
    "component-lone-surrogate", "MissingInput", "x\\ud800", "no such folder", components={"x\ud800": _OTHER}
)
_add_pipeline_case("component-name-too-long", "InputError", "xxx", components={"x" * 300: _OTHER})
_add_pipeline_case(
    "component-hostile", "UsageError", "nope", components={HOSTILE_TEXT: _OTHER}, options=("--component", "nope")
)
_add_pipeline_case(
    "no-denoiser",
    "UnsupportedCheckpoint",
    _INDEX,
    "neither transformer nor unet",
    prepare=lambda repo: (repo / _INDEX).write_text(json.dumps({HOSTILE_TEXT: _OTHER})),
    hint=("--component",),
)
_add_pipeline_case(
    "index-empty",
    "UnsupportedCheckpoint",
    _INDEX,
    "neither transformer nor unet",
    prepare=lambda repo: (repo / _INDEX).write_text("{}"),
)
_add_pipeline_case(
    "index-not-json",
    "MalformedCheckpoint",
    _INDEX,
    "not JSON",
    prepare=lambda repo: (repo / _INDEX).write_text("<html>"),
)
_add_pipeline_case(
    "index-array",
    "MalformedCheckpoint",
    _INDEX,
    "JSON list",
    prepare=lambda repo: (repo / _INDEX).write_text("[]"),
)
_add_pipeline_case(
    "link-to-a-file-outside",
    "MalformedCheckpoint",
    "vae/config.json",
    "is a link that leads out of",
    components={"vae": _OTHER},
    prepare=_link("vae/config.json", "/etc/passwd"),
)
_add_pipeline_case(
    "link-to-a-file-outside-beside-the-weights",
    "MalformedCheckpoint",
    "transformer/notes.txt",
    "is a link that leads out of",
    prepare=_link("transformer/notes.txt", "/etc/passwd"),
)
_add_pipeline_case(
    "link-to-a-folder-outside",
    "MalformedCheckpoint",
    "vae/deep",
    "is a link to a folder",
    components={"vae": _OTHER},
    prepare=_link("vae/deep", "/etc"),
)
_add_pipeline_case(
    "component-a-link-outside",
    "MalformedCheckpoint",
    "vae/secret.json",
    "is a link that leads out of",
    components={"vae": _OTHER},
    prepare=_link_component_outside,
)
_add_pipeline_case(
    "link-to-nothing",
    "MissingInput",
    "vae/config.json",
    components={"vae": _OTHER},
    prepare=_link("vae/config.json", "gone"),
)
_add_pipeline_case(
    "link-to-itself",
    "InputError",
    "vae/config.json",
    components={"vae": _OTHER},
    prepare=_link("vae/config.json", "config.json"),
)
_add_pipeline_case(
    "pipe-in-a-component",
    "MalformedCheckpoint",
    "vae/config.json",
    "not a regular file",
    components={"vae": _OTHER},
    prepare=_pipe("vae/config.json"),
)
