"""The Lens transformer with the features of diffusers' models: adapters, quantized checkpoints, caching."""

from __future__ import annotations

from typing import Any

from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.loaders import PeftAdapterMixin

from converter.models.lens import modules
from converter.models.lens.adapters import HUB_OPTIONS, LensLoraLoaderMixin, normalize_adapter
from converter.models.lens.quantized import apply_serialized_matmul, quantized_layers


class LensTransformer2DModel(modules.LensTransformer2DModel, PeftAdapterMixin):
    """The denoiser of Lens; see ``converter.models.lens.modules`` for its arguments and its forward pass."""

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> Any:
        """Load like every model of diffusers; apply the quantized matmul that an SDNQ checkpoint asks for."""
        loaded = super().from_pretrained(*arguments, **options)
        apply_serialized_matmul(loaded[0] if isinstance(loaded, tuple) else loaded)
        return loaded

    def load_lora_adapter(self, source: Any, prefix: str | None = "transformer", **options: Any) -> None:
        """Load a LoRA adapter, in the naming scheme of PEFT, diffusers or others.

        Args:
            source: a folder, a Hub repo, or a state dict.
            prefix: for compatibility with diffusers; all known prefixes are removed.
            options: those of ``PeftAdapterMixin.load_lora_adapter``.

        Raises:
            ValueError: the adapter is for modules that this model does not have.
        """
        located = {key: options.pop(key) for key in (*HUB_OPTIONS, "proxies", "weight_name") if key in options}
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


# First-block caching and similar hooks find the two streams in the result of a block with this.
TransformerBlockRegistry.register(
    modules.LensTransformerBlock,
    TransformerBlockMetadata(return_hidden_states_index=1, return_encoder_hidden_states_index=0),
)
