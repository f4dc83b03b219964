"""Roles: what the components of a pipeline do, from their names and classes; nothing is imported."""

from __future__ import annotations

import re
from typing import Literal

Role = Literal["denoiser", "text encoder", "image encoder", "autoencoder", "safety checker", "adapter", "other"]

#: Classes by role, as the pipelines of diffusers 0.42 name them. The first match counts: a ControlNet of a transformer
#: is an adapter, and an autoencoder with a transformer is an autoencoder.
_CLASSES: tuple[tuple[Role, re.Pattern[str]], ...] = (
    ("safety checker", re.compile(r"SafetyChecker")),
    ("adapter", re.compile(r"(?<!UNet)ControlNet|Adapter")),
    (
        "other",
        re.compile(
            r"Scheduler|Tokenizer|Processor|FeatureExtractor|Vocoder|HifiGan|Watermark|Upsampler|Upscaler|Guidance"
            r"|Connectors|Detokenizer|Renderer|Normalizer|Head$|DurationEmbedder|DepthEstimation|TextDecoder"
        ),
    ),
    ("autoencoder", re.compile(r"Autoencoder|VQModel|VQGAN|VAE$|Vae$")),
    ("image encoder", re.compile(r"Vision(?!2Seq)|^Siglip|ImageEncoder|ImageProjection|QFormer")),
    (
        "denoiser",
        re.compile(
            r"UNet|Transformer\dD|OmniTransformer|Transformer$|HunyuanDiT2D|DiffNeXt|PriorTransformer"
            r"|^WuerstchenPrior$|^UniDiffuserModel$|^CosmosTransformer"
        ),
    ),
)
#: Names that say more than a class: a vision model that reads prompts is a text encoder.
_TEXT_ENCODER = re.compile(r"(\w+_)?text_encoder(_\d+)?|vision_language_encoder")
#: Components by role where the class does not tell, such as a language model that encodes prompts.
_NAMES: tuple[tuple[Role, re.Pattern[str]], ...] = (
    ("safety checker", re.compile(r"safety_checker")),
    ("adapter", re.compile(r"controlnet|adapter")),
    ("other", re.compile(r"scheduler|tokenizer|processor|feature_extractor|decoder$")),
    ("image encoder", re.compile(r"image_encoder|siglip")),
    ("text encoder", re.compile(r"condition_encoder|^bert$|mllm|language_model|prompt_enhancer|^pe$")),
    ("denoiser", re.compile(r"transformer|unet|^prior$")),
    ("autoencoder", re.compile(r"vae|vqgan|movq")),
)


def role(name: str, class_name: str) -> Role:
    """What a component of a pipeline does.

    Args:
        name: as in ``model_index.json``.
        class_name: likewise.
    """
    if _TEXT_ENCODER.fullmatch(name):
        return "text encoder"
    for rules, text in ((_CLASSES, class_name), (_NAMES, name)):
        for found, pattern in rules:
            if pattern.search(text):
                return found
    return "other"
