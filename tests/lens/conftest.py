"""Tiny pipelines for tests."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from converter import convert
from tests.lens.pipelines import CHANNELS, load


@pytest.fixture(scope="session")
def folder(tiny_repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline in float32."""
    folder = tmp_path_factory.mktemp("pipeline") / "tiny"
    shutil.copytree(tiny_repo, folder)
    # The random statistics are nearly those of no norm, so that a missing norm would hardly be noticed.
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    generator = torch.Generator().manual_seed(5)
    state["bn.running_mean"] = torch.randn(CHANNELS, generator=generator)
    state["bn.running_var"] = 0.05 + 2 * torch.rand(CHANNELS, generator=generator)
    save_file(state, weights, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def quantized_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pipeline, quantized by lensconv."""
    output = tmp_path_factory.mktemp("pipeline") / "quantized"
    convert(folder, output)
    return output


@pytest.fixture(scope="session")
def pipe(folder: Path) -> Any:
    """A pipeline for tests that do not change it."""
    return load(folder)
