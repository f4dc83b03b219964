"""Joint attention of the image and the text stream."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.normalization import RMSNorm
from torch import nn

from converter.models.lens.quantized import apply_to_full_rows
from converter.models.lens.rotary import rotate

#: Epsilon of the norms of queries and keys; upstream's block overrides its attention's default of 1e-5.
NORM_EPSILON = 1e-6


class LensAttnProcessor:
    """Projects both streams, attends over image tokens followed by text tokens, and splits the result again.

    diffusers chooses the backend, so ``model.set_attention_backend`` and ``attention_backend`` work.
    """

    _attention_backend: Any = None
    _parallel_config: Any = None

    def __call__(
        self,
        attn: LensAttention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        rotary: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attend; arguments and results are those of ``LensAttention.forward``."""
        image_tokens, text_tokens = hidden_states.shape[1], encoder_hidden_states.shape[1]
        query, key, value = attn.project_image(hidden_states)
        if text_tokens:
            text = attn.project_text(encoder_hidden_states)
            query, key, value = (torch.cat(pair, dim=1) for pair in zip((query, key, value), text, strict=True))
        attended = dispatch_attention_fn(
            rotate(query, rotary),
            rotate(key, rotary),
            value,
            attn_mask=attention_mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        attended = attended.flatten(2, 3).to(hidden_states.dtype)
        image, text = attended.split((image_tokens, text_tokens), dim=1)
        image = attn.to_out[0](image)
        return image, apply_to_full_rows(attn.to_add_out, text) if text_tokens else encoder_hidden_states


class LensAttention(nn.Module, AttentionModuleMixin):
    """Queries, keys and values of both streams in one attention.

    Args:
        heads: number of heads.
        head_width: channels of each head.
    """

    _default_processor_cls = LensAttnProcessor
    _available_processors = [LensAttnProcessor]
    _supports_qkv_fusion = False  # They are one projection already.
    is_cross_attention = False

    def __init__(self, heads: int, head_width: int) -> None:
        super().__init__()
        width = heads * head_width
        self.heads = heads
        self.norm_q = RMSNorm(head_width, eps=NORM_EPSILON)
        self.norm_k = RMSNorm(head_width, eps=NORM_EPSILON)
        self.norm_added_q = RMSNorm(head_width, eps=NORM_EPSILON)
        self.norm_added_k = RMSNorm(head_width, eps=NORM_EPSILON)
        self.img_qkv = nn.Linear(width, 3 * width)
        self.txt_qkv = nn.Linear(width, 3 * width)
        self.to_out = nn.ModuleList([nn.Linear(width, width), nn.Identity()])
        self.to_add_out = nn.Linear(width, width)
        self.set_processor(LensAttnProcessor())

    def project_image(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute normed queries, normed keys and values of the image, ``[batch, tokens, heads, head_width]`` each."""
        query, key, value = self.img_qkv(states).unflatten(-1, (3, self.heads, -1)).unbind(2)
        return self.norm_q(query), self.norm_k(key), value

    def project_text(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute the same for the text stream."""
        query, key, value = apply_to_full_rows(self.txt_qkv, states).unflatten(-1, (3, self.heads, -1)).unbind(2)
        return self.norm_added_q(query), self.norm_added_k(key), value

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        rotary: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attend.

        Args:
            hidden_states: image stream, ``[batch, image tokens, width]``.
            encoder_hidden_states: text stream, ``[batch, text tokens, width]``; there may be no tokens.
            rotary: from ``rotations``, for image and text tokens.
            attention_mask: bool, ``[batch, 1, 1, image and text tokens]``, true where a key counts; None when all do.

        Returns:
            Both streams, in the same order and shapes.
        """
        attended: tuple[torch.Tensor, torch.Tensor] = self.processor(
            self, hidden_states, encoder_hidden_states, rotary, attention_mask
        )
        return attended
