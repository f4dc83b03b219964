"""Configs."""

from __future__ import annotations

import os
from typing import Any

from tests.malformed.site import HOSTILE_TEXT, SMALL_FILE, WHOLE_FILE, Site, add_case, case, edit_config


def _add_config_case(name: str, *said: str, error: str = "UnsupportedCheckpoint", hint: str = "", **keys: Any) -> None:
    def build(site: Site) -> None:
        edit_config(site.copy_lens(), **keys)

    add_case(f"config-{name}", build, error, *said, hint=(hint,))


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


for _name, _content, _said in (
    ("empty", b"", "not JSON"),
    ("garbage", b"\x89PNG\r\n\x1a\n", "not UTF-8"),
    ("cut-short", b'{"_class_name": "LensTr', "not JSON"),
    ("array", b"[]", "JSON list, not an object"),
    ("5000-digits", b'{"num_layers": ' + b"9" * 5000 + b"}", "not JSON"),
    ("nested-too-deep", b"[" * 10**5, "nested too deeply"),
    ("repeated-key", b'{"num_layers": 1, "num_layers": 2}', "names num_layers twice"),
):
    _add_config_content_case(_name, _content, _said)
_FLUX = "FluxTransformer2DModel"
for _class_name in ["../../evil", "__class__", "models", "FluxPipeline", "DDIMScheduler", "AutoModel"]:
    _said = f"config.json: {_class_name}: neither diffusers nor"
    _add_config_case(f"class-{_class_name}", _said, _class_name=_class_name)
for _class_name in ("ModelMixin", "PreTrainedModel"):
    _add_config_case(f"class-{_class_name}", f"{_class_name} cannot be built", hint="publish.", _class_name=_class_name)
_add_config_case("class-nearly-one", _class_name=f"{_FLUX}l", hint=f"Similar names: {_FLUX}, ")
_add_config_case("class-hostile", "config.json", "evil\\r\\n\\x1b", _class_name=HOSTILE_TEXT)
_add_config_case("class-of-other-tensors", "source", _FLUX, _class_name=_FLUX)
_add_config_case("class-a-number", "config.json", "_class_name", error="InputError", _class_name=5)
_TWO_LAYERS = {"num_hidden_layers": "two"}
_BILLION = {"num_hidden_layers": 10**9}
_changes: dict[str, Any]
for _name, _architecture, _changes, *_message in (
    ("architecture-of-other-tensors", "Qwen3ForCausalLM", {}, "source", "Qwen3"),
    ("architecture-refuses-it", "CLIPTextModel", {}, "config.json", "CLIPTextModel"),
    ("architecture-refuses-a-type", "LlamaForCausalLM", _TWO_LAYERS, "config.json", "num_hidden_layers"),
    ("layers-of-qwen-a-billion", "Qwen3ForCausalLM", _BILLION, "config.json"),
):
    _add_config_case(_name, *_message, _class_name=None, architectures=[_architecture], **_changes)
for _name, _changes, *_message in (
    ("layers-a-billion", {"num_layers": 10**9}, "config.json", "num_layers"),
    ("layers-of-an-encoder-a-billion", {"vision_config": {"depth": 10**9}}, "config.json", "depth is 1000000000"),
    ("blocks-1025", {"up_blocks": 1025}, "config.json", "up_blocks is 1025"),
    ("layers-4000-digits", {"num_layers": 10**4000}, "config.json", "num_layers"),
    ("layers-negative", {"num_layers": -1}, "LensTransformer2DModel"),
    ("layers-none", {"num_layers": 0}, "LensTransformer2DModel"),
    ("layers-a-string", {"num_layers": "1"}, "config.json"),
    ("layers-a-float", {"num_layers": 1.5}, "config.json"),
    ("layers-true", {"num_layers": True}, "config.json", "num_layers"),
    ("layers-one-too-many", {"num_layers": 2}, "transformer_blocks.1."),
    ("heads-a-trillion", {"num_attention_heads": 10**12}, "config.json"),
    ("axes-a-string", {"axes_dims_rope": "8,28,28"}, "config.json", "axes_dims_rope"),
    ("variant-without-gates", {"gate_mlp": False}, "config.json", "gate_mlp"),
    ("layers-of-flux-a-billion", {"_class_name": _FLUX, "num_layers": 10**9, "inner_dim": None}, "config.json"),
):
    _add_config_case(_name, *_message, **_changes)
