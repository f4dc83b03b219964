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
    Invocation,
    Site,
    case,
    edit_config,
)


@case("source-missing", "MissingInput", "source", "no such file or folder")
def _source_missing(site: Site) -> Invocation:
    return site.convert()


@case("source-missing-hostile-name", "MissingInput", "evil\\r\\n\\x1b[2J", "no such file or folder")
def _source_missing_hostile_name(site: Site) -> Invocation:
    return site.convert(source=site.root / HOSTILE_TEXT)


@case("source-is-a-dangling-link", "MissingInput", "source", "no such file or folder")
def _source_is_a_dangling_link(site: Site) -> None:
    site.source.symlink_to("gone")


@case("source-is-a-link-to-itself", "MissingInput", "source", "no such file or folder")
def _source_is_a_link_to_itself(site: Site) -> None:
    site.source.symlink_to("source")


@case("source-name-too-long", "InputError", "nnn", "too long")
def _source_name_too_long(site: Site) -> Invocation:
    return site.convert(source=site.root / ("n" * 300))


@case("source-is-a-pipe", "MissingInput", "source")
def _source_is_a_pipe(site: Site) -> None:
    os.mkfifo(site.source)


@case("source-is-a-device", "MissingInput", "/dev/zero")
def _source_is_a_device(site: Site) -> Invocation:
    return site.convert(source=Path("/dev/zero"))


@case("source-is-a-text-file", "MalformedCheckpoint", "config.json", "not a safetensors file")
def _source_is_a_text_file(site: Site) -> Invocation:
    return site.convert(source=site.copy_lens() / "config.json")


@case("folder-empty", "MissingInput", "source", "contains no safetensors weights")
def _folder_empty(site: Site) -> None:
    site.source.mkdir()


@case("folder-with-config-only", "MissingInput", "source", "contains no safetensors weights")
def _folder_with_config_only(site: Site) -> None:
    (site.copy_lens() / LENS_FILE).unlink()


@case("folder-two-files-without-index", "MissingInput", "source", "2 safetensors files and no index")
def _folder_two_files_without_index(site: Site) -> None:
    for shard in SHARDS:
        site.write(f"source/{shard}", WHOLE_FILE)


@case("weights-are-a-folder", "MissingInput", SMALL_FILE, "not a regular file")
def _weights_are_a_folder(site: Site) -> None:
    (site.source / SMALL_FILE).mkdir(parents=True)


@case("weights-are-a-pipe", "MissingInput", SMALL_FILE, "not a regular file")
def _weights_are_a_pipe(site: Site) -> None:
    site.source.mkdir()
    os.mkfifo(site.source / SMALL_FILE)


@case("weights-are-a-dangling-link", "MissingInput", SMALL_FILE)
def _weights_are_a_dangling_link(site: Site) -> None:
    site.source.mkdir()
    (site.source / SMALL_FILE).symlink_to("gone")


class _Mark:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self._file),)


@case("pickle-that-runs-code", "UnsupportedCheckpoint", "diffusion_pytorch_model.bin", "may contain a pickle")
def _pickle_that_runs_code(site: Site) -> None:
    site.write("source/diffusion_pytorch_model.bin", pickle.dumps(_Mark(site.root / "marker")))


@case("pickle-named-itself", "UnsupportedCheckpoint", "pytorch_model.bin", "may contain a pickle")
def _pickle_named_itself(site: Site) -> Invocation:
    return site.convert(source=site.write("source/pytorch_model.bin", pickle.dumps(_Mark(site.root / "marker"))))


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


@case("quantized-says-a-strange-config", "UnsupportedCheckpoint", "source", "already quantized")
def _quantized_says_a_strange_config(site: Site) -> None:
    edit_config(site.copy_lens(), quantization_config=[])


@case("quantized-by-lensconv", "UnsupportedCheckpoint", "source", "already quantized (sdnq)")
def _quantized_by_lensconv(site: Site) -> None:
    convert(site.lens, site.source, options=ConvertOptions(settings=IN_PROCESS[1:]))


@case("quantized-by-lensconv-without-its-config", "UnsupportedCheckpoint", "source", "already quantized: tensor")
def _quantized_by_lensconv_without_its_config(site: Site) -> None:
    convert(site.lens, site.source, options=ConvertOptions(settings=IN_PROCESS[1:]))
    shutil.copy(site.lens / "config.json", site.source)
