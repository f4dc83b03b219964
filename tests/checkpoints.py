"""Quantized checkpoints that are damaged or written by hand, for the tests of verification."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from converter.checkpoint.dtypes import BITS
from converter.checkpoint.header import TensorEntry, encode_header
from converter.verification.report import VerifyReport

WEIGHTS = "diffusion_pytorch_model.safetensors"
BLOCK = "transformer_blocks.0"
QKV, MOD, OUT = f"{BLOCK}.attn.img_qkv", f"{BLOCK}.img_mod.1", f"{BLOCK}.attn.to_out.0"

Damage = Callable[[Path, dict[str, torch.Tensor]], None]


def failed(report: VerifyReport) -> dict[str, str]:
    return {check.name: check.detail for check in report.checks if not check.ok}


def rewrite(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, folder / WEIGHTS, metadata={"format": "pt"})


def change_config(*names: str, **changes: Any) -> Damage:
    """Change the quantization config in files of these names; by default both copies."""

    def damage(folder: Path, _: dict[str, torch.Tensor]) -> None:
        for name in names or ("config.json", "quantization_config.json"):
            content = json.loads((folder / name).read_text())
            (content if name.startswith("quant") else content["quantization_config"]).update(changes)
            (folder / name).write_text(json.dumps(content))

    return damage


def change_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    def damage(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
        change(tensors)
        rewrite(folder, tensors)

    return damage


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = folder / "lensconv_manifest.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def write_checkpoint(folder: Path, tensors: dict[str, torch.Tensor], class_name: str, **options: Any) -> Path:
    """A checkpoint of any class, with both copies of the quantization config."""
    folder.mkdir()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    quantization = {"quant_method": "sdnq", "weights_dtype": "int8", "sdnq_version": "0.2.8", **options}
    (folder / "quantization_config.json").write_text(json.dumps(quantization))
    (folder / "config.json").write_text(json.dumps({"_class_name": class_name, "quantization_config": quantization}))
    return folder


def write_holes(file: Path, tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> None:
    """Write a safetensors file of these dtypes, names and shapes that takes no space: its weights are holes."""
    entries, position = [], 0
    for dtype, name, shape in tensors:
        size = math.prod(shape) * BITS[dtype] // 8
        entries.append(TensorEntry(name, dtype, shape, position, position + size))
        position += size
    with file.open("wb") as stream:
        start = stream.write(encode_header(entries, {"format": "pt"}))
        stream.truncate(start + position)


LINEAR = {"a.weight": torch.zeros(64, 64, dtype=torch.int8), "a.scale": torch.ones(64, 1)}
