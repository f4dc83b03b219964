"""LoRA adapters for Lens, in the spellings that are about.

PEFT writes ``base_model.model.NAME.lora_A.weight`` and keeps rank and alpha in ``adapter_config.json``; diffusers
writes ``transformer.NAME…``, others ``diffusion_model.NAME…`` or bare names. diffusers' loader takes only its own and
passes the others over in silence; here all of them load, and a name that the model does not have is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders import CogView4LoraLoaderMixin

#: What may stand before a module's name.
_PREFIX = re.compile(r"^(base_model\.model\.)?(transformer\.|model\.diffusion_model\.|diffusion_model\.)?")
#: PEFT puts the adapter's name before the parameter's when it is asked for a plain state dict.
_ADAPTER_NAME = re.compile(r"(?<=\.lora_[AB])\.[^.]+(?=\.(weight|bias)$)")
#: Where a module's name ends.
_PARAMETER = re.compile(r"\.(lora_|lora\.|lokr_|alpha$)")
#: What PEFT's ``adapter_config.json`` says that a loader needs.
_CONFIG_KEYS = ("alpha_pattern", "lora_alpha", "lora_bias", "r", "rank_pattern", "use_dora", "use_rslora")


def normalize_adapter(
    state: Mapping[str, torch.Tensor], metadata: Mapping[str, Any] | None, modules: Iterable[str]
) -> tuple[dict[str, torch.Tensor], dict[str, Any] | None]:
    """The tensors of an adapter under bare names, and its config without prefixes.

    Args:
        state: tensors by name.
        metadata: config of the adapter, as diffusers or PEFT write it; None when it is to be told from the tensors.
        modules: names of the modules that the model has.

    Raises:
        ValueError: there are no tensors, or one is for a module that the model does not have.
    """
    known = set(modules)
    bare = {_ADAPTER_NAME.sub("", _PREFIX.sub("", name, count=1)): tensor for name, tensor in state.items()}
    foreign = sorted(name for name in bare if _PARAMETER.split(name, maxsplit=1)[0] not in known)
    if foreign or not bare:
        raise ValueError(
            f"the adapter has {len(foreign)} of {len(bare)} tensors for modules that the model lacks"
            + (f", such as {foreign[0]}" if foreign else "")
        )
    if metadata is not None:
        metadata = {_PREFIX.sub("", key, count=1): value for key, value in metadata.items()}
        metadata = {key: metadata[key] for key in _CONFIG_KEYS if metadata.get(key) is not None}
        # The tensors tell better than a config's patterns which modules are adapted.
        metadata["target_modules"] = sorted({_PARAMETER.split(name, maxsplit=1)[0] for name in bare})
    return bare, metadata


class LensLoraLoaderMixin(CogView4LoraLoaderMixin):
    """``load_lora_weights`` and its kin for the pipeline; diffusers' mixin for plain transformers does the rest."""

    @classmethod
    def lora_state_dict(cls, source: Any, **options: Any) -> Any:
        """Read an adapter, from safetensors only.

        Args:
            source: a folder, a Hub repo, or a state dict.
            options: of every ``lora_state_dict`` of diffusers.

        Returns:
            The tensors by name; with ``return_lora_metadata`` the config of the adapter, too.
        """
        wants_metadata = options.pop("return_lora_metadata", False)
        options["use_safetensors"] = True
        state, metadata = super().lora_state_dict(source, return_lora_metadata=True, **options)
        if metadata is None and not isinstance(source, dict):
            config = Path(source, options.get("subfolder") or "", "adapter_config.json")
            metadata = json.loads(config.read_text("utf-8")) if config.is_file() else None
        return (state, metadata) if wants_metadata else state
