"""Prompt features: the transformer's input for prompts, as one value that can be stored in a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import torch
from torch.nn.functional import pad

from converter.models.lens.prompts import MAXIMUM_TOKENS, PREFIX_TOKENS, tokenize_prompts


@dataclass(frozen=True)
class PromptFeatures:
    """Features of a batch of prompts."""

    embeds: tuple[torch.Tensor, ...]
    """For each selected layer of the encoder, ``[batch, tokens, hidden_size]``."""
    mask: torch.Tensor
    """bool, ``[batch, tokens]``, true where a token counts."""

    @property
    def batch(self) -> int:
        """Number of prompts, or of images once they are repeated."""
        return len(self.mask)

    @property
    def tokens(self) -> int:
        """Number of tokens to which all prompts are padded."""
        return int(self.mask.shape[1])

    def to(self, device: torch.device, dtype: torch.dtype | None) -> PromptFeatures:
        """Return the features on a device and in a dtype; None keeps theirs."""
        return PromptFeatures(tuple(embed.to(device, dtype) for embed in self.embeds), self.mask.to(device))

    def repeat(self, times: int) -> PromptFeatures:
        """Repeat each prompt ``times`` times; repetitions are adjacent."""
        if times == 1:
            return self
        embeds = tuple(embed.repeat_interleave(times, dim=0) for embed in self.embeds)
        return PromptFeatures(embeds, self.mask.repeat_interleave(times, dim=0))

    def blank(self) -> PromptFeatures:
        """Return features of the same shape that are masked everywhere, so that the transformer gets only the image."""
        return PromptFeatures(tuple(map(torch.zeros_like, self.embeds)), torch.zeros_like(self.mask))

    def padded(self, tokens: int) -> PromptFeatures:
        """Pad on the right, with zeros that are masked."""
        more = tokens - self.tokens
        return PromptFeatures(tuple(pad(embed, (0, 0, 0, more)) for embed in self.embeds), pad(self.mask, (0, more)))


def join_features(first: PromptFeatures, second: PromptFeatures) -> tuple[PromptFeatures, PromptFeatures]:
    """Pad two batches to one length."""
    tokens = max(first.tokens, second.tokens)
    return first.padded(tokens), second.padded(tokens)


def text_lengths(mask: torch.Tensor) -> list[int | None]:
    """Count the tokens of each row of a mask; None for a row in which other tokens than the first ones count.

    A GPU is waited for once.
    """
    lengths: list[int | None] = []
    for row in mask.tolist():
        length = sum(row)
        lengths.append(length if all(row[:length]) else None)
    return lengths


def encode_prompts(
    tokenizer: Any,
    text_encoder: Any,
    prompts: Sequence[str],
    *,
    maximum: int = MAXIMUM_TOKENS,
    day: date | None = None,
    device: torch.device | None = None,
) -> PromptFeatures:
    """Encode prompts with the text encoder.

    Args:
        tokenizer: with GPT-OSS' chat template.
        text_encoder: whose layers are selected.
        prompts: what the images show.
        maximum: maximum number of tokens, including the 97 before the prompt.
        day: the date in the conversation; the current one by default.
        device: where the encoder runs.
    """
    ids, mask = tokenize_prompts(tokenizer, prompts, maximum=maximum, day=day)
    with torch.no_grad():
        embeds = text_encoder(input_ids=ids.to(device), attention_mask=mask.to(device))
    return PromptFeatures(
        tuple(embed[:, PREFIX_TOKENS:] for embed in embeds), mask[:, PREFIX_TOKENS:].to(embeds[0].device).bool()
    )
