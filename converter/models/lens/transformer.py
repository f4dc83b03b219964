"""The Lens transformer with all that models of diffusers can do: adapters, quantized checkpoints, caching."""

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
        """Load as every model of diffusers; of an SDNQ checkpoint, apply the serialized quantized matmul as well."""
        loaded = super().from_pretrained(*arguments, **options)
        apply_serialized_matmul(loaded[0] if isinstance(loaded, tuple) else loaded)
        return loaded

    def load_lora_adapter(self, source: Any, prefix: str | None = "transformer", **options: Any) -> None:
        """Load a LoRA adapter, in PEFT's spelling or diffusers'.

        Args:
            source: a folder, a Hub repo, or a state dict.
            prefix: for diffusers; every prefix that is in use is taken off.
            options: of ``PeftAdapterMixin.load_lora_adapter``.

        Raises:
            ValueError: the adapter is for modules that this model does not have.
        """
        located = {key: options.pop(key) for key in (*HUB_OPTIONS, "proxies", "weight_name") if key in options}
        state, metadata = LensLoraLoaderMixin.lora_state_dict(source, return_lora_metadata=True, **located)
        metadata = options.pop("metadata", None) or metadata
        names = (name.replace(".base_layer", "") for name, _ in self.named_modules())
        state, metadata = normalize_adapter(state, metadata, names)
        # Next to packed weights PEFT cannot tell the dtype to compute in.
        state = {name: tensor.to(self.dtype) for name, tensor in state.items()}
        # Otherwise PEFT makes its parameters float32 first, and keeps that.
        options.setdefault("low_cpu_mem_usage", True)
        super().load_lora_adapter(state, prefix=None, metadata=metadata, **options)

    def fuse_lora(self, *arguments: Any, **options: Any) -> None:
        """Merge loaded adapters into the weights.

        Raises:
            ValueError: the weights are quantized.
        """
        if quantized_layers(self):
            raise ValueError("an adapter cannot be merged into quantized weights; it works as it is, without fuse_lora")
        super().fuse_lora(*arguments, **options)


# First-block caching and its kin find the two streams in what a block returns by this.
TransformerBlockRegistry.register(
    modules.LensTransformerBlock,
    TransformerBlockMetadata(return_hidden_states_index=1, return_encoder_hidden_states_index=0),
)
