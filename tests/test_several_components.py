"""Conversions of several components of one pipeline: what they write, and what they say."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import jsonschema
import pytest
from safetensors.torch import load_file, save_file
from transformers import MixtralConfig, MixtralForCausalLM

from converter import (
    ConvertOptions,
    Recipe,
    convert,
    verify,
)
from converter.schemas import load_schema
from tests import reference
from tests.conftest import Lensconv, call, edit_json, snapshot
from tests.forms import accepted
from tests.pipelines import CLIP_NORM, CONVERTED, NAMES, spoil
from tests.tiny_models import WEIGHTS, save_model


@pytest.fixture(scope="module")
def source(several: Path) -> Path:
    """The pipeline of ``make_several``; nobody changes it."""
    return several


@pytest.fixture(scope="module")
def release(several_release: Path) -> Path:
    """What the default recipe makes of all that can be converted; nobody changes it."""
    return several_release


@pytest.mark.parametrize(
    "name",
    [
        "uint4",
        "stochastic",
        *(pytest.param(name, marks=pytest.mark.long) for name in ("svd", "dynamic", "dynamic-svd")),
    ],
)
def test_each_component_is_what_sdnq_writes_and_what_it_is_alone(name: str, source: Path, tmp_path: Path) -> None:
    """In whatever order they are named, and although each uses random numbers or decides by its weights."""
    options = (reference.RECIPES | reference.FURTHER_RECIPES)[name]
    recipe = Recipe("mine", options, seed=3)
    shard = "200KB" if name == "uint4" else "5GB"
    for place, names in (("out", NAMES), ("other order", NAMES[::-1])):
        shard_bytes = reference.SHARDS[shard]
        convert(source, tmp_path / place, recipe, ConvertOptions(components=names, shard_bytes=shard_bytes, jobs=2))
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "other order")
    for component, class_name in CONVERTED.items():
        expected = reference.convert_with_sdnq(
            source / component, tmp_path / "sdnq" / component, class_name, options, shard=shard, seed=3
        )
        assert reference.weight_files(tmp_path / "out" / component) == reference.weight_files(expected)
        assert reference.read_configs(tmp_path / "out" / component) == reference.read_configs(expected)
        alone = ConvertOptions(components=(component,), shard_bytes=reference.SHARDS[shard], jobs=1)
        convert(source, tmp_path / component, recipe, alone)
        assert snapshot(tmp_path / component / component) == snapshot(tmp_path / "out" / component)


def test_what_the_commands_print_fits_their_schemas_and_adds_up(
    source: Path, lensconv: Lensconv, tmp_path: Path
) -> None:
    named = [word for name in NAMES for word in ("--component", name)]
    planned = lensconv("plan", source, *named, "--max-shard-size", "200KB", "--json").result
    made = lensconv("convert", source, tmp_path / "out", *named, "--max-shard-size", "200KB", "--json").result
    verified = lensconv("verify", tmp_path / "out", "--against", source, "--json").result
    for command, result in (("plan", planned), ("convert", made), ("verify", verified)):
        jsonschema.validate(result, load_schema(command))
        assert [component["name"] for component in result["components"]] == [*NAMES]
        assert [component["class_name"] for component in result["components"]] == [*CONVERTED.values()]
        assert [other["name"] for other in result["other_components"]] == ["vae"]
    written = {file["name"]: file["bytes"] for file in made["files"]}
    assert {file["name"]: file["bytes"] for file in planned["output"]["files"]}.items() <= written.items()
    assert len(planned["output"]["files"]) > 2 * len(NAMES)
    parts = planned["components"], made["components"], verified["components"]
    for number, name in enumerate(NAMES):
        alone = lensconv("plan", source, "--component", name, "--json").result
        (expected,) = alone["components"]
        assert parts[0][number] == expected
        sizes = [parts[0][number]["output"]["bytes_by_dtype"], *(part[number]["bytes_by_dtype"] for part in parts[1:])]
        assert sizes == [expected["output"]["bytes_by_dtype"]] * 3
    for kind in ("source", "output"):
        for figure in ("tensors", "total_bytes", "parameters"):
            assert planned[kind][figure] == sum(part[kind][figure] for part in parts[0])
        assert sum(planned[kind]["bytes_by_dtype"].values()) == planned[kind]["total_bytes"]
    total = planned["output"]["total_bytes"]
    assert sum(made["bytes_by_dtype"].values()) == verified["total_bytes"] == total
    assert made["source_bytes"] == planned["source"]["total_bytes"] == sum(part["source_bytes"] for part in parts[1])
    assert made["tensors"] == verified["tensors"] == planned["output"]["tensors"]
    assert made["whole"] == planned["whole"]
    assert verified["whole_bytes"] == made["whole"]["bytes"]
    assert verified["parameters"] == planned["output"]["parameters"] == sum(part["parameters"] for part in parts[2])
    assert verified["quantized_modules"] == planned["quantized_modules"] == len(planned["modules"]["quantized"])
    families = {family["name"]: family["output_bytes"] for family in planned["families"]}
    assert families == {family["name"]: family["bytes"] for family in verified["families"]}
    assert sum(families.values()) == total
    assert {name.partition("/")[0] for name in families} == set(NAMES)
    modules = planned["modules"]["quantized"]
    assert len(set(modules)) == len(modules)
    assert {name.partition("/")[2] for name in modules if name.startswith("transformer_2/")} == {
        name.partition("/")[2] for name in modules if name.startswith("transformer/")
    }


def test_the_manifest_describes_all_and_the_summary_the_main_component(source: Path, release: Path) -> None:
    manifest = json.loads((release / "lensconv_manifest.json").read_text())
    assert accepted(manifest, "manifest") == accepted_of_one_component(source, release.with_name("alone"))
    assert manifest["format_version"] == 2
    assert [component["component"] for component in manifest["components"]] == [*NAMES]
    for component in manifest["components"]:
        (header,) = component["output"]["headers"]
        assert header.startswith(f"{component['component']}/")
    assert {file["name"]: file["sha256"] for file in manifest["files"]} == {
        name: hashlib.sha256(content).hexdigest()
        for name, content in snapshot(release).items()
        if name != "lensconv_manifest.json"
    }
    summary = "sdnq_quantization_summary.json"
    assert (release / summary).read_bytes() == (release.with_name("alone") / summary).read_bytes()


def accepted_of_one_component(source: Path, output: Path) -> list[str]:
    """What the schema of manifests accepts for a conversion of the denoiser alone."""
    convert(source, output)
    return accepted(json.loads((output / "lensconv_manifest.json").read_text()), "manifest")


def test_numbers_that_are_not_finite_are_counted_by_component(source: Path, tmp_path: Path) -> None:
    spoiled = shutil.copytree(source, tmp_path / "source")
    spoil(spoiled / "transformer" / WEIGHTS, "proj_out.bias")
    spoil(spoiled / "text_encoder" / "model.safetensors", CLIP_NORM)
    options = ConvertOptions(components=("transformer", "text_encoder"), allow_nonfinite=True)
    report = convert(spoiled, tmp_path / "out", options=options)
    assert report.nonfinite == {"transformer/proj_out.bias": 1, f"text_encoder/{CLIP_NORM}": 1}
    shown = call("convert", spoiled, tmp_path / "again", "--component", "text_encoder", "--allow-nonfinite", "--json")
    assert shown.result["nonfinite"] == {CLIP_NORM: 1}
    # The manifest counts them too, for a run that was killed at the end.
    manifest = json.loads((tmp_path / "out" / "lensconv_manifest.json").read_text())
    counted = {part["component"]: part["source"]["nonfinite"] for part in manifest["components"]}
    assert counted == {"transformer": {"proj_out.bias": 1}, "text_encoder": {CLIP_NORM: 1}}


def test_tied_weights_are_one_beside_other_components(source: Path, tmp_path: Path) -> None:
    """In one encoder the file has a tied weight twice, in another under the name that is not saved."""
    repo = shutil.copytree(source, tmp_path / "repo")
    shutil.rmtree(repo / "text_encoder")
    classes = {"text_encoder": "Qwen3ForCausalLM", "text_encoder_2": "T5EncoderModel"}
    save_model(repo / "text_encoder", "Qwen3ForCausalLM", num_hidden_layers=1)
    edit_json(repo / "model_index.json", text_encoder=["transformers", "Qwen3ForCausalLM"])
    tied = {"model.embed_tokens.weight": "lm_head.weight", "shared.weight": "encoder.embed_tokens.weight"}
    for name, (kept, alias) in zip(classes, tied.items(), strict=True):
        file = repo / name / "model.safetensors"
        tensors = load_file(file)
        tensors[alias] = tensors[kept].clone()
        if name == "text_encoder_2":
            del tensors[kept]
        save_file(tensors, file, metadata={"format": "pt"})
    recipe = Recipe("mine", {"weights_dtype": "int8"})
    convert(repo, tmp_path / "out", recipe, ConvertOptions(components=tuple(classes)))
    for name, class_name in classes.items():
        expected = reference.convert_with_sdnq(repo / name, tmp_path / name, class_name, dict(recipe.options))
        assert reference.weight_files(tmp_path / "out" / name) == reference.weight_files(expected)
        assert reference.read_configs(tmp_path / "out" / name) == reference.read_configs(expected)
    assert verify(tmp_path / "out", against=repo, load=True).ok


def test_a_mixture_of_experts_is_refused_by_its_folder_with_what_to_do(
    source: Path, lensconv: Lensconv, tmp_path: Path
) -> None:
    repo = shutil.copytree(source, tmp_path / "repo")
    shutil.rmtree(repo / "text_encoder")
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    config = MixtralConfig(**sizes, num_attention_heads=2, num_key_value_heads=2, num_local_experts=2)
    MixtralForCausalLM(config).save_pretrained(repo / "text_encoder")
    edit_json(repo / "model_index.json", text_encoder=["transformers", "MixtralForCausalLM"])
    named = ("--component", "transformer", "--component", "text_encoder", "--json")
    for words in (("plan", repo), ("convert", repo, tmp_path / "out")):
        outcome = lensconv(*words, *named)
        error = outcome.result["error"]
        assert (outcome.code, error["type"]) == (2, "UnsupportedCheckpoint")
        assert error["message"].startswith(f"{repo / 'text_encoder'}: transformers merges or splits ")
        assert "MixtralForCausalLM" in error["message"]
        assert error["hint"] == "Leave this component out; it stays as it is."
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["repo"]


def test_names_of_components_are_safe_to_show(source: Path, lensconv: Lensconv, tmp_path: Path) -> None:
    name, repo = "\x1b[31m", tmp_path / "repo"
    for place in ("text_encoder", name):
        shutil.copytree(source / "text_encoder", repo / place)
    kind = ["transformers", "CLIPTextModel"]
    (repo / "model_index.json").write_text(json.dumps({"text_encoder": kind, name: kind}))
    named = ("--component", name, "--component", "text_encoder")
    for words in (("plan", repo, *named), ("convert", repo, tmp_path / "out", *named), ("verify", tmp_path / "out")):
        outcome = lensconv(*words)
        assert outcome.code == 0
        assert name not in outcome.stderr
        assert "\\x1b[31m" in outcome.stderr
