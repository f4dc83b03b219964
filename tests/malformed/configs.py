"""Configs."""

from __future__ import annotations

import os
from typing import Any

from tests.malformed.site import SMALL_FILE, WHOLE_FILE, Site, add_case, case, edit_config, rows_of


def _add_config_case(name: str, error: str, hint: str, keys: dict[str, Any], *said: str) -> None:
    """A config of which keys are changed."""

    def build(site: Site) -> None:
        edit_config(site.copy_lens(), **keys)

    add_case(f"config-{name}", build, error, *said, hint=(hint,))


def _add_content_case(name: str, content: bytes | str, *said: str) -> None:
    """A config that is something else."""

    def build(site: Site) -> None:
        site.copy_lens()
        site.write("source/config.json", content)

    add_case(f"config-{name}", build, "MalformedCheckpoint", "config.json", *said)


@case("config-missing", "UnsupportedCheckpoint", "source", "no config.json names a class")
def _config_missing(site: Site) -> None:
    # The tensors of Lens tell what they are; those of this file do not.
    site.write(f"source/{SMALL_FILE}", WHOLE_FILE)


@case("config-is-a-folder", "InputError", "config.json")
def _config_is_a_folder(site: Site) -> None:
    config = site.copy_lens() / "config.json"
    config.unlink()
    config.mkdir()


@case("config-is-a-dangling-link", "MissingInput", "config.json")
def _config_is_a_dangling_link(site: Site) -> None:
    # As in a cache of the Hub that lacks the file's blob.
    config = site.copy_lens() / "config.json"
    config.unlink()
    config.symlink_to("../blobs/gone")


@case("config-too-long", "MalformedCheckpoint", "config.json", "is longer than")
def _config_too_long(site: Site) -> None:
    os.truncate(site.copy_lens() / "config.json", 10**12)


for _row in rows_of("configs"):
    _add_config_case(*_row)
_LAYERS = {"num_layers": 10**4000}
_add_config_case("layers-4000-digits", "UnsupportedCheckpoint", "", _LAYERS, "config.json", "num_layers")
for _row in rows_of("contents"):
    _add_content_case(*_row)
_add_content_case("garbage", b"\x89\xff\r\n\x1a\n", "not UTF-8")
_add_content_case("image", b"\x89PNG\r\n\x1a\n", "but is a PNG image")
_add_content_case("5000-digits", '{"num_layers": ' + "9" * 5000 + "}", "not JSON")
_add_content_case("nested-too-deep", "[" * 10**5, "nested too deeply")
