"""The text encoder of Lens: GPT-OSS, whose inner layers give the features.

The transformer gets the residual stream after a few selected layers, before any final norm, and not the last hidden
state. The layers after the last selected one, the final norm and the head do not run.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import wraps
from typing import Any

import torch
from transformers import GptOssForCausalLM, Mxfp4Config
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from converter.models.lens.mxfp4 import kernel_from_cache, unpacking_notice

logger = logging.getLogger(__name__)


class LensGptOssEncoder(GptOssForCausalLM):
    """GPT-OSS whose forward pass returns the features of an image prompt; it adds no weights.

    Checkpoints are those of ``GptOssForCausalLM``, dense or in MXFP4.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._lens_selected_layers: tuple[int, ...] | None = None

    @classmethod
    def from_pretrained(cls, name: Any, *arguments: Any, **options: Any) -> Any:
        """Load like every model of transformers; warn before MXFP4 weights are unpacked to bfloat16.

        They stay packed only if the kernel for them is in the cache of this machine; it is never downloaded.
        """
        notice = unpacking_notice(name, options)
        if notice:
            logger.warning(notice)
            options["quantization_config"] = Mxfp4Config(dequantize=True)
        with kernel_from_cache():
            return super().from_pretrained(name, *arguments, **options)

    # diffusers passes ``variant`` and ``max_shard_size`` on only where the signature has them.
    @wraps(GptOssForCausalLM.save_pretrained, assigned=())
    def save_pretrained(self, save_directory: Any, *arguments: Any, **options: Any) -> None:
        """Save as ``GptOssForCausalLM``, which has the same weights and loads in any installation."""
        if getattr(self.config, "quantization_config", None) is None:
            # Unpacked experts would be saved under the names of packed ones, and would not load again.
            options.setdefault("save_original_format", False)
        super().save_pretrained(save_directory, *arguments, **options)
        self.config.architectures = [GptOssForCausalLM.__name__]
        self.config.save_pretrained(save_directory)

    def set_selected_layers(self, indices: Sequence[int]) -> None:
        """Select the layers whose output is returned, counted from 0.

        Raises:
            ValueError: no indices were given, or one occurs twice or is out of range.
        """
        layers = self.config.num_hidden_layers
        selected = tuple(indices)
        if not selected or len(set(selected)) != len(selected) or not all(0 <= index < layers for index in selected):
            raise ValueError(f"selected layers {list(selected)} must be different numbers from 0 to {layers - 1}")
        self._lens_selected_layers = selected

    def encode_layers(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> list[torch.Tensor]:
        """Return the residual stream after each selected layer.

        Args:
            input_ids: int64, ``[batch, tokens]``, padded on the right.
            attention_mask: ``[batch, tokens]``, 0 where padded.

        Returns:
            For each selected layer, in the order of the selection, ``[batch, tokens, hidden_size]``.

        Raises:
            ValueError: no layers were selected.
        """
        if self._lens_selected_layers is None:
            raise ValueError("no layers are selected; call set_selected_layers first")
        model = self.model
        states = model.embed_tokens(input_ids)
        positions = torch.arange(input_ids.shape[1], device=states.device)[None]
        mask_options = {
            "config": model.config,
            "inputs_embeds": states,
            "attention_mask": attention_mask,
            "past_key_values": None,
        }
        masks = {
            "full_attention": create_causal_mask(**mask_options),
            "sliding_attention": create_sliding_window_causal_mask(**mask_options),
        }
        embeddings = model.rotary_emb(states, positions)
        outputs = {}
        for index, layer in enumerate(model.layers[: max(self._lens_selected_layers) + 1]):
            states = layer(
                states,
                attention_mask=masks[model.config.layer_types[index]],
                position_ids=positions,
                position_embeddings=embeddings,
            )
            if index in self._lens_selected_layers:
                outputs[index] = states
        return [outputs[index] for index in self._lens_selected_layers]

    def forward(self, input_ids: Any = None, attention_mask: Any = None, **options: Any) -> Any:
        """Return the features if called with ids and a mask only, else the result of ``GptOssForCausalLM``."""
        if self._lens_selected_layers is None or input_ids is None or attention_mask is None or options:
            return super().forward(input_ids=input_ids, attention_mask=attention_mask, **options)
        return self.encode_layers(input_ids, attention_mask)
