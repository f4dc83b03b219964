"""Sources that are missing, are not a checkpoint, or are quantized already."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from converter.conversion.convert import convert
from converter.conversion.options import ConvertOptions
from tests.malformed.site import (
    HOSTILE_TEXT,
    IN_PROCESS,
    LENS_FILE,
    SHARDS,
    SMALL_FILE,
    WHOLE_FILE,
    Builder,
    Invocation,
    Site,
    add_case,
    case,
    edit_config,
)


def _in_source(change: Callable[[Path], object]) -> Builder:
    """A folder in which something is called as the weights are."""

    def build(site: Site) -> None:
        site.source.mkdir()
        change(site.source / SMALL_FILE)

    return build


def _two_files(site: Site) -> None:
    for shard in SHARDS:
        site.write(f"source/{shard}", WHOLE_FILE)


def _config_only(site: Site) -> None:
    (site.copy_lens() / LENS_FILE).unlink()


def _at(path: str) -> Builder:
    return lambda site: site.convert(source=site.root / path)


_PATH, _EMPTY, _IRREGULAR = "no such file or folder", "contains no safetensors weights", "not a regular file"
_build: Builder
for _name, _build, *_message in (
    ("source-missing", Site.convert, "source", _PATH),
    ("source-missing-hostile-name", _at(HOSTILE_TEXT), "evil\\r\\n\\x1b[2J", _PATH),
    ("source-is-a-dangling-link", lambda site: site.source.symlink_to("gone"), "source", _PATH),
    ("source-is-a-link-to-itself", lambda site: site.source.symlink_to("source"), "source", _PATH),
    ("source-is-a-pipe", lambda site: os.mkfifo(site.source), "source"),
    ("source-is-a-device", _at("/dev/zero"), "/dev/zero"),
    ("folder-empty", lambda site: site.source.mkdir(), "source", _EMPTY),
    ("folder-with-config-only", _config_only, "source", _EMPTY),
    ("folder-two-files-without-index", _two_files, "source", "2 safetensors files and no index"),
    ("weights-are-a-folder", _in_source(Path.mkdir), SMALL_FILE, _IRREGULAR),
    ("weights-are-a-pipe", _in_source(os.mkfifo), SMALL_FILE, _IRREGULAR),
    ("weights-are-a-dangling-link", _in_source(lambda file: file.symlink_to("gone")), SMALL_FILE),
):
    add_case(_name, _build, "MissingInput", *_message)
add_case("source-name-too-long", _at("n" * 300), "InputError", "nnn", "too long")


@case("source-is-a-config", "UnsupportedCheckpoint", "config.json: contains no weights", hint=("Give the folder",))
def _source_is_a_config(site: Site) -> Invocation:
    return site.convert(source=site.copy_lens() / "config.json")


class _Mark:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self._file),)


@case("pickle-that-runs-code", "UnsupportedCheckpoint", "diffusion_pytorch_model.bin", "may contain a pickle")
def _pickle_that_runs_code(site: Site) -> None:
    site.write("source/diffusion_pytorch_model.bin", pickle.dumps(_Mark(site.root / "marker")))


def _pickle(name: str) -> Builder:
    return lambda site: site.convert(source=site.write(f"source/{name}", pickle.dumps(_Mark(site.root / "marker"))))


for _name in ("pytorch_model.bin", "a.pt", "a.pth", "a.ckpt", "a.pkl"):
    add_case(f"pickle-named-{_name}", _pickle(_name), "UnsupportedCheckpoint", _name, "may contain a pickle")


@case("pickle-is-a-pipe", "UnsupportedCheckpoint", "pytorch_model.bin", "may contain a pickle")
def _pickle_is_a_pipe(site: Site) -> None:
    # Whoever opens a pipe that nobody writes to waits for ever.
    site.source.mkdir()
    os.mkfifo(site.source / "pytorch_model.bin")


@case("pickle-beside-a-config", "UnsupportedCheckpoint", "lens.ckpt", "may contain a pickle")
def _pickle_beside_a_config(site: Site) -> None:
    (site.copy_lens() / LENS_FILE).rename(site.source / "lens.ckpt")


@case("quantized-says-the-config", "UnsupportedCheckpoint", "source", "already quantized (bitsandbytes)")
def _quantized_says_the_config(site: Site) -> None:
    edit_config(site.copy_lens(), quantization_config={"quant_method": "bitsandbytes"})


@case("quantized-says-a-strange-config", "UnsupportedCheckpoint", "source", "quantized (unknown method)")
def _quantized_says_a_strange_config(site: Site) -> None:
    edit_config(site.copy_lens(), quantization_config=[])


@case("quantized-by-lensconv", "UnsupportedCheckpoint", "source", "already quantized (sdnq)")
def _quantized_by_lensconv(site: Site) -> None:
    convert(site.lens, site.source, options=ConvertOptions(settings=IN_PROCESS[1:]))


@case("quantized-by-lensconv-without-its-config", "UnsupportedCheckpoint", "source", "quantized (sdnq): tensor")
def _quantized_by_lensconv_without_its_config(site: Site) -> None:
    convert(site.lens, site.source, options=ConvertOptions(settings=IN_PROCESS[1:]))
    shutil.copy(site.lens / "config.json", site.source)
