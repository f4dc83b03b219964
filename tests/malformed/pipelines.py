"""Pipeline repos."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.malformed.site import HOSTILE_TEXT, Invocation, Site, add_case


def make_pipeline(site: Site, **components: Any) -> Path:
    """A pipeline repo around a valid transformer, with further entries in its index and no folders for them."""
    site.source.mkdir()
    site.copy_lens("source/transformer")
    index = {"_class_name": "LensPipeline", "transformer": ["diffusers", "LensTransformer2DModel"]}
    site.write("source/model_index.json", json.dumps(index | {"scheduler": [None, None]} | components))
    return site.source


_OTHER = ["transformers", "CLIPTokenizer"]
_INDEX = "model_index.json"
_NO_DENOISER = [_INDEX, "neither transformer nor unet"]
Prepare = Callable[[Path], object]


def _add_pipeline_case(
    name: str, error: str, component: str | None, prepare: Prepare | None, message: list[str], *options: str
) -> None:
    """A pipeline repo with one more component in its index, or changed further."""

    def build(site: Site) -> Invocation:
        repo = make_pipeline(site, **({} if component is None else {component: _OTHER}))
        if prepare is not None:
            prepare(repo)
        return site.convert(*options)

    hint = ("--component",) if message is _NO_DENOISER else ()
    add_case(f"pipeline-{name}", build, error, *message, hint=hint)


def _link(name: str, target: str) -> Prepare:
    def prepare(repo: Path) -> None:
        (repo / name).parent.mkdir(exist_ok=True)
        (repo / name).symlink_to(target)

    return prepare


def _fill(component: str) -> Prepare:
    def prepare(repo: Path) -> None:
        (repo / component).mkdir()
        (repo / component / "tokenizer_config.json").write_text("{}")

    return prepare


def _index(content: str) -> Prepare:
    return lambda repo: (repo / _INDEX).write_text(content)


def _remove_transformer(repo: Path) -> None:
    shutil.rmtree(repo / "transformer")


def _make_pipe(repo: Path) -> None:
    (repo / "vae").mkdir()
    os.mkfifo(repo / "vae" / "config.json")


def _link_component_outside(repo: Path) -> None:
    elsewhere = repo.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "secret.json").write_text("{}")
    (repo / "vae").symlink_to(elsewhere)


for _component in ("../x", "..", ".", "/etc", "..\\x", "x\0", ""):
    _message = [_INDEX, "is not the name of a folder in the repo"]
    _add_pipeline_case(f"component-{_component!r}", "MalformedCheckpoint", _component, None, _message)
for _component in ("sdnq_quantization_summary.json", "lensconv_manifest.json"):
    _message = [_INDEX, f"a component has the name of a file that lensconv writes: {_component}"]
    _add_pipeline_case(f"component-{_component}", "MalformedCheckpoint", _component, _fill(_component), _message)
_MISSING = "no such folder, though model_index.json"
_LINK = ", outside of"
_CONFIG, _NOTES = "vae/config.json", "transformer/notes.txt"
_BAD = "MalformedCheckpoint"
_HOSTILE_INDEX = _index(json.dumps({HOSTILE_TEXT: _OTHER}))
for _name, _error, _component_name, _prepare, _message, *_options in (
    ("component-missing", "MissingInput", "vae", None, ["vae", _MISSING]),
    ("transformer-missing", "MissingInput", None, _remove_transformer, ["transformer", _MISSING]),
    ("component-lone-surrogate", "MalformedCheckpoint", "x\ud800", None, ["x\\ud800", "not the name of a folder"]),
    ("component-name-too-long", "InputError", "x" * 300, None, ["xxx"]),
    ("component-hostile", "UsageError", HOSTILE_TEXT, None, ["nope"], "--component", "nope"),
    ("no-denoiser", "UnsupportedCheckpoint", None, _HOSTILE_INDEX, _NO_DENOISER),
    ("index-empty", "UnsupportedCheckpoint", None, _index("{}"), _NO_DENOISER),
    ("index-not-json", _BAD, None, _index("<html>"), [_INDEX, "an HTML page"]),
    ("index-array", _BAD, None, _index("[]"), [_INDEX, "JSON list"]),
    ("component-model_index.json", "MissingInput", _INDEX, None, [_INDEX, _MISSING]),
    ("link-to-a-file-outside", _BAD, "vae", _link("vae/notes", "/etc/passwd"), ["vae/notes", _LINK]),
    ("link-to-a-file-outside-beside-the-weights", _BAD, None, _link(_NOTES, "/etc/passwd"), [_NOTES, _LINK]),
    ("link-to-a-folder-outside", _BAD, "vae", _link("vae/deep", "/etc"), ["vae/deep", "is a link to a folder"]),
    ("component-a-link-outside", _BAD, "vae", _link_component_outside, ["vae/secret.json", _LINK]),
    ("link-to-nothing", "MissingInput", "vae", _link(_CONFIG, "gone"), [_CONFIG]),
    ("link-to-itself", "InputError", "vae", _link(_CONFIG, "config.json"), [_CONFIG]),
    ("pipe-in-a-component", _BAD, "vae", _make_pipe, [_CONFIG, "not a regular file"]),
):
    _add_pipeline_case(_name, _error, _component_name, _prepare, _message, *_options)
