"""Small images and editable repos, for tests of ``lensconv generate``."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.conftest import Lensconv, Outcome, edit_json
from tests.lens.prompts import MXFP4, pack_experts

#: Small and few, so that an image takes a tenth of a second.
SMALL = ("--height", 64, "--width", 96, "--steps", 2)


def draw(lensconv: Lensconv, repo: Path | str, output: Path, *options: object, prompt: str = "a red cube") -> Outcome:
    return lensconv("generate", repo, "--prompt", prompt, "--out", output, *SMALL, *options, "--json")


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image).astype(int)


def editable(repo: Path, folder: Path) -> Path:
    """A copy whose files may be changed."""
    return Path(shutil.copytree(repo, folder / "repo"))


def change_tensors(file: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def packed(repo: Path, folder: Path) -> Path:
    """A copy whose text encoder has its experts in MXFP4."""
    encoder = editable(repo, folder) / "text_encoder"
    tensors, _ = pack_experts(load_file(encoder / "model.safetensors"))
    save_file(tensors, encoder / "model.safetensors", metadata={"format": "pt"})
    edit_json(encoder / "config.json", quantization_config=MXFP4)
    return encoder.parent
