"""Configs."""

from __future__ import annotations

import os
from typing import Any

from tests.malformed.site import (
    HOSTILE_TEXT,
    SMALL_FILE,
    WHOLE_FILE,
    Site,
    add_case,
    case,
    edit_config,
)


def _add_config_case(name: str, *message: str, error: str = "UnsupportedCheckpoint", **changes: Any) -> None:
    def build(site: Site) -> None:
        edit_config(site.copy_lens(), **changes)

    add_case(f"config-{name}", build, error, *message)


def _add_config_content_case(name: str, content: bytes, *message: str) -> None:
    def build(site: Site) -> None:
        (site.copy_lens() / "config.json").write_bytes(content)

    add_case(f"config-{name}", build, "MalformedCheckpoint", "config.json", *message)


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


_add_config_content_case("empty", b"", "not JSON")
_add_config_content_case("garbage", b"\x89PNG\r\n\x1a\n", "not UTF-8")
_add_config_content_case("cut-short", b'{"_class_name": "LensTr', "not JSON")
_add_config_content_case("array", b"[]", "JSON list, not an object")
_add_config_content_case("5000-digits", b'{"num_layers": ' + b"9" * 5000 + b"}", "not JSON")
_add_config_content_case("nested-too-deep", b"[" * 10**5, "nested too deeply")
_add_config_content_case("repeated-key", b'{"num_layers": 1, "num_layers": 2}', "names num_layers twice")
_add_config_case("class-unknown", "config.json", "NoSuchModel", _class_name="NoSuchModel")
_add_config_case("class-hostile", "config.json", "evil\\r\\n\\x1b", _class_name=HOSTILE_TEXT)
_add_config_case("class-a-path", "config.json", "../../evil", _class_name="../../evil")
_add_config_case("class-private", "config.json", "__class__", _class_name="__class__")
_add_config_case("class-a-number", "config.json", "_class_name", error="InputError", _class_name=5)
_add_config_case("class-a-module", "config.json", "models", _class_name="models")
_add_config_case("class-a-pipeline", "config.json", "FluxPipeline", _class_name="FluxPipeline")
_add_config_case("class-a-scheduler", "config.json", "DDIMScheduler", _class_name="DDIMScheduler")
_add_config_case("class-a-factory", "config.json", "AutoModel", _class_name="AutoModel")
_add_config_case("class-a-base", "config.json", "ModelMixin", _class_name="ModelMixin")
_add_config_case("class-a-base-of-transformers", "config.json", "PreTrainedModel", _class_name="PreTrainedModel")
_add_config_case("class-of-other-tensors", "source", "FluxTransformer2DModel", _class_name="FluxTransformer2DModel")
_add_config_case(
    "architecture-of-other-tensors", "source", "Qwen3", _class_name=None, architectures=["Qwen3ForCausalLM"]
)
_add_config_case(
    "architecture-refuses-it", "config.json", "CLIPTextModel", _class_name=None, architectures=["CLIPTextModel"]
)
_add_config_case(
    "architecture-refuses-a-type",
    "config.json",
    "num_hidden_layers",
    _class_name=None,
    architectures=["LlamaForCausalLM"],
    num_hidden_layers="two",
)
_add_config_case("layers-a-billion", "config.json", "num_layers", num_layers=10**9)
_add_config_case("layers-4000-digits", "config.json", "num_layers", num_layers=10**4000)
_add_config_case("layers-negative", "LensTransformer2DModel", num_layers=-1)
_add_config_case("layers-none", "LensTransformer2DModel", num_layers=0)
_add_config_case("layers-a-string", "config.json", num_layers="1")
_add_config_case("layers-a-float", "config.json", num_layers=1.5)
_add_config_case("layers-true", "config.json", "num_layers", num_layers=True)
_add_config_case("layers-one-too-many", "transformer_blocks.1.", num_layers=2)
_add_config_case("heads-a-trillion", "config.json", num_attention_heads=10**12)
_add_config_case("axes-a-string", "config.json", "axes_dims_rope", axes_dims_rope="8,28,28")
_add_config_case("variant-without-gates", "config.json", "gate_mlp", gate_mlp=False)
_add_config_case(
    "layers-of-flux-a-billion", "config.json", _class_name="FluxTransformer2DModel", num_layers=10**9, inner_dim=None
)
_add_config_case(
    "layers-of-qwen-a-billion",
    "config.json",
    _class_name=None,
    architectures=["Qwen3ForCausalLM"],
    num_hidden_layers=10**9,
)
