"""Tensors of a checkpoint and those of a model without weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM

from converter import ConvertOptions, Recipe, Rule, convert, plan, verify
from converter.checkpoint.prefixes import shared_prefix
from converter.checkpoint.source import Checkpoint, examine_checkpoint, open_checkpoint, pipeline_components
from converter.conversion.release.manifest import MANIFEST_NAME, SUMMARY_NAME
from converter.errors import UnsupportedCheckpoint
from converter.models.empty import build_empty_model
from converter.models.matching import are_equal, match_tensors
from converter.models.unsuitable import refuse_adapter, refuse_quantized
from tests.checkpoints import failed, write_holes
from tests.conftest import Lensconv, edit_json
from tests.reference import convert_with_sdnq, weight_files
from tests.tiny_models import WEIGHTS, convert_default, save_model


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


def linear(*parts: str) -> dict[str, str]:
    """Parts of a linear in a block, and dtypes; each part is ``NAME DTYPE``."""
    return {f"blocks.0.to_q.{name}": dtype for name, _, dtype in (part.partition(" ") for part in parts)}


@pytest.mark.parametrize(
    ("tool", "tensors"),
    [
        ("bitsandbytes", linear("weight U8", "weight.absmax U8", "weight.quant_state.bitsandbytes__nf4 U8")),
        ("bitsandbytes", linear("weight I8", "SCB F32", "weight_format U8")),
        ("GPTQ", linear("qweight I32", "qzeros I32", "scales F16", "g_idx I32")),
        ("AWQ or GPTQ", linear("qweight I32", "qzeros I32", "scales F16")),
        ("nunchaku, SVDQuant", linear("qweight I8", "wscales BF16", "smooth_factor BF16", "proj_down BF16")),
        ("nunchaku, SVDQuant", linear("qweight I8", "wscales F8_E4M3", "wcscales BF16", "lora_down BF16")),
        ("compressed-tensors", linear("weight_packed I32", "weight_scale BF16", "weight_shape I64")),
        ("compressed-tensors", linear("weight_packed U8", "weight_scale F8_E4M3", "weight_global_scale F32")),
        ("compressed-tensors or ModelOpt", linear("weight F8_E4M3", "weight_scale F32", "input_scale F32")),
        ("ModelOpt", linear("weight U8", "weight_scale F8_E4M3", "weight_scale_2 F32", "input_scale F32")),
        ("ComfyUI", {"scaled_fp8": "F8_E4M3", **linear("weight F8_E4M3", "scale_weight F32")}),
        ("ComfyUI", linear("weight U8", "weight_scale F8_E4M3", "weight_scale_2 F32", "comfy_quant U8")),
        ("quanto", linear("weight._data I8", "weight._scale F32", "input_scale F32")),
        ("quanto", linear("weight._data._data U8", "weight._scale BF16", "weight._shift BF16")),
        ("torchao", linear("_weight_qdata I8", "_weight_scale BF16")),
        ("torchao", linear("weight:qdata F8_E4M3", "weight:scale F32")),
        ("OrbitQuant", linear("packed_weight_indices U8", "row_norms F32")),
        ("FP8 with scales of blocks", linear("weight F8_E4M3", "weight_scale_inv F32")),
        ("MXFP4", {"experts.gate_up_proj_blocks": "U8", "experts.gate_up_proj_scales": "U8"}),
        ("MLX", linear("weight U32", "scales BF16", "biases BF16")),
        ("sdnq", linear("weight U8", "scale BF16", "zero_point BF16")),
        ("", linear("weight F8_E5M2")),
        ("", linear("bias F6_E2M3")),
    ],
)
def test_sources_that_another_tool_quantized(tool: str, tensors: dict[str, str], tmp_path: Path) -> None:
    """Named by their tensors, which a config without the method leaves unsaid, and by the method of the config."""
    write_holes(tmp_path / "model.safetensors", ((dtype, name, (8,)) for name, dtype in tensors.items()))
    place = f"{tmp_path}: already quantized"
    for config, said in (
        ({}, f" ({tool}): tensor " if tool else ": tensor "),
        ({"quantization_config": {"group_size": 64, "bits": 4}}, f" ({tool or 'unknown method'})"),
        ({"quantization_config": {"quant_method": "new-method"}}, " (new-method)"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(UnsupportedCheckpoint) as caught:
            refuse_quantized(open_checkpoint(tmp_path))
        assert caught.value.message.startswith(place + said)
        assert caught.value.hint == "Convert the original, unquantized checkpoint."


@pytest.mark.parametrize("tensors", [linear("weight F32", "scale F32"), linear("weight_scale BF16", "weight BF16")])
def test_floats_are_not_quantized(tensors: dict[str, str], tmp_path: Path) -> None:
    """Some classes have parameters that are called as the parts of a quantized weight are."""
    write_holes(tmp_path / "model.safetensors", ((dtype, name, (8,)) for name, dtype in tensors.items()))
    refuse_quantized(open_checkpoint(tmp_path))


@pytest.mark.parametrize(
    ("name", "is_adapter"),
    [
        ("base_model.model.blocks.0.to_q.lora_A.weight", True),
        ("transformer.blocks.0.to_q.lora_B.default.weight", True),
        ("lora_unet_blocks_0_to_q.lora_down.weight", True),
        ("blocks.0.processor.to_q_lora.up.weight", True),
        ("lycoris_blocks_0_to_q.hada_w1_a", True),
        ("lora_unet_blocks_0_to_q.lokr_w2", True),
        ("lora_unet_blocks_0_to_q.lokr_w2_a", True),
        # Models have low ranks, too: DeepSeek and its kin.
        ("blocks.0.attn.q_lora_norm.weight", False),
        ("blocks.0.lora_alphabet.weight", False),
    ],
)
def test_adapters_are_not_models(name: str, is_adapter: bool, tmp_path: Path) -> None:
    write_holes(tmp_path / "model.safetensors", [("F32", "blocks.0.to_q.weight", (8,)), ("F32", name, (8,))])
    if is_adapter:
        with pytest.raises(UnsupportedCheckpoint, match=f"tensor {name} is of a LoRA adapter, not of a model"):
            refuse_adapter(open_checkpoint(tmp_path))
    else:
        refuse_adapter(open_checkpoint(tmp_path))


def with_prefix(source: Path, prefix: str, folder: Path, *, shards: bool = False) -> Path:
    """A copy of a checkpoint in which all names begin with a prefix; in one file, or in two with an index."""
    shutil.copytree(source, folder)
    file = folder / WEIGHTS
    tensors = {prefix + name: tensor for name, tensor in load_file(file).items()}
    if not shards:
        save_file(tensors, file, metadata={"format": "pt"})
        return folder
    file.unlink()
    names = [f"diffusion_pytorch_model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    weight_map = {name: names[number % 2] for number, name in enumerate(tensors)}
    for shard in names:
        part = {name: tensors[name] for name in tensors if weight_map[name] == shard}
        save_file(part, folder / shard, metadata={"format": "pt"})
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.parametrize(
    ("prefix", "shards"),
    [("_orig_mod.", False), ("module.", True), ("model.diffusion_model.", False), ("module._orig_mod.", True)],
)
def test_prefixes_of_all_names(prefix: str, shards: bool, tmp_path: Path, lensconv: Lensconv) -> None:
    """The same bytes as without the prefix; plan and conversion say so, and the release can be compared with it."""
    plain = save_model(tmp_path / "plain", "LensTransformer2DModel", num_layers=1)
    source = with_prefix(plain, prefix, tmp_path / "source", shards=shards)
    expected, output = convert_default(plain, tmp_path / "expected"), tmp_path / "output"
    note = f"the names of all tensors of the source begin with {prefix}; this prefix is removed"
    assert note in lensconv("plan", "--json", source).result["notes"]
    outcome = lensconv("convert", source, output)
    assert (outcome.code, note in outcome.stderr.replace("\n", " ")) == (0, True)
    for file in expected.iterdir():
        if file.name != MANIFEST_NAME and not (shards and file.name == SUMMARY_NAME):
            assert (output / file.name).read_bytes() == file.read_bytes(), file.name
    recorded = json.loads((output / MANIFEST_NAME).read_text())["components"][0]["source"]
    assert (recorded["removed_prefix"], recorded["tensors"]) == (prefix, len(open_checkpoint(plain).tensors))
    report = lensconv("verify", "--json", output, "--against", source, "--checksums").result
    assert (report["ok"], report["fidelity"]["max_abs_error"] > 0) == (True, True)


@pytest.mark.parametrize(
    ("names", "prefix"),
    [
        (["module.a", "module.b"], "module."),
        (["module.a", "b"], ""),
        (["module.a", "_orig_mod.module.a"], None),
        (["module.module.a", "module.a"], "module."),
        (["module."], ""),
        (["module.module.", "module.module.a"], "module."),
        (["model.a", "model.diffusion_modelling.a"], ""),
        (["a._orig_mod.b", "a.c"], None),
        (["module.a", "module.b._orig_mod.c"], None),
    ],
)
def test_what_all_names_share(names: list[str], prefix: str | None) -> None:
    if prefix is not None:
        assert shared_prefix(names, Path("x")) == prefix
        return
    with pytest.raises(UnsupportedCheckpoint, match=r"torch\.compile has put _orig_mod\. into its name"):
        shared_prefix(names, Path("x"))


def test_quantized_checkpoints_keep_their_prefix(tmp_path: Path) -> None:
    """It is removed only from a source: no loader finds the tensors of a release that has it."""
    file = tmp_path / "model.safetensors"
    write_holes(file, [("F32", "module.a", (1,)), ("F32", "module.b", (1,))])
    assert [*examine_checkpoint(file).tensors] == ["module.a", "module.b"]
    assert {name: tensor.entry.name for name, tensor in open_checkpoint(file).tensors.items()} == {"a": "a", "b": "b"}
    said = "the names of all tensors begin with module., so that no loader finds them"
    assert failed(verify(file))["names"] == said


def test_names_of_another_program(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedCheckpoint, match="none of its tensors belongs to ModuleDict, for example double"):
        match(saved(tmp_path, double_blocks=(4,), single_blocks=(4,)))


def test_a_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    for name, key in (("T5EncoderModel", "d_ff"), ("FluxTransformer2DModel", "joint_attention_dim")):
        source = save_model(tmp_path / name, name)
        edit_json(source / "config.json", **{key: 96})
        with pytest.raises(UnsupportedCheckpoint, match=r"tensor \S+ has shape \[.*; " + name + " with this config"):
            plan(source)


def with_buffers(source: Path, prefix: str, *buffers: str) -> Path:
    """Add buffers to a checkpoint, and put a prefix before the other names."""
    file = source / "model.safetensors"
    tensors = {prefix + name: tensor for name, tensor in load_file(file).items()}
    save_file(tensors | {name: torch.zeros(8) for name in buffers}, file, metadata={"format": "pt"})
    return source


ROTARY = "self_attn.rotary_emb.inv_freq"


@pytest.mark.parametrize(
    ("name", "buffers"),
    [
        ("CLIPTextModel", ["text_model.embeddings.position_ids"]),
        ("CLIPTextModel", ["embeddings.position_ids"]),
        ("LlamaForCausalLM", [f"model.layers.{number}.{ROTARY}" for number in (0, 1)]),
        ("Qwen3ForCausalLM", ["model.rotary_emb.inv_freq", "model.rotary_emb.original_inv_freq"]),
        ("Qwen2_5_VLForConditionalGeneration", ["visual.rotary_pos_emb.inv_freq", f"model.layers.0.{ROTARY}"]),
        ("GptOssForCausalLM", ["model.rotary_emb.inv_freq"]),
    ],
)
def test_buffers_that_the_class_computes(name: str, buffers: list[str], tmp_path: Path) -> None:
    source = with_buffers(save_model(tmp_path / name, name), "", *buffers)
    assert build_empty_model(open_checkpoint(source)).ignored == tuple(sorted(buffers))
    with pytest.raises(UnsupportedCheckpoint, match=rf"tensor model\.other_freq is not part of {name}$"):
        build_empty_model(open_checkpoint(with_buffers(source, "", "model.other_freq")))


@pytest.mark.parametrize(
    ("name", "buffer"),
    [("PixArtTransformer2DModel", "pos_embed.pos_embed"), ("WanTransformer3DModel", "rope.freqs_cos")],
)
def test_buffers_of_diffusers(name: str, buffer: str, tmp_path: Path) -> None:
    """Those that the class has, by their full names, and no others that are called alike."""
    source = save_model(tmp_path / "source", name)
    tensors = load_file(source / WEIGHTS)
    save_file({**tensors, buffer: torch.zeros(8)}, source / WEIGHTS)
    assert build_empty_model(open_checkpoint(source)).ignored == (buffer,)
    save_file({**tensors, f"proj.{buffer}": torch.zeros(8)}, source / WEIGHTS)
    with pytest.raises(UnsupportedCheckpoint, match=f"tensor proj.{buffer} is not part of {name}$"):
        build_empty_model(open_checkpoint(source))


@pytest.mark.parametrize(
    ("name", "prefix", "buffer", "refused"),
    [
        ("CLIPTextModel", "text_model.", "text_model.embeddings.position_ids", "text_model.embeddings"),
        ("CLIPTextModel", "", "embeddings.position_ids", ""),
        ("LlamaForCausalLM", "", f"model.layers.0.{ROTARY}", ""),
        ("Qwen2_5_VLForConditionalGeneration", "", "visual.rotary_pos_emb.inv_freq", "model.embed_tokens"),
    ],
)
def test_what_is_left_out_and_which_loader_can(
    name: str, prefix: str, buffer: str, refused: str, tmp_path: Path, lensconv: Lensconv
) -> None:
    """What plan foresees is what loading shows; the figures count no buffer, and the source is still the source."""
    source = save_model(tmp_path / "source", name)
    parameters = lensconv("plan", "--json", source).result["source"]["parameters"]
    with_buffers(source, prefix, buffer)
    planned = lensconv("plan", "--json", source).result
    assert planned["source"]["parameters"] == planned["output"]["parameters"] == parameters
    assert f"tensors are left out, because {name} does not save them: {buffer}" in planned["notes"]
    foreseen = [note for note in planned["notes"] if note.startswith("load_sdnq_model")]
    assert [refused in note and name in note for note in foreseen] == [True] * bool(refused)
    output = convert_default(source, tmp_path / "output")
    assert json.loads((output / MANIFEST_NAME).read_text())["components"][0]["source"]["left_out"] == [buffer]
    report = lensconv("verify", "--json", output, "--against", source, "--checksums", "--load").result
    assert report["ok"], report["checks"]
    checks = [check["name"] for check in report["checks"]]
    assert ("load with transformers" in checks, "load with sdnq" in checks) == (True, not refused)
    assert [note for note in report["notes"] if note.startswith("load_sdnq_model")] == foreseen


def test_a_file_that_lacks_a_tensor_is_to_blame(tmp_path: Path, lensconv: Lensconv) -> None:
    """Names that SDNQ's loader does not know excuse nothing else."""
    source = with_buffers(save_model(tmp_path / "source", "CLIPTextModel"), "text_model.")
    output = convert_default(source, tmp_path / "output")
    tensors = load_file(output / "model.safetensors")
    del tensors["text_model.final_layer_norm.bias"]
    save_file(tensors, output / "model.safetensors", metadata={"format": "pt"})
    checks = lensconv("verify", "--json", output, "--load").result["checks"]
    assert "load with sdnq" in [check["name"] for check in checks if not check["ok"]]


