"""What a component of a pipeline is for, by its name and its class; nothing is imported."""

from __future__ import annotations

import re

#: Roles by what the classes of diffusers and transformers, and the components that have them, are called; the first
#: match counts. A class says more than the name of a component.
_CLASSES = (
    ("autoencoder", re.compile(r"Autoencoder|VQModel|PaellaVQ|Vocoder|VQDiffusion")),
    ("adapter", re.compile(r"ControlNet|Adapter|Lora", re.IGNORECASE)),
    ("safety checker", re.compile(r"SafetyChecker|Watermark")),
    ("image encoder", re.compile(r"CLIPVision|Siglip|Dinov|ImageProjection")),
    ("denoiser", re.compile(r"Transformer\w*Model$|Transformer(2D|3D)?$|Transformer\dD\w*$|UNet|PriorTransformer")),
)
_NAMES = (
    ("text encoder", re.compile(r".*(text_encoder|mllm|language|prompt_enhancer).*")),
    ("image encoder", re.compile(r".*(image_encoder|feature_extractor).*")),
    ("denoiser", re.compile(r"(transformer|unet|prior|decoder)(_\d+)?")),
)


def role(name: str, class_name: str) -> str:
    """The role of a component.

    Args:
        name: of the component in ``model_index.json``.
        class_name: of its class.

    Returns:
        ``denoiser``, ``text encoder``, ``image encoder``, ``autoencoder``, ``adapter``, ``safety checker`` or
        ``other``.
    """
    if re.fullmatch(r"text_encoder(_\d+)?", name):
        return "text encoder"
    for found, pattern in _CLASSES:
        if pattern.search(class_name):
            return found
    return next((found for found, pattern in _NAMES if pattern.fullmatch(name)), "other")
