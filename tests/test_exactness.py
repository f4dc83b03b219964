"""The same bytes as SDNQ, for many classes and recipes. ``scripts/exactness`` compares every combination."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from converter import ConvertOptions, Recipe, Rule, convert, plan
from tests import reference
from tests.tiny_models import ALL_CLASSES, save_model


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved models by class, made when they are first asked for."""
    folder = tmp_path_factory.mktemp("models")

    class Sources(dict[str, Path]):
        def __missing__(self, name: str) -> Path:
            self[name] = save_model(folder / name, name)
            return self[name]

    return Sources()


def assert_same(
    folder: Path, source: Path, name: str, options: dict[str, Any], shard: str, *recipe: Recipe | None
) -> None:
    """Assert that both paths write the same files; the recipe is that of the options if no other is given."""
    (used,) = recipe or (Recipe("mine", options, seed=3),)
    expected = reference.convert_with_sdnq(source, folder / "expected", name, options, shard=shard, seed=3)
    convert(source, folder / "output", used, ConvertOptions(shard_bytes=reference.SHARDS[shard], jobs=2, force=True))
    assert reference.weight_files(folder / "output") == reference.weight_files(expected)
    assert reference.read_configs(folder / "output") == reference.read_configs(expected)


def share_out(names: Iterable[str], recipes: Iterable[str], step: int) -> list[tuple[str, str]]:
    """Pairs in which each recipe meets every so-manyth name, and each name as many recipes as the next."""
    return [
        (name, recipe)
        for first, recipe in enumerate(recipes)
        for number, name in enumerate(names)
        if (number + first) % step == 0
    ]