@pytest.mark.parametrize(("saved", "loaded"), [("Qwen3ForCausalLM", "Qwen3Model"), ("LlamaForCausalLM", "LlamaModel")])
def test_a_pipeline_decides_as_which_class_its_text_encoder_is_loaded(saved: str, loaded: str, tmp_path: Path) -> None:
    """The index of Z-Image names Qwen3Model, and the config Qwen3ForCausalLM, whose tensors have other names."""
    source, output = tmp_path / "source", tmp_path / "out"
    save_model(source / "text_encoder", saved, num_key_value_heads=2)
    source.joinpath("model_index.json").write_text(json.dumps({"text_encoder": ["transformers", loaded]}))
    options, recipe = ConvertOptions(components=("text_encoder",)), Recipe("x", {"weights_dtype": "uint4"})
    convert(source, output, recipe.with_rules([Rule(match="*.k_proj", keep=True)]), options)
    wanted = {"weights_dtype": "uint4", "modules_to_not_convert": ["*.k_proj"]}
    expected = convert_with_sdnq(source / "text_encoder", tmp_path / "expected", loaded, wanted)
    assert weight_files(output / "text_encoder") == weight_files(expected)
    assert open_checkpoint(output / "text_encoder").config["architectures"] == [loaded]
    report = verify(output, against=source, load=True)
    assert report.ok, failed(report)
    left_out = plan(source, recipe, options).plan.ignored
    assert left_out == (("lm_head.weight",) if saved == "LlamaForCausalLM" else ())
    # Alone, the component is what its config says.
    assert open_checkpoint(source / "text_encoder").class_name == saved
