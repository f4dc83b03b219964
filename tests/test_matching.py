"""Tensors of a checkpoint and those of a model without weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM

from converter.checkpoint.source import Checkpoint, open_checkpoint, pipeline_components
from converter.errors import UnsupportedCheckpoint
from converter.models.empty import build_empty_model
from converter.models.matching import are_equal, match_tensors
from tests.conftest import edit_json
from tests.tiny_models import save_model


def tied_model() -> Any:
    """Two linears with one weight, and a norm."""
    model = nn.ModuleDict({name: nn.Linear(4, 4, bias=False) for name in ("first", "second")})
    model["norm"] = nn.LayerNorm(4, bias=False)
    model["second"].weight = model["first"].weight
    return model


def saved(folder: Path, **shapes: tuple[int, ...]) -> Checkpoint:
    """A checkpoint of zeros; underscores in the names are dots."""
    file = folder / "model.safetensors"
    save_file({name.replace("_", "."): torch.zeros(shape) for name, shape in shapes.items()}, file)
    return open_checkpoint(file)


def match(checkpoint: Checkpoint, ignored: tuple[str, ...] = ()) -> tuple[dict[str, str], tuple[str, ...]]:
    names = {name: name for name in sorted(checkpoint.tensors, reverse=True)}
    return match_tensors(tied_model(), names, checkpoint, ignored)


def test_what_the_small_files_name(tmp_path: Path) -> None:
    """Classes of models, components of a pipeline; the first of two denoisers, and of two files of weights."""
    configs: list[dict[str, Any]] = [{"architectures": value} for value in (["A", "B"], [], "A", [1])]
    configs.append({"_class_name": "C", **configs[0]})
    assert [Checkpoint(tmp_path, (), {}, config, "").class_name for config in configs] == ["A", "", "", "", "C"]
    index = {
        "_a": ["x", "Y"],
        "b": True,
        "c": [None, None],
        "d": [None, "Y"],
        "unet": ["x", "Z"],
        "transformer": ["x", "Y"],
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert pipeline_components(tmp_path) == {"unet": ("x", "Z"), "transformer": ("x", "Y")}
    (tmp_path / "transformer").mkdir()
    for stem in ("model", "diffusion_pytorch_model"):
        save_file({"x": torch.ones(1)}, tmp_path / "transformer" / f"{stem}.safetensors")
    opened = open_checkpoint(tmp_path)
    assert (opened.component, opened.stem) == ("transformer", "diffusion_pytorch_model")


def test_one_of_tied_tensors_is_enough(tmp_path: Path) -> None:
    sources, extra = match(saved(tmp_path, second_weight=(4, 4), norm_weight=(4,)))
    assert sources == {"first.weight": "second.weight", "second.weight": "second.weight", "norm.weight": "norm.weight"}
    assert extra == ()
    # Each has its own source where both are saved.
    sources, _ = match(saved(tmp_path, first_weight=(4, 4), second_weight=(4, 4), norm_weight=(4,)))
    assert all(name == source for name, source in sources.items())


def test_tensors_that_the_class_ignores(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, first_weight=(4, 4), norm_weight=(4,), position_ids=(2,), a_position=(2,))
    assert match(checkpoint, ("position",))[1] == ("a.position", "position.ids")
    for ignored, said in (((), "ModuleDict, nor are 1 others$"), (("^a",), "ModuleDict$")):
        with pytest.raises(UnsupportedCheckpoint, match=rf"position\S* is not part of {said}"):
            match(checkpoint, ignored)


def test_numbers_that_a_model_counts_with(tmp_path: Path) -> None:
    state, file = nn.BatchNorm1d(2).state_dict(), tmp_path / "model.safetensors"
    names = {name: name for name in state}
    save_file(state, file)
    assert match_tensors(nn.BatchNorm1d(2), names, open_checkpoint(file), ()) == (names, ())
    save_file({**state, "num_batches_tracked": torch.zeros(())}, file)
    with pytest.raises(UnsupportedCheckpoint, match=r"is F32, which BatchNorm1d cannot load as torch\.int64"):
        match_tensors(nn.BatchNorm1d(2), names, open_checkpoint(file), ())


def test_classes_that_are_loaded_as_another_or_with_other_tensors(tmp_path: Path) -> None:
    old = save_model(tmp_path / "old", "PixArtTransformer2DModel")
    edit_json(old / "config.json", _class_name="Transformer2DModel", norm_type="ada_norm_single", more_blocks=1024)
    assert type(build_empty_model(open_checkpoint(old)).model).__name__ == "PixArtTransformer2DModel"
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    config = MixtralConfig(**sizes, num_attention_heads=2, num_key_value_heads=2, num_local_experts=2)
    MixtralForCausalLM(config).save_pretrained(tmp_path / "split")
    with pytest.raises(UnsupportedCheckpoint, match="transformers merges or splits model"):
        build_empty_model(open_checkpoint(tmp_path / "split"))


def test_tensors_are_compared_as_bfloat16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converter.models.matching._COMPARED_ELEMENTS", 3)
    numbers = torch.arange(10.0)
    tensors = {"a": numbers, "b": numbers.to(torch.float64) * (1 + 1e-5), "d": numbers.clone().reshape(2, 5)}
    tensors["c"] = torch.cat((numbers[:9], torch.tensor([8.0])))
    save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path / "model.safetensors")
    assert [are_equal(checkpoint, "a", name) for name in "abcd"] == [True, True, False, False]
