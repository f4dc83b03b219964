"""A complete Lens pipeline small enough for a CPU: the layout and every config of microsoft/Lens, in small numbers.

As in microsoft/Lens are the scheduler, the layers that are read from the text encoder, its chat format with 97 tokens
before a prompt, the latent channels and patches, and the transformer's head size; widths and depths are smaller.
"""

from __future__ import annotations

import json
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

from converter.checkpoint.layout import TensorSpec
from converter.checkpoint.source import PIPELINE_INDEX
from converter.models.lens.layout import LensConfig
from converter.synthesis.models import ModelKind, model_tensors

#: The version of diffusers that microsoft/Lens was saved with; part of its configs.
DIFFUSERS_VERSION = "0.37.1"
#: Wide enough for SDNQ to quantize what it quantizes in the real model; widths and hidden widths are multiples of a
#: group.
TRANSFORMER = LensConfig(num_layers=4, num_attention_heads=3, inner_dim=192, enc_hidden_dim=64)
TEXT_ENCODER = ModelKind("transformers", "GptOssForCausalLM")
AUTOENCODER = ModelKind("diffusers", "AutoencoderKLFlux2")


def read_config(name: str) -> dict[str, Any]:
    """Read one of the configs that ship with lensconv, by the name of its file without the suffix."""
    file = resources.files(__package__).joinpath("configs", f"{name}.json")
    config: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return config


def vae_weights(config: dict[str, Any] | None = None) -> tuple[tuple[TensorSpec, ...], dict[str, Any]]:
    """Tensors of the autoencoder in F32, and its config.

    Args:
        config: that of the tiny pipeline by default.
    """
    config = config or read_config("vae_config")
    return model_tensors(AUTOENCODER, config, "F32"), config


def text_encoder_weights(tokenizer: Any) -> tuple[tuple[TensorSpec, ...], dict[str, Any]]:
    """Tensors of the text encoder in BF16, and its config.

    Args:
        tokenizer: whose vocabulary it has.
    """
    config = {
        **read_config("text_encoder_config"),
        "hidden_size": TRANSFORMER.enc_hidden_dim,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "vocab_size": len(tokenizer),
    }
    return model_tensors(TEXT_ENCODER, config, "BF16"), config


def small_files(tokenizer: Any) -> dict[str, bytes]:
    """All files of the pipeline except weights and the configs next to them, by path.

    Args:
        tokenizer: to be saved.
    """
    generation = {
        "bos_token_id": tokenizer.bos_token_id,
        "do_sample": True,
        "eos_token_id": [tokenizer.eos_token_id],
        "pad_token_id": tokenizer.pad_token_id,
    }
    files = {
        PIPELINE_INDEX: read_config("model_index"),
        "scheduler/scheduler_config.json": read_config("scheduler_config"),
        "text_encoder/generation_config.json": generation,
    }
    found = {name: (json.dumps(content, indent=2) + "\n").encode() for name, content in files.items()}
    return found | tokenizer_files(tokenizer, "tokenizer")


def tokenizer_files(tokenizer: Any, folder: str) -> dict[str, bytes]:
    """The files of a tokenizer by their paths.

    Args:
        tokenizer: to be saved.
        folder: of the component.
    """
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer.save_pretrained(scratch)
        return {f"{folder}/{file.name}": file.read_bytes() for file in sorted(Path(scratch).iterdir())}
