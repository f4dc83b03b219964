"""What the transformer is trained on: latents of pictures and features of their prompts, computed once."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import torch
from diffusers import AutoencoderKLFlux2

from converter.models.lens.features import PromptFeatures, encode_prompts
from scripts.signs.autoencoder import encode_signs
from scripts.signs.pictures import picture_batch
from scripts.signs.vocabulary import Sign, training_sign

#: Prompts that are encoded together.
_BATCH = 50
#: The features of a prompt depend on the date before it, so that training sees different ones.
_FIRST_DAY, _DAYS = date(2025, 1, 1), 3650


@dataclass(frozen=True)
class Examples:
    """Pictures and prompts for training."""

    latents: torch.Tensor
    """Normalised, float32 ``[examples, 64, 128]``."""
    embeds: torch.Tensor
    """Of the selected layers of the text encoder, bfloat16 ``[layers, examples, tokens, 64]``."""
    mask: torch.Tensor
    """bool ``[examples, tokens]``, true where a token counts."""


def make_examples(
    count: int, seed: int, autoencoder: AutoencoderKLFlux2, tokenizer: Any, text_encoder: Any, device: torch.device
) -> Examples:
    """Draw signs, and compute what training needs of them.

    Args:
        count: how many signs.
        seed: of the signs.
        autoencoder: whose latents are learned.
        tokenizer: of the pipeline.
        text_encoder: of the pipeline, with its layers selected.
        device: where the models are, and the examples go.
    """
    rng = random.Random(f"{seed} examples")  # noqa: S311 - pictures, not secrets
    signs = [training_sign(rng) for _ in range(count)]
    latents, features = [], []
    for first in range(0, count, _BATCH):
        part = signs[first : first + _BATCH]
        latents.append(encode_signs(autoencoder, picture_batch(part, device)))
        day = _FIRST_DAY + timedelta(rng.randrange(_DAYS))
        features.append(_encode(part, day, tokenizer, text_encoder, device))
    tokens = max(part.tokens for part in features)
    padded = [part.padded(tokens) for part in features]
    embeds = torch.stack([torch.cat([part.embeds[layer] for part in padded]) for layer in range(len(padded[0].embeds))])
    return Examples(torch.cat(latents), embeds, torch.cat([part.mask for part in padded]))


def _encode(
    signs: Sequence[Sign], day: date, tokenizer: Any, text_encoder: Any, device: torch.device
) -> PromptFeatures:
    found = encode_prompts(tokenizer, text_encoder, [sign.prompt for sign in signs], day=day, device=device)
    return found.to(device, torch.bfloat16)
