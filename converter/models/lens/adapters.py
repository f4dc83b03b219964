"""LoRA adapters for Lens, in all common naming schemes.

PEFT writes ``base_model.model.NAME.lora_A.weight``, with rank and alpha in ``adapter_config.json``. diffusers writes
``transformer.NAME…``, with rank and alpha in the metadata of the file. Others write ``diffusion_model.NAME…`` or bare
names, ``lora_down`` and ``lora_up``, and an ``alpha`` tensor for each module. diffusers loads only its own scheme and
silently ignores the others; here all of them load, and a name that the model does not have is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders import CogView4LoraLoaderMixin
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

#: Prefixes of a module's name.
_PREFIX = re.compile(r"^(base_model\.model\.)?(transformer\.|model\.diffusion_model\.|diffusion_model\.)?")
#: In a plain state dict, PEFT puts the adapter's name before the parameter's.
_ADAPTER_NAME = re.compile(r"(?<=\.lora_[AB])\.[^.]+(?=\.(weight|bias)$)")
#: Other names of the two factors.
_FACTORS = ((re.compile(r"\.lora[._]down\."), ".lora_A."), (re.compile(r"\.lora[._]up\."), ".lora_B."))
#: The end of a module's name.
_PARAMETER = re.compile(r"\.(lora_|lokr_|alpha$)")
_CONFIG_NAME = "adapter_config.json"
#: Options of ``from_pretrained`` that say where a file of a Hub repo is.
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
#: Keys of it that a loader needs.
_CONFIG_KEYS = ("alpha_pattern", "lora_alpha", "lora_bias", "r", "rank_pattern", "use_dora", "use_rslora")


def normalize_adapter(
    state: Mapping[str, torch.Tensor], metadata: Mapping[str, Any] | None, modules: Iterable[str]
) -> tuple[dict[str, torch.Tensor], dict[str, Any] | None]:
    """Return the tensors of an adapter under bare names, and its config without prefixes.

    Args:
        state: tensors by name.
        metadata: config of the adapter, as diffusers or PEFT write it; None to infer it from the tensors.
        modules: names of the modules that the model has.

    Raises:
        ValueError: the adapter has no tensors, one is for a module that the model does not have, or one is missing.
    """
    known = set(modules)
    bare = {_bare_name(name): tensor for name, tensor in state.items()}
    foreign = sorted(name for name in bare if _PARAMETER.split(name, maxsplit=1)[0] not in known)
    if not bare:
        raise ValueError("the adapter contains no tensors for the transformer")
    if foreign:
        reason = f"the adapter has {len(foreign)} of {len(bare)} tensors for modules that the model lacks"
        raise ValueError(f"{reason}, such as {foreign[0]}")
    for module in sorted({_PARAMETER.split(name, maxsplit=1)[0] for name in bare if ".lora_" in name}):
        for part in ("lora_A", "lora_B"):
            if f"{module}.{part}.weight" not in bare:
                # PEFT would fill it with random numbers.
                raise ValueError(f"the adapter has no {part} for {module}")
    alphas = {name.removesuffix(".alpha"): bare.pop(name) for name in tuple(bare) if name.endswith(".alpha")}
    for module, alpha in alphas.items():
        factor = bare.get(f"{module}.lora_B.weight")
        if factor is None:
            raise ValueError(f"the adapter has an alpha for {module} and no weights")
        # Without a config, loaders scale by 1.
        bare[f"{module}.lora_B.weight"] = factor * (float(alpha) / factor.shape[1])
    if alphas:
        metadata = None
    if metadata is not None:
        metadata = {_PREFIX.sub("", key, count=1): value for key, value in metadata.items()}
        metadata = {key: metadata[key] for key in _CONFIG_KEYS if metadata.get(key) is not None}
        # The tensors show more reliably than a config's patterns which modules are adapted.
        metadata["target_modules"] = sorted({_PARAMETER.split(name, maxsplit=1)[0] for name in bare})
    return bare, metadata


def _bare_name(name: str) -> str:
    """PEFT's name of a tensor, without prefixes."""
    name = _PREFIX.sub("", name, count=1)
    for pattern, factor in _FACTORS:
        name = pattern.sub(factor, name)
    return _ADAPTER_NAME.sub("", name)


class LensLoraLoaderMixin(CogView4LoraLoaderMixin):
    """``load_lora_weights`` and similar methods of the pipeline; they use diffusers' mixin for plain transformers."""

    transformer: Any

    def load_lora_weights(
        self, source: Any, adapter_name: str | None = None, hotswap: bool = False, **options: Any
    ) -> None:
        """Load an adapter into the transformer; diffusers' method refuses names of alphas.

        Args:
            source: a folder, a file, a Hub repo, or a state dict.
            adapter_name: its name; by default ``default_`` and a number.
            hotswap: whether to replace the adapter of this name.
            options: those of the transformer's ``load_lora_adapter``.

        Raises:
            ValueError: the adapter is for modules that the transformer does not have.
        """
        self.transformer.load_lora_adapter(
            source, adapter_name=adapter_name, hotswap=hotswap, _pipeline=self, **options
        )

    @classmethod
    def lora_state_dict(cls, source: Any, **options: Any) -> Any:
        """Read an adapter from a safetensors file, or from a pickle of tensors alone.

        Args:
            source: a folder, a file, a Hub repo, or a state dict.
            options: of every ``lora_state_dict`` of diffusers.

        Returns:
            The tensors by name; with ``return_lora_metadata`` also the config of the adapter.
        """
        wants_metadata = options.pop("return_lora_metadata", False)
        state, metadata = super().lora_state_dict(source, return_lora_metadata=True, **options)
        if metadata is None and not isinstance(source, dict):
            metadata = _read_config(source, options)
        return (state, metadata) if wants_metadata else state


def _read_config(source: Any, options: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read PEFT's config of an adapter, if it has one."""
    path = Path(source)
    if path.exists():
        file = (path if path.is_dir() else path.parent) / (options.get("subfolder") or "") / _CONFIG_NAME
        if not file.is_file():
            return None
    else:
        located = {key: options[key] for key in HUB_OPTIONS if options.get(key) is not None}
        try:
            file = Path(hf_hub_download(str(source), _CONFIG_NAME, **located))
        except EntryNotFoundError:
            return None
    config: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return config