@pytest.mark.parametrize(("name", "recipe"), share_out(ALL_CLASSES, reference.RECIPES, step=2))
def test_every_class_gives_the_bytes_of_sdnq(name: str, recipe: str, sources: dict[str, Path], tmp_path: Path) -> None:
    shard = list(reference.SHARDS)[(ALL_CLASSES.index(name) // 2) % 2]
    assert_same(tmp_path, sources[name], name, reference.RECIPES[recipe], shard)


@pytest.mark.parametrize(
    ("name", "recipe"),
    share_out(
        ["LensTransformer2DModel", "UNet2DConditionModel", "Qwen3ForCausalLM"], reference.FURTHER_RECIPES, step=2
    ),
)
def test_every_option_gives_the_bytes_of_sdnq(name: str, recipe: str, sources: dict[str, Path], tmp_path: Path) -> None:
    assert_same(tmp_path, sources[name], name, reference.FURTHER_RECIPES[recipe], "200KB")


@pytest.mark.parametrize("name", ["LensTransformer2DModel", "UNet2DConditionModel"])
@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn"])
def test_transposed_results_are_put_together(dtype: str, name: str, sources: dict[str, Path], tmp_path: Path) -> None:
    """From runs of rows, of which only few fit into the memory that is allowed."""
    options = {"weights_dtype": dtype, "use_quantized_matmul": True, "quant_conv": True}
    recipe = Recipe("x", {**options, "use_quantized_matmul_conv": True})
    expected = reference.convert_with_sdnq(sources[name], tmp_path / "expected", name, dict(recipe.options))
    convert(sources[name], tmp_path / "output", recipe, ConvertOptions(memory=4_000_000, jobs=3))
    assert reference.weight_files(tmp_path / "output") == reference.weight_files(expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["LensTransformer2DModel", "WanTransformer3DModel"])
def test_sources_in_other_dtypes(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", name, dtype=dtype)
    options = reference.LENS_OPTIONS if name == "LensTransformer2DModel" else {"weights_dtype": "uint4"}
    assert_same(tmp_path, source, name, options, "5GB", None)


def test_a_sharded_source(tmp_path: Path) -> None:
    name = "LensTransformer2DModel"
    source = save_model(tmp_path / "source", name, shard="1MB")
    assert len(list(source.glob("*.safetensors"))) > 2
    assert_same(tmp_path, source, name, reference.LENS_OPTIONS, "200KB", None)


@pytest.mark.parametrize("held", ["both, equal", "both, different", "the alias only"])
@pytest.mark.parametrize(
    ("name", "target", "alias"),
    [
        ("Qwen3ForCausalLM", "model.embed_tokens.weight", "lm_head.weight"),
        ("T5EncoderModel", "shared.weight", "encoder.embed_tokens.weight"),
    ],
)
def test_tied_tensors(name: str, target: str, alias: str, held: str, tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", name)
    tensors = load_file(source / "model.safetensors")
    tied = tensors.pop(target)
    if held != "the alias only":
        tensors[target] = tied
    tensors[alias] = tied * 2 if held == "both, different" else tied.clone()
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    assert_same(tmp_path, source, name, {"weights_dtype": "int8"}, "200KB")


@pytest.mark.parametrize(
    ("name", "prefix", "buffer"),
    [
        ("CLIPTextModel", "text_model.", "text_model.embeddings.position_ids"),
        ("CLIPTextModel", "", "text_model.embeddings.position_ids"),
        ("LlamaForCausalLM", "", "model.layers.1.self_attn.rotary_emb.inv_freq"),
    ],
)
def test_buffers_of_older_libraries(name: str, prefix: str, buffer: str, tmp_path: Path) -> None:
    """Left out, as SDNQ does, and the other tensors under the names that transformers then gives them."""
    source = save_model(tmp_path / "source", name)
    file = source / "model.safetensors"
    tensors = {prefix + tensor_name: tensor for tensor_name, tensor in load_file(file).items()}
    save_file({**tensors, buffer: torch.arange(77)}, file, metadata={"format": "pt"})
    assert_same(tmp_path, source, name, {"weights_dtype": "int8"}, "5GB")
    assert buffer not in load_file(tmp_path / "output" / "model.safetensors")


def test_old_names_of_attention_blocks(tmp_path: Path) -> None:
    """Autoencoders from before 2023 call their attention query, key, value and proj_attn."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    source = save_model(tmp_path / "source", "AutoencoderKL")
    file = source / "diffusion_pytorch_model.safetensors"
    tensors = {}
    for tensor_name, tensor in load_file(file).items():
        for new, former in old.items():
            tensor_name = tensor_name.replace(f"attentions.0.{new}.", f"attentions.0.{former}.")
        tensors[tensor_name] = tensor
    assert any(".query." in tensor_name for tensor_name in tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    assert_same(tmp_path, source, "AutoencoderKL", {"weights_dtype": "int8"}, "5GB")


def test_rules_become_what_sdnq_would_be_told(tmp_path: Path) -> None:
    """A recipe with rules equals a run of SDNQ with the lists that the rules resolve to."""
    name = "FluxTransformer2DModel"
    source = save_model(tmp_path / "source", name)
    recipe = Recipe(
        "mixed",
        {"weights_dtype": "uint4"},
        rules=(
            Rule(family="attn", options={"weights_dtype": "int8"}),
            Rule(match="*.ff.net.*", keep=True),
            Rule(match="*.ff_context.net.*", keep=True),
            Rule(match="transformer_blocks.0.ff_context.net.2", options={"weights_dtype": "int8"}),
            Rule(match="transformer_blocks.1.attn.to_q", options={"weights_dtype": "int6", "group_size": 32}),
        ),
    )
    linears = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
    blocks = {"transformer_blocks": linears, "single_transformer_blocks": linears[:3]}
    attention = [
        f"{block}.{number}.attn.{linear}.weight" for block in blocks for number in (0, 1) for linear in blocks[block]
    ]
    special = "transformer_blocks.1.attn.to_q.weight"
    feed = [f"transformer_blocks.{n}.ff_context.net.{part}.weight" for n in (1, 0) for part in ("0.proj", "2")]
    options = {
        "weights_dtype": "uint4",
        "modules_dtype_dict": {"int8": [*(path for path in attention if path != special), feed[3]]},
        "modules_quant_config": {special: {"weights_dtype": "int6", "group_size": 32}},
        "modules_to_not_convert": ["*.ff.net.*", *feed[:3]],
    }
    assert_same(tmp_path, source, name, options, "5GB", recipe)


def test_a_rule_wins_over_what_sdnq_skips(tmp_path: Path) -> None:
    name = "LensTransformer2DModel"
    source = save_model(tmp_path / "source", name)
    output = tmp_path / "output"
    convert(source, output, "sdnq-int8", ConvertOptions(settings=("txt_in=int8", "*.linear_1=int8")))
    config = reference.read_configs(output)[1]
    assert config["add_skip_keys"] is False
    expected = reference.convert_with_sdnq(
        source, tmp_path / "expected", name, {**config, "quant_method": None}, shard="5GB"
    )
    assert reference.weight_files(output) == reference.weight_files(expected)
    with safe_open(output / "diffusion_pytorch_model.safetensors", "pt") as file:
        names = set(file.keys())
    assert {"txt_in.scale", "time_text_embed.timestep_embedder.linear_1.scale"} <= names
    assert not {"proj_out.scale", "time_text_embed.timestep_embedder.linear_2.scale"} & names
    unskipped = Recipe("x", {"weights_dtype": "int8", "add_skip_keys": False})
    assert "proj_out" not in plan(source, unskipped, ConvertOptions(settings=("txt_in=int8",))).plan.kept_modules
