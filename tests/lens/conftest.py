"""Tiny pipelines, and models for the int8 chain."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from converter import convert
from converter.models.lens.int8_chain import Int8Chain
from converter.models.lens.int8_rows import Int8Rows
from tests.lens.int8_chains import SMALL, make, quantize
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


@pytest.fixture(scope="module")
def wide() -> Any:
    """Two blocks of real width in float32."""
    return make(num_layers=2)


@pytest.fixture(scope="module")
def wide_quantized(wide: Any) -> Any:
    """The same, quantized by SDNQ."""
    return quantize(wide)


@pytest.fixture
def small() -> Any:
    """A small quantized model of its own."""
    return quantize(make(**SMALL))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Int8Rows]:
    """What the chain makes of activations."""
    rows: list[Int8Rows] = []
    modulate = Int8Chain.modulate

    def spy(*given: Any, **named: Any) -> Int8Rows:
        rows.append(modulate(*given, **named))
        return rows[-1]

    monkeypatch.setattr(Int8Chain, "modulate", spy)
    return rows
