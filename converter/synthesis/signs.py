"""A small Lens pipeline that draws pictures of signs: trained weights that ship with lensconv.

``scripts/train_signs`` makes them. Transformer and autoencoder are stored in bfloat16, in one file. The text encoder is
that of the tiny pipeline, whose random weights follow from a seed; the transformer was trained with its features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from typing import Any

from converter.libraries import load_library
from converter.synthesis.tiny import TRANSFORMER as TINY_TRANSFORMER
from converter.synthesis.tiny import read_config

#: The file in the package, and the prefixes of the components' tensors in it.
WEIGHTS = "trained/signs.safetensors"
PREFIXES = {"transformer/": "transformer.", "vae/": "vae."}
#: Seed of the text encoder.
TEXT_ENCODER_SEED = 0
#: As wide as fits into the package; wide enough for SDNQ to quantize what it quantizes in the real model.
TRANSFORMER = replace(TINY_TRANSFORMER, num_attention_heads=2, inner_dim=128)


def vae_config() -> dict[str, Any]:
    """Config of the autoencoder: that of the tiny one, with a wider decoder and 128 pixels per side."""
    return {**read_config("vae_config"), "decoder_block_out_channels": [16, 16, 32, 48], "sample_size": 128}


def read_weights(folder: str) -> Mapping[str, Any]:
    """The trained tensors of a component by name, NumPy arrays in float32.

    Args:
        folder: a key of ``PREFIXES``.
    """
    prefix = PREFIXES[folder]
    data = resources.files(__package__).joinpath(WEIGHTS).read_bytes()
    tensors = load_library("safetensors.torch").load(data)
    found = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return {name.removeprefix(prefix): tensor.float().numpy() for name, tensor in found.items()}
