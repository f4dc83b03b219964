"""Small images and editable repos, for tests of ``lensconv generate``."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.conftest import Lensconv, Outcome

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
