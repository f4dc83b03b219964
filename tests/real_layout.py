"""Repos of the real size: every tensor of microsoft/Lens by name, dtype and shape, in files whose weights are holes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate import init_empty_weights
from diffusers import AutoencoderKLFlux2
from transformers import GptOssConfig, GptOssForCausalLM

from converter.models.lens.layout import LensConfig, lens_tensors
from tests.checkpoints import write_holes
from tests.conftest import edit_json
from tests.generations import editable
from tests.lens.prompts import MXFP4, REAL_CONFIG

WEIGHTS = "diffusion_pytorch_model.safetensors"
#: Dtype, name and shape.
Tensors = list[tuple[str, str, tuple[int, ...]]]


def real_repo(tiny_repo: Path, folder: Path, *, quantized: bool = False) -> Path:
    """A pipeline of the published sizes: F32 or uint4 transformer, text encoder in MXFP4, autoencoder in F32."""
    repo = editable(tiny_repo, folder)
    edit_json(repo / "text_encoder" / "config.json", **REAL_CONFIG, quantization_config=MXFP4)
    write_holes(repo / "text_encoder" / "model.safetensors", [*_packed_encoder()])
    edit_json(repo / "vae" / "config.json", block_out_channels=[128, 256, 512, 512], layers_per_block=2)
    edit_json(repo / "vae" / "config.json", norm_num_groups=32, sample_size=1024)
    with init_empty_weights():
        vae = AutoencoderKLFlux2.from_config(AutoencoderKLFlux2.load_config(repo / "vae")).state_dict()
    write_holes(repo / "vae" / WEIGHTS, [("F32", name, tuple(tensor.shape)) for name, tensor in vae.items()])
    config = repo / "transformer" / "config.json"
    edit_json(config, **LensConfig().to_dict())
    tensors: Tensors = [("F32", name, shape) for name, shape in lens_tensors(LensConfig())]
    if quantized:
        edit_json(config, quantization_config={"quant_method": "sdnq", "weights_dtype": "uint4"})
        tensors = [stored for _, name, shape in tensors for stored in _quantized(name, shape)]
    write_holes(repo / "transformer" / WEIGHTS, tensors)
    return repo


def _packed_encoder() -> Iterator[tuple[str, str, tuple[int, ...]]]:
    with init_empty_weights():
        state = GptOssForCausalLM(GptOssConfig.from_dict(REAL_CONFIG)).state_dict()
    for name, tensor in state.items():
        shape: Any = tuple(tensor.shape)
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, inputs, outputs = shape
            yield "U8", f"{name}_blocks", (experts, outputs, inputs // 32, 16)
            yield "U8", f"{name}_scales", (experts, outputs, inputs // 32)
        else:
            yield "BF16", name, shape


def _quantized(name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """What the default recipe stores: codes of four bits, and a scale and a zero point for 64 of them."""
    if len(shape) != 2 or not name.startswith("transformer_blocks.") or "_mod." in name:
        yield "BF16", name, shape
        return
    yield "U8", name, (math.prod(shape) // 2,)
    for part in ("scale", "zero_point"):
        yield "BF16", f"{name.removesuffix('weight')}{part}", (math.prod(shape) // 64,)
