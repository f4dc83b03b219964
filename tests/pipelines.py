"""Tiny pipelines with several components that can be quantized."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from converter import VerifyReport
from tests.tiny_models import DIFFUSERS, WEIGHTS, save_model

#: The components of ``make_several`` that are converted, and their classes.
CONVERTED = {
    "transformer": "FluxTransformer2DModel",
    "transformer_2": "FluxTransformer2DModel",
    "text_encoder": "CLIPTextModel",
    "text_encoder_2": "T5EncoderModel",
}
NAMES = tuple(CONVERTED)
#: A tensor of the text encoder that stays as it is.
CLIP_NORM = "final_layer_norm.bias"
#: Arguments that make its models smaller still.
SMALL: dict[str, dict[str, Any]] = {
    "FluxTransformer2DModel": {"num_layers": 1, "num_single_layers": 1},
    "CLIPTextModel": {"num_hidden_layers": 1},
    "T5EncoderModel": {"num_layers": 1},
}


def make_several(folder: Path) -> Path:
    """A pipeline with two denoisers of one class, two text encoders, and an autoencoder; encoders come first."""
    index: dict[str, Any] = {"_class_name": "FluxPipeline"}
    for name, class_name in sorted([*CONVERTED.items(), ("vae", "AutoencoderKL")]):
        save_model(folder / name, class_name, **SMALL.get(class_name, {}))
        index[name] = ["diffusers" if class_name in DIFFUSERS else "transformers", class_name]
    # The same names as in the first denoiser, and other numbers.
    other = {name: 3 * tensor.flip(0) for name, tensor in load_file(folder / "transformer" / WEIGHTS).items()}
    save_file(other, folder / "transformer_2" / WEIGHTS, metadata={"format": "pt"})
    (folder / "model_index.json").write_text(json.dumps(index))
    for file in folder.rglob("*.*"):
        # safetensors leaves 0600, which a release could not share.
        file.chmod(0o644)
    return folder


def spoil(file: Path, name: str) -> None:
    """Make a number of a tensor NaN."""
    tensors = load_file(file)
    tensors[name].view(-1)[0] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})


def titles(report: VerifyReport) -> dict[str, str]:
    """Failed checks: what people see of them."""
    return {check.title: check.detail for check in report.checks if not check.ok}
