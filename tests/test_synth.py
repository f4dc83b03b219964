"""Synthetic checkpoints look like the real one, and are the same for everybody."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from converter.checkpoint.layout import TensorSpec, lay_out
from converter.checkpoint.source import open_checkpoint
from converter.console import Progress
from converter.errors import DiskError, OutputError, UsageError
from converter.models.lens.layout import LensConfig, lens_tensors
from converter.synthesis import synthesize as synthesize_module
from converter.synthesis.synthesize import synthesize
from converter.synthesis.weights import write_weights
from tests.conftest import names_in
from tests.reporters import Notes


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synth") / "made"
    synthesize(folder, layers=1, shard_bytes=150_000_000)
    return folder


@pytest.fixture(scope="module")
def tensors(made: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in made.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_the_layout_is_that_of_lens_and_the_config_the_published_one(made: Path) -> None:
    checkpoint = open_checkpoint(made)
    assert checkpoint.class_name == "LensTransformer2DModel"
    shapes = {name: tensor.entry.shape for name, tensor in checkpoint.tensors.items()}
    assert shapes == dict(lens_tensors(LensConfig(num_layers=1)))
    assert checkpoint.bytes_by_dtype.keys() == {"F32"}
    assert len(checkpoint.headers) > 1
    assert checkpoint.index is not None
    assert json.loads((made / "config.json").read_text()) == (
        {"_class_name": "LensTransformer2DModel", "_diffusers_version": "0.37.1", "patch_size": 2}
        | {"in_channels": 128, "out_channels": 32, "num_layers": 1, "attention_head_dim": 64}
        | {"num_attention_heads": 24, "inner_dim": 1536, "enc_hidden_dim": 2880, "axes_dims_rope": [8, 28, 28]}
        | {"gate_mlp": True, "rms_norm": True, "multi_layer_encoder_feature": True}
        | {"selected_layer_index": [5, 11, 17, 23]}
    )


def test_a_tensor_depends_on_its_name_and_the_seed_alone(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    notes = Notes()
    total = synthesize(tmp_path / "deeper", layers=2, reporter=notes).total_bytes
    assert [(shown.label, shown.total, shown.done) for shown in notes.shown] == [("generating", total, total)]
    deeper = load_file(tmp_path / "deeper" / "diffusion_pytorch_model.safetensors")
    for name, tensor in tensors.items():
        assert torch.equal(tensor, deeper[name]), name
    synthesize(tmp_path / "other", layers=1, seed=1)
    other = load_file(tmp_path / "other" / "diffusion_pytorch_model.safetensors")
    assert not any(torch.equal(tensor, other[name]) for name, tensor in tensors.items())


def test_bfloat16_is_rounded_as_torch_does(tmp_path: Path) -> None:
    """Of a million numbers, some lie halfway between two; more than a million are drawn in pieces."""
    found = {}
    for dtype in ("F32", "BF16"):
        specs = (TensorSpec("weight", dtype, (1025, 1024)),)
        (tmp_path / dtype).mkdir()
        write_weights(tmp_path / dtype, specs, lay_out(specs, stem="model"), 0, Progress())
        found[dtype] = load_file(tmp_path / dtype / "model.safetensors")["weight"]
    assert torch.equal(found["BF16"], found["F32"].bfloat16())


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(("cause", "expected"), [(FULL, DiskError), (KeyboardInterrupt(), KeyboardInterrupt)])
def test_a_failure_leaves_nothing_behind(
    cause: BaseException, expected: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise cause

    monkeypatch.setattr(synthesize_module, "write_weights", fail)
    with pytest.raises(expected, match="out: No space left" if cause is FULL else None):
        synthesize(tmp_path / "deep" / "out", layers=1)
    assert names_in(tmp_path) == []


def test_what_cannot_be_made(tmp_path: Path) -> None:
    wrong: list[dict[str, Any]] = [{"layers": 0}, {"layers": 1025}, {"preset": "big"}, {"component": "vae"}]
    for options in wrong:
        with pytest.raises(UsageError, match=r"between 1 and|is not one of lens, tiny, signs|only the transformer"):
            synthesize(tmp_path / "out", **options)
    (tmp_path / "out").mkdir()
    for layers in (1, 1024):
        with pytest.raises(OutputError, match="exists already"):
            synthesize(tmp_path / "out", layers=layers)
    assert names_in(tmp_path) == ["out"]
