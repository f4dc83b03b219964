"""A tiny Stable Diffusion with random weights, as diffusers saves it: with a safety checker, which no preset has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

#: Width of the text encoder and of both towers of the safety checker.
_WIDTH = 32
_SMALL = {
    "hidden_size": _WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": _WIDTH,
}


def save_stable_diffusion(folder: Path, *, checks: bool = True, blocks_all: bool = False, **changes: Any) -> Path:
    """Write it; returns the folder.

    Args:
        folder: to be made.
        checks: whether it has a safety checker; else that is null.
        blocks_all: whether the checker finds something in every image; else in none.
        changes: of the constructor's arguments.
    """
    import diffusers

    torch.manual_seed(0)
    text_encoder, tokenizer = _text_encoder()
    pipeline = diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(
            block_out_channels=[32, 32],
            down_block_types=["DownEncoderBlock2D"] * 2,
            up_block_types=["UpDecoderBlock2D"] * 2,
            latent_channels=4,
            sample_size=64,
        ),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=diffusers.UNet2DConditionModel(
            block_out_channels=[32, 64],
            layers_per_block=1,
            sample_size=32,
            down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
            up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
            cross_attention_dim=_WIDTH,
            attention_head_dim=[2, 4],
        ),
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=_safety_checker(blocks_all=blocks_all) if checks else None,
        feature_extractor=_feature_extractor() if checks else None,
        requires_safety_checker=checks,
        **changes,
    )
    pipeline.save_pretrained(folder)
    return folder


def _text_encoder() -> tuple[Any, Any]:
    from tokenizers import pre_tokenizers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], pad_token="<|endoftext|>", model_max_length=77)  # noqa: S106
    last = len(tokens) - 1
    config = CLIPTextConfig(
        **_SMALL, vocab_size=len(tokens), bos_token_id=last - 1, eos_token_id=last, pad_token_id=last
    )
    return CLIPTextModel(config), tokenizer


def _safety_checker(*, blocks_all: bool) -> Any:
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig

    vision = {**_SMALL, "image_size": 32, "patch_size": 8}
    checker = StableDiffusionSafetyChecker(CLIPConfig(text_config=_SMALL, vision_config=vision, projection_dim=_WIDTH))
    # An image is blocked where its likeness to a concept is above that concept's weight, from -1 to 1.
    for weights in (checker.concept_embeds_weights, checker.special_care_embeds_weights):
        weights.data.fill_(-2.0 if blocks_all else 2.0)
    return checker


def _feature_extractor() -> Any:
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
