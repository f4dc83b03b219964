"""The Lens transformer with the features of diffusers' models: adapters, quantized checkpoints, caching."""

from __future__ import annotations

from dataclasses import replace
from functools import wraps
from typing import Any

import torch
from diffusers.hooks import FasterCacheConfig, SeaCacheConfig, TextKVCacheConfig
from diffusers.hooks._helpers import (
    AttentionProcessorMetadata,
    AttentionProcessorRegistry,
    TransformerBlockMetadata,
    TransformerBlockRegistry,
)
from diffusers.loaders import PeftAdapterMixin

from converter.models.int8_kernels import prepare_int8_kernel
from converter.models.lens import attention, modules
from converter.models.lens.adapters import HUB_OPTIONS, LensLoraLoaderMixin, normalize_adapter
from converter.models.lens.quantized import apply_serialized_matmul
from converter.models.sdnq_layers import quantized_layers


class LensTransformer2DModel(modules.LensTransformer2DModel, PeftAdapterMixin):
    """The denoiser of Lens; see ``converter.models.lens.modules`` for its arguments and its forward pass."""

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> Any:
        """Load like every model of diffusers; apply the quantized matmul that an SDNQ checkpoint asks for."""
        loaded = super().from_pretrained(*arguments, **options)
        apply_serialized_matmul(loaded[0] if isinstance(loaded, tuple) else loaded)
        return loaded

    @wraps(modules.LensTransformer2DModel.forward)
    def forward(self, hidden_states: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        # Here, offloading has moved weights and input already, and it does not matter how the model was loaded.
        if torch.compiler.is_compiling():
            return super().forward(hidden_states, *arguments, **options)
        prepare_int8_kernel(self, hidden_states.device)
        # Triton starts its kernels on the current GPU; without one, this does nothing.
        with torch.cuda.device_of(hidden_states):
            return super().forward(hidden_states, *arguments, **options)

    def to(self, *arguments: Any, **options: Any) -> Any:
        """Move or cast like every model of diffusers, which refuses to cast quantized weights."""
        if options.get("dtype", self) is None:
            # save_lora_adapter asks for this dtype, and would be refused.
            del options["dtype"]
        return super().to(*arguments, **options)

    def enable_cache(self, config: Any) -> None:
        """Reuse what earlier steps computed, by one of diffusers' caches.

        Args:
            config: of the cache.

        Raises:
            ValueError: the cache cannot work with this model, or another one is enabled.
        """
        if isinstance(config, TextKVCacheConfig):
            raise ValueError("TextKVCacheConfig is for NucleusMoE-Image; it has no effect on the blocks of Lens")
        if isinstance(config, FasterCacheConfig) and not config.is_guidance_distilled:
            raise ValueError(
                "FasterCacheConfig: the unconditional branch of Lens cannot be approximated, because its latents are "
                "rows of tokens and not images; pass is_guidance_distilled=True to cache attention only"
            )
        if isinstance(config, SeaCacheConfig) and config.raw_vision_callback is None:
            config = replace(config, raw_vision_callback=_latent_images)
        super().enable_cache(config)

    def load_lora_adapter(self, source: Any, prefix: str | None = "transformer", **options: Any) -> None:
        """Load a LoRA adapter, in the naming scheme of PEFT, diffusers or others.

        Args:
            source: a folder, a Hub repo, or a state dict.
            prefix: for compatibility with diffusers; all known prefixes are removed.
            options: those of ``PeftAdapterMixin.load_lora_adapter``.

        Raises:
            ValueError: the adapter is for modules that this model does not have.
        """
        located = {
            key: options.pop(key)
            for key in (*HUB_OPTIONS, "proxies", "use_safetensors", "weight_name")
            if key in options
        }
        state, metadata = LensLoraLoaderMixin.lora_state_dict(source, return_lora_metadata=True, **located)
        metadata = options.pop("metadata", None) or metadata
        names = (name.replace(".base_layer", "") for name, _ in self.named_modules())
        state, metadata = normalize_adapter(state, metadata, names)
        # PEFT cannot infer the dtype of the computation from packed weights.
        state = {name: tensor.to(self.dtype) for name, tensor in state.items()}
        # Without this, PEFT creates its parameters in float32, and keeps that dtype.
        options.setdefault("low_cpu_mem_usage", True)
        super().load_lora_adapter(state, prefix=None, metadata=metadata, **options)

    def fuse_lora(self, *arguments: Any, **options: Any) -> None:
        """Merge loaded adapters into the weights.

        Raises:
            ValueError: the weights are quantized.
        """
        if quantized_layers(self):
            raise ValueError("an adapter cannot be merged into quantized weights; use it without fuse_lora")
        super().fuse_lora(*arguments, **options)


def _latent_images(_model: Any, _positional: Any, arguments: dict[str, Any]) -> list[torch.Tensor]:
    """The latents of each image, ``[channels, 1, height, width]``, from the arguments of the forward pass."""
    images = arguments["hidden_states"].transpose(1, 2).unflatten(2, arguments["img_shapes"][0])
    return list(images.unbind())


# First-block caching and similar hooks find the two streams in the result of a block with this; skipped attention
# returns both as they came.
TransformerBlockRegistry.register(
    modules.LensTransformerBlock,
    TransformerBlockMetadata(return_hidden_states_index=1, return_encoder_hidden_states_index=0),
)
AttentionProcessorRegistry.register(
    attention.LensAttnProcessor,
    AttentionProcessorMetadata(
        lambda _attn, hidden_states, encoder_hidden_states, *_: (hidden_states, encoder_hidden_states)
    ),
)
