"""Joint attention of the image and the text stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.normalization import RMSNorm
from torch import nn
from torch.nn.functional import pad

from converter.models.lens.int8_rows import Int8Rows, apply_module
from converter.models.lens.quantized import apply_to_full_rows
from converter.models.lens.rotary import rotate

#: Epsilon of the norms of queries and keys; upstream's block overrides its attention's default of 1e-5.
NORM_EPSILON = 1e-6
#: For each run of neighbouring samples with equally many text tokens: how many samples, and how many tokens of each.
TextRuns = tuple[tuple[int, int], ...]


def drop_padding(
    features: Sequence[torch.Tensor], lengths: Sequence[int]
) -> tuple[list[torch.Tensor], TextRuns | None]:
    """Drop what counts in no sample: tokens behind the longest text, and rows behind the last sample with tokens.

    Args:
        features: for each selected layer of the encoder ``[batch, text tokens, enc_hidden_dim]``.
        lengths: how many of a sample's first text tokens count.

    Returns:
        The features, with fewer rows and tokens, and the runs of samples; None where one run has all samples.
    """
    rows = 0
    runs: list[tuple[int, int]] = []
    for index, length in enumerate(lengths):
        if length:
            rows = index + 1
        if runs and runs[-1][1] == length:
            runs[-1] = (runs[-1][0] + 1, length)
        else:
            runs.append((1, length))
    return [feature[:rows, : max(lengths)] for feature in features], tuple(runs) if len(runs) > 1 else None


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
        text_runs: TextRuns | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attend; arguments and results are those of ``LensAttention.forward``."""
        (batch, image_tokens), text_tokens = hidden_states.shape[:2], encoder_hidden_states.shape[1]
        runs = text_runs or ((batch, text_tokens),)
        projected = _project(attn, hidden_states, encoder_hidden_states, runs)
        images, texts = [], []
        for _, tokens in runs:
            # Taken out of the list, so that memory is free again as soon as possible.
            attended = self._attend(projected.pop(0), rotary[: image_tokens + tokens], attention_mask)
            image, text = attended.to(hidden_states.dtype).split((image_tokens, tokens), dim=1)
            images.append(image)
            texts.append(_pad(text, text_tokens - tokens))
        image = attn.to_out[0](_join(images))
        if not text_tokens:
            return image, encoder_hidden_states
        with_text = len(encoder_hidden_states)
        text = apply_to_full_rows(attn.to_add_out, _join(texts)[:with_text])
        # Caches of diffusers expect a row for each sample.
        return image, _pad(text, 0, batch - with_text)

    def _attend(
        self, projected: Sequence[torch.Tensor], rotary: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Rotate and attend; return ``[samples, tokens, width]``."""
        query, key, value = projected
        attended: torch.Tensor = dispatch_attention_fn(
            rotate(query, rotary),
            rotate(key, rotary),
            value,
            attn_mask=mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        return attended.flatten(2, 3)


def _project(attn: LensAttention, image: torch.Tensor, text: torch.Tensor, runs: TextRuns) -> list[list[torch.Tensor]]:
    """Compute queries, keys and values of each run, those of the image before those of the text."""
    of_image = attn.project_image(image)
    of_text = attn.project_text(text) if text.shape[1] else ()
    projected, first = [], 0
    for samples, tokens in runs:
        rows = slice(first, first + samples)
        first += samples
        parts = [part[rows] for part in of_image]
        if tokens:
            others = [part[rows, :tokens] for part in of_text]
            parts = [torch.cat(pair, dim=1) for pair in zip(parts, others, strict=True)]
        projected.append(parts)
    return projected


def _pad(states: torch.Tensor, tokens: int, samples: int = 0) -> torch.Tensor:
    """Append tokens and samples of zeros, which nobody reads."""
    return pad(states, (0, 0, 0, tokens, 0, samples)) if tokens or samples else states


def _join(runs: list[torch.Tensor]) -> torch.Tensor:
    """Join the samples of all runs; a single run is not copied."""
    return torch.cat(runs) if len(runs) > 1 else runs[0]


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

    def project_image(self, states: torch.Tensor | Int8Rows) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute normed queries, normed keys and values of the image, ``[batch, tokens, heads, head_width]`` each."""
        query, key, value = apply_module(self.img_qkv, states).unflatten(-1, (3, self.heads, -1)).unbind(2)
        return self.norm_q(query), self.norm_k(key), value

    def project_text(self, states: torch.Tensor | Int8Rows) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute the same for the text stream."""
        query, key, value = apply_to_full_rows(self.txt_qkv, states).unflatten(-1, (3, self.heads, -1)).unbind(2)
        return self.norm_added_q(query), self.norm_added_k(key), value

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        rotary: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        text_runs: TextRuns | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attend.

        Args:
            hidden_states: image stream, ``[batch, image tokens, width]``.
            encoder_hidden_states: text stream, ``[samples, text tokens, width]``; there may be no tokens, and with
                ``text_runs`` fewer samples than in the batch, where the last ones have no text.
            rotary: from ``rotations``, for image and text tokens.
            attention_mask: bool, ``[batch, 1, 1, image and text tokens]``, true where a key counts; None when all do.
            text_runs: from ``drop_padding``. Each run attends by itself, without a mask, to its own tokens.

        Returns:
            Both streams, in the same order and shapes, but text of the whole batch, if there is any.
        """
        # Processors that others wrote may not know the runs.
        runs = () if text_runs is None else (text_runs,)
        attended: tuple[torch.Tensor, torch.Tensor] = self.processor(
            self, hidden_states, encoder_hidden_states, rotary, attention_mask, *runs
        )
        return attended
