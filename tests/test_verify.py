"""Verification: sound checkpoints pass, whoever made them, and every damage is found and named."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from converter import ConvertOptions, Recipe, convert, verify
from converter.checkpoint.files import read_json
from converter.errors import MalformedCheckpoint, UnsupportedCheckpoint, UsageError
from converter.libraries import load_library
from converter.schemas import load_schema
from converter.verification.audit import Audit
from converter.verification.configuration import differing_entries, differing_options, shown
from converter.verification.measures import Fidelity, ModuleFidelity
from converter.verification.verify import make_report
from tests.cases import check_cases
from tests.checkpoints import (
    BLOCK,
    LINEAR,
    MOD,
    OUT,
    QKV,
    WEIGHTS,
    Damage,
    change_config,
    change_tensors,
    failed,
    write_checkpoint,
)
from tests.conftest import Lensconv, edit_json, forget_file
from tests.expected import check_expected
from tests.reference import FURTHER_RECIPES, LENS_OPTIONS, RECIPES, convert_with_sdnq
from tests.reporters import Notes
from tests.tiny_models import convert_default, model_class, save_model


@pytest.fixture
def folder(lens_output: Path, tmp_path: Path) -> Path:
    """A quantized checkpoint that may be changed."""
    return shutil.copytree(lens_output, tmp_path / "out")


_KNOWN = "int8 int8-matmul int5 float8 svd hadamard codebook double dynamic int6-convolutions-embeddings"
FOREIGN: dict[str, dict[str, Any]] = {name: (RECIPES | FURTHER_RECIPES)[name] for name in _KNOWN.split()} | {
    "svd matmul": {"weights_dtype": "int8", "use_svd": True, "svd_rank": 8, "use_quantized_matmul": True},
    "mixed": {"weights_dtype": "uint4", "modules_dtype_dict": {"int8": ["*.attn*"], "minimum_6bit": ["*.ff.*"]}},
}


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        *(("FluxTransformer2DModel", recipe) for recipe in FOREIGN),
        *(("UNet2DConditionModel", recipe) for recipe in ("svd matmul", "int6-convolutions-embeddings")),
        *(("Qwen3ForCausalLM", recipe) for recipe in ("int8-matmul", "int6-convolutions-embeddings")),
    ],
)
def test_foreign_checkpoints_are_sound(
    name: str, recipe: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fewer: dict[str, Any] = {"num_layers": 1, "num_single_layers": 1} if name == "FluxTransformer2DModel" else {}
    source = save_model(tmp_path / "source", name, **fewer)
    shard = "200KB" if recipe in ("int8", "svd") else "5GB"
    output = convert_with_sdnq(source, tmp_path / "out", name, FOREIGN[recipe], shard=shard)
    capfd.readouterr()
    report = verify(output, against=source, load=True)
    assert capfd.readouterr() == ("", ""), "no progress bars of other libraries"
    # No loader takes scales that are quantized for all modules.
    assert list(failed(report)) == (["load with sdnq", "load with diffusers"] if recipe == "double" else [])
    parameters = sum(tensor.numel() for file in source.glob("*.safetensors") for tensor in load_file(file).values())
    assert report.parameters == parameters
    assert not any("missing" in note for note in report.notes)
    expected = 15 if "4" in FOREIGN[recipe]["weights_dtype"] else 20
    assert report.to_dict()["fidelity"]["sqnr_db"]["min"] > expected


def test_fidelity_is_what_numpy_says(lens_source: Path, lens_output: Path) -> None:
    notes = Notes()
    report = verify(lens_output, against=lens_source, checksums=True, reporter=notes).to_dict()["fidelity"]
    source, written = load_file(lens_source / WEIGHTS), load_file(lens_output / WEIGHTS)
    sizes = [file.stat().st_size for file in lens_output.iterdir() if file.name != "lensconv_manifest.json"]
    shown = [("hashing", sum(sizes)), ("comparing", sum(tensor.nbytes for tensor in source.values()))]
    assert [(progress.label, progress.done) for progress in notes.shown] == shown
    ratios, cosines, largest = {}, {}, 0.0
    for module in [name.removesuffix(".scale") for name in written if name.endswith(".scale")]:
        packed = written[f"{module}.weight"].numpy()
        codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(-1, 64).astype(np.float32)
        factors = [written[f"{module}.{part}"].float().numpy().reshape(-1, 1) for part in ("scale", "zero_point")]
        # SDNQ computes in the dtype of its scales, which is what a model that is loaded has.
        restored = torch.from_numpy(codes * factors[0] + factors[1]).bfloat16().double().numpy().reshape(-1)
        wanted = source[f"{module}.weight"].double().numpy().reshape(-1)
        ratios[module] = 10 * math.log10((wanted**2).sum() / ((restored - wanted) ** 2).sum())
        cosines[module] = float(wanted @ restored / np.linalg.norm(wanted) / np.linalg.norm(restored))
        largest = max(largest, float(np.abs(restored - wanted).max()))
    assert report["sqnr_db"]["min"] == pytest.approx(min(ratios.values()), abs=1e-4)
    assert report["sqnr_db"]["median"] == pytest.approx(float(np.median(list(ratios.values()))), abs=1e-4)
    assert report["cosine_min"] == pytest.approx(min(cosines.values()), abs=1e-7)
    assert report["max_abs_error"] == pytest.approx(largest, rel=1e-5)
    assert [module["name"] for module in report["worst"]] == sorted(ratios, key=ratios.__getitem__)[:10]
    # Half a step is the rounding of codes; the rest that of scales, zero points and results to bfloat16.
    assert 0.5 < report["max_error_steps"] < 0.75


def drop(*names: str) -> Damage:
    return change_tensors(lambda tensors: [tensors.pop(name) for name in names])


def replace(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Damage:
    return change_tensors(lambda tensors: tensors.update({name: change(tensors[name])}))


KEPT, LAST = "proj_out.bias", "proj_out.weight"
TRIO = ("weight", "scale", "zero_point")
WEIGHT, SCALE, ZERO_POINT = f"{QKV}.weight", f"{QKV}.scale", f"{QKV}.zero_point"
QUANTIZED_MODULATION = {
    f"{MOD}.weight": torch.zeros(1152 * 192 // 2, dtype=torch.uint8),
    f"{MOD}.scale": torch.ones(1152, 3, 1, dtype=torch.bfloat16),
    f"{MOD}.zero_point": torch.ones(1152, 3, 1, dtype=torch.bfloat16),
}


def drop_modulation(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if "_mod." in name]:
        del tensors[name]


def restore_linear(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[f"{OUT}.scale"], tensors[f"{OUT}.zero_point"]
    tensors[f"{OUT}.weight"] = torch.ones(192, 192, dtype=torch.bfloat16)


#: Damages that headers and small files show.
VISIBLE: dict[str, Damage] = (
    {"no zero point": drop(ZERO_POINT), "no scale": drop(SCALE), "no weight": drop(WEIGHT)}
    | {"no bias": drop(f"{QKV}.bias"), "no kept tensor": drop(LAST)}
    | {"one too many": change_tensors(lambda t: t.update(extra=torch.ones(3)))}
    | {"a module too many": change_tensors(lambda t: t.update({f"more.{p}": t[f"{QKV}.{p}"].clone() for p in TRIO}))}
    | {"a factor too many": change_tensors(lambda t: t.update({f"{QKV}.svd_up": torch.ones(576, 8)}))}
    | {"a scale of another shape": replace(SCALE, lambda t: t.reshape(3, 576, 1))}
    | {"a flat scale": replace(SCALE, lambda t: t.reshape(1728)), "half a weight": replace(WEIGHT, lambda t: t[::2])}
    | {"a weight of signed bytes": replace(WEIGHT, lambda t: t.view(torch.int8))}
    | {"a scale in F16": replace(SCALE, lambda t: t.half())}
    | {"a kept tensor of another shape": replace(LAST, lambda t: t.reshape(192, 128))}
    | {"modulation in codes without a scale": replace(f"{MOD}.weight", lambda t: t.to(torch.uint8))}
    | {"no modulation": change_tensors(drop_modulation)}
    | {"a kept tensor in F8": replace(KEPT, lambda t: t.to(torch.float8_e4m3fn))}
    | {"a kept tensor in integers": replace(KEPT, lambda t: t.to(torch.int32))}
    | {"a scale without its weight": drop(WEIGHT, ZERO_POINT)}
    | {"modulation quantized": change_tensors(lambda t: t.update(QUANTIZED_MODULATION))}
    | {"modulation of scales": change_tensors(lambda t: (t.update(QUANTIZED_MODULATION), t.pop(f"{MOD}.weight")))}
    | {"embeddings quantized": change_config(quant_embedding=True, group_size=32)}
    | {"a linear that was not quantized": change_tensors(restore_linear)}
    | {"another group size": change_config(group_size=32), "another dtype": change_config(weights_dtype="int8")}
    | {"a float of no bits": change_config(weights_dtype="fp0"), "nobody's": change_config(weights_dtype="nf4")}
    | {"a name of no weight": change_config(modules_dtype_dict={"int8": ["gone.weight"]}, group_size=32)}
    | {"float32 scales in the config": change_config(dequantize_fp32=True)}
    | {"excluded in the config": change_config(modules_to_not_convert=["attn"])}
    | {"nothing excluded": change_config(modules_to_not_convert=[])}
    | {"another method": change_config(quant_method="gptq")}
    | {"configs that disagree": change_config("config.json", group_size=128, other=1)}
    | {"a stray shard": lambda folder, _: save_file(LINEAR, folder / "old-00001-of-00002.safetensors")}
    | {"a lost file": lambda folder, _: (folder / "quantization_config.json").unlink()}
)


def test_damage_that_headers_show(lens_output: Path, tmp_path: Path) -> None:
    text = ""
    for damage, break_it in VISIBLE.items():
        folder = shutil.copytree(lens_output, tmp_path / damage)
        break_it(folder, load_file(folder / WEIGHTS))
        report = verify(folder)
        notes = [f"note: {note}" for note in report.notes]
        text += " | ".join([damage, *(f"{name}: {detail}" for name, detail in failed(report).items()), *notes]) + "\n"
    check_expected("damage.txt", text)


def exchange(tensors: dict[str, torch.Tensor], one: str, other: str) -> None:
    tensors[one], tensors[other] = tensors[other], tensors[one]


#: Damages inside the weights, and those that headers show, after which the rest is still compared.
HIDDEN: dict[str, Damage] = (
    {"a bit of a kept tensor": change_tensors(lambda t: t[LAST].view(torch.int16)[3, 4].add_(1))}
    | {"codes": change_tensors(lambda t: t[WEIGHT][7:5000].bitwise_xor_(15))}
    | {"a scale": change_tensors(lambda t: t[SCALE][3].mul_(16))}
    | {"scales and zero points exchanged": change_tensors(lambda t: exchange(t, SCALE, ZERO_POINT))}
    | {"a scale that is NaN": change_tensors(lambda t: t[SCALE][3].fill_(math.nan))}
    | {"two weights exchanged": change_tensors(lambda t: exchange(t, WEIGHT, f"{BLOCK}.attn.txt_qkv.weight"))}
)
SHOWN = ("no zero point", "one too many", "a kept tensor of another shape", "a kept tensor in F8", "another dtype")


def test_damage_that_the_source_shows(
    lens_source: Path, lens_output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("converter.verification.fidelity.PIECE_ELEMENTS", 1000)
    text = ""
    for damage, break_it in (HIDDEN | {name: VISIBLE[name] for name in (*SHOWN, "a weight of signed bytes")}).items():
        folder = shutil.copytree(lens_output, tmp_path / damage)
        break_it(folder, load_file(folder / WEIGHTS))
        assert verify(folder).ok == (damage in HIDDEN)
        report = verify(folder, against=lens_source, fail_under_sqnr=15, checksums=True)
        found = [f"{name}: {detail}" for name, detail in failed(report).items() if name != "manifest"]
        jsonschema.validate(result := json.loads(json.dumps(report.to_dict(), allow_nan=False)), load_schema("verify"))
        unknown = [f"no {name}" for name, value in result["fidelity"].items() if value is None]
        compared = sum(family["modules"] for family in result["fidelity"]["families"])
        text += " | ".join([f"{damage}: {compared} compared", *found, *unknown]) + "\n"
    check_expected("hidden.txt", text)


def test_an_index_that_disagrees(tmp_path: Path, lens_source: Path, folder: Path) -> None:
    # One file can have an index, too.
    weight_map = dict.fromkeys(load_file(folder / WEIGHTS), WEIGHTS)
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "lensconv_manifest.json").unlink()
    assert verify(folder).ok
    convert(lens_source, tmp_path / "sharded", options=ConvertOptions(shard_bytes=300_000))
    index = tmp_path / "sharded" / f"{WEIGHTS}.index.json"
    assert verify(index.parent).checks[0].detail == "10 files and their index agree"
    content = json.loads(index.read_text())
    missing = content["weight_map"].pop("proj_out.bias")
    index.write_text(json.dumps(content))
    assert "proj_out.bias" in failed(verify(index.parent))["index"]
    content["weight_map"]["proj_out.bias"] = missing
    content["metadata"]["total_size"] = 1
    index.write_text(json.dumps(content))
    assert any("the index says 1 bytes" in note for note in verify(index.parent).notes)
    forget_file(index.parent, index.name)
    assert f"{index.name} is not listed" in failed(verify(index.parent))["manifest"]


def test_the_recipe_is_checked_by_headers(lens_source: Path, lens_output: Path, tmp_path: Path) -> None:
    said = failed(verify(lens_output, recipe="sdnq-uint4"))["recipe"]
    assert said.startswith(f"{MOD}.scale is missing; {MOD}.zero_point is missing; ")
    convert(lens_source, tmp_path / "out", "sdnq-uint4")
    report = verify(tmp_path / "out", recipe="lens-uint4-static")
    said = f"use_quantized_matmul; {MOD}.scale is unexpected; {MOD}.zero_point is unexpected; and 50 more"
    assert failed(report).keys() == {"recipe"}
    assert failed(report)["recipe"].endswith(f"recipe on dequantize_fp32, quantized_matmul_dtype, {said}")
    said = failed(verify(lens_output, recipe=Recipe("wide", {**LENS_OPTIONS, "dequantize_fp32": True})))["recipe"]
    assert f"; {SCALE} is BF16 [576, 3, 1], should be F32 [576, 3, 1]; " in said
    assert "modulation layers are quantized, which causes periodic artifacts in images" in report.notes
    assert verify(tmp_path / "out", against=lens_source, recipe=Recipe("r", {"weights_dtype": "uint4"})).checks[-1].ok


@pytest.mark.parametrize(
    "name", ["FluxTransformer2DModel", "T5EncoderModel", "Qwen3ForCausalLM", "Qwen2_5_VLForConditionalGeneration"]
)
def test_the_recipe_of_another_class_is_checked_without_its_source(name: str, tmp_path: Path) -> None:
    """Of models with tied weights too, and of those that transformers renames when it saves them."""
    output = convert_default(save_model(tmp_path / "source", name), tmp_path / "out")
    report = verify(output, recipe="sdnq-uint4")
    assert report.ok, failed(report)
    tensors = sum(component.tensors for component in report.components)
    assert report.checks[-1].detail == f"all {tensors} tensors are as recipe sdnq-uint4 makes them"
    assert failed(verify(output, recipe="sdnq-int8")).keys() == {"recipe"}
    (file,) = output.glob("*.safetensors")
    content = load_file(file)
    gone, longer = [key for key, tensor in content.items() if "norm" in key and tensor.ndim == 1][:2]
    del content[gone]
    content[longer] = torch.cat([content[longer]] * 2)
    save_file(content, file, metadata={"format": "pt"})
    size = content[longer].numel()
    expected = f"{gone} is missing; {longer} is BF16 [{size}], should be BF16 [{size // 2}]"
    assert failed(verify(output, recipe="sdnq-uint4"))["recipe"] == expected


def test_what_cannot_be_asked(lens_source: Path, lens_output: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--against"):
        verify(lens_output, fail_under_sqnr=10)
    with pytest.raises(UsageError, match="depend on the weights"):
        verify(lens_output, recipe=Recipe("r", {"weights_dtype": "uint4", "use_dynamic_quantization": True}))
    with pytest.raises(UnsupportedCheckpoint, match="no quantized modules"):
        verify(lens_source, against=lens_source)
    flux = save_model(tmp_path / "flux", "FluxTransformer2DModel", num_layers=1, num_single_layers=1)
    convert(flux, tmp_path / "out")
    assert "recipe" not in failed(verify(tmp_path / "out", against=flux, recipe="sdnq-uint4"))
    with pytest.raises(UnsupportedCheckpoint, match="Flux"):
        verify(tmp_path / "out", against=lens_source)
    (tmp_path / "out" / "lensconv_manifest.json").unlink()
    with pytest.raises(UsageError, match="manifest"):
        verify(tmp_path / "out", checksums=True)
    (tmp_path / "out" / "config.json").unlink()
    assert failed(verify(tmp_path / "out", against=flux)) == {"config": "config.json names no class"}
    with pytest.raises(UsageError, match="--recipe needs --against SOURCE for weights without a config"):
        verify(tmp_path / "out", recipe="sdnq-uint4")


def test_another_source_is_far(lens_source: Path, lens_output: Path, tmp_path: Path) -> None:
    other = shutil.copytree(lens_source, tmp_path / "source")
    replace(WEIGHT, lambda t: t * 1.5)(other, load_file(other / WEIGHTS))
    report = verify(lens_output, against=other)
    assert failed(report).keys() == {"near source"}
    assert f"{QKV} (" in failed(report)["near source"]
    # Zeros are restored exactly, and are far from all else.
    replace(WEIGHT, torch.zeros_like)(other, load_file(other / WEIGHTS))
    convert(other, tmp_path / "out")
    figures = [verify(tmp_path / "out", against=source).to_dict()["fidelity"] for source in (other, lens_source)]
    assert [figure["cosine_min"] > 0.9 for figure in figures] == [True, False]


def test_the_config_is_compared_with_the_source(lens_source: Path, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "axes_dims_rope": [16, 24, 24], "_name_or_path": "x"}))
    report = verify(folder, against=lens_source)
    assert failed(report)["config of the source"].endswith("disagree on axes_dims_rope")
    incidental = ("dtype", "torch_dtype", "quantization_config", "transformers_version", "_name_or_path")
    one, other = dict.fromkeys((*incidental, "b", "c"), 1), dict.fromkeys((*incidental, "b"), 2)
    first, second = {"A": 1, "a": one, "e": {}}, {"A": 2, "a": other, "d": 4, "e": 5}
    assert differing_entries(first, second) == differing_entries(second, first) == ["A", "a.b", "e"]
    lists = {"modules_to_not_convert": [1, 2], "modules_to_not_use_matmul": [1, 2], "modules_dtype_dict": {"x": [1, 2]}}
    assert differing_options(lists, json.loads(json.dumps(lists).replace("[1, 2]", "[2, 1]"))) == ""
    assert (shown([1]), shown("x" * 81), shown(None)) == ("a list", "x" * 80, "None")
    (folder / "config.json").write_text('{"quantization_config": []}')
    with pytest.raises(MalformedCheckpoint, match="its quantization_config is not an object"):
        Audit(folder)


def test_the_recipe_is_compared_with_the_config(lens_source: Path, folder: Path) -> None:
    # The tensors are the same with and without.
    placement = {"sdnq_version": "0.1", "quantization_device": "x", "return_device": "x", "non_blocking": True}
    change_config(use_quantized_matmul=False)(folder, {})
    report = verify(folder, recipe="lens-uint4-static")
    assert "disagrees with the recipe on use_quantized_matmul" in failed(report)["recipe"]
    recipe = Recipe("mine", {"weights_dtype": "uint4", "dequantize_fp32": False, "svd_rank": 16})
    assert "svd_rank" in failed(verify(folder, against=lens_source, recipe=recipe))["recipe"]
    change_config(**placement)(folder, {})
    said = failed(verify(folder, recipe=recipe))["recipe"]
    assert [option for option in placement if option in said] == []


def test_source_and_output_may_be_pipelines_or_not(
    lens_source: Path, lens_output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = {"_class_name": "P"} | {name: ["x", "y"] for name in ("transformer", "vae", "dit", "unet")}
    source, output = tmp_path / "Lens", tmp_path / "out"
    for pipeline, component in ((source, lens_source), (output, lens_output)):
        shutil.copytree(component, pipeline / "dit")
        (pipeline / "model_index.json").write_text(json.dumps(index))
    (source / "transformer").mkdir()
    (source / "transformer" / "config.json").write_text('{"_class_name": "Flux"}')
    reports = [verify(lens_output, against=x, recipe="lens-uint4-static") for x in (source, lens_source / WEIGHTS)]
    reports += [verify(output, components=["dit"], against=x) for x in (lens_source, source)]
    # Of several components of the class, that of the folder's name is meant; without one, the denoiser.
    for name in ("vae", "unet"):
        shutil.copytree(lens_source, source / name)
        replace(WEIGHT, lambda t: t * 1.5)(source / name, load_file(lens_source / WEIGHTS))
    monkeypatch.chdir(output / "dit")
    reports += [verify(folder, against=source) for folder in (output / "dit", Path())]
    assert not verify(lens_output, against=source).ok
    shutil.copy(lens_source / WEIGHTS, source / "unet")
    reports.append(verify(lens_output, against=source))
    assert [failed(report) for report in reports if not report.ok] == []


def test_a_file_without_its_config(lens_source: Path, lens_output: Path, tmp_path: Path) -> None:
    file = tmp_path / "lens-small.safetensors"
    shutil.copy(lens_output / WEIGHTS, file)
    assert {"config", "quantized"} <= failed(verify(lens_source)).keys(), "it is not quantized"
    assert failed(verify(file)).keys() == {"config"}
    assert not any("sdnq_version" in note for note in verify(file).notes)
    with pytest.raises(UsageError, match="without a config"):
        verify(file, recipe="lens-uint4-static")
    with pytest.raises(UnsupportedCheckpoint, match=r"has no config\.json, which loaders need"):
        verify(file, load=True)
    shutil.copy(lens_output / "quantization_config.json", tmp_path)
    report = verify(file, against=lens_source)
    assert report.ok, failed(report)
    assert {"names", "config of the source"}.isdisjoint(check.name for check in report.checks)
    only = "only quantization_config.json contains the quantization config; some loaders read config.json"
    assert (report.notes[0], report.notes[-1]) == (only, "no config.json next to the weights")


@pytest.mark.parametrize(("dtype", "name"), [(torch.float16, "F16"), (torch.float32, "F32")])
def test_models_that_were_not_in_bfloat16(dtype: torch.dtype, name: str, lens_source: Path, tmp_path: Path) -> None:
    quantizer, loader = load_library("sdnq.quantizer"), load_library("sdnq.loader")
    model = model_class("LensTransformer2DModel").from_pretrained(lens_source, torch_dtype=dtype)
    config = quantizer.SDNQConfig(**{**LENS_OPTIONS, "modules_to_not_convert": ["*.img_mod.*", "*.txt_mod.*"]})
    loader.save_sdnq_model(quantizer.sdnq_post_load_quant(model, quantization_config=config), str(tmp_path / "out"))
    report = verify(tmp_path / "out", against=lens_source)
    assert report.ok, failed(report)
    assert f"8 tensors of modulation layers are {name}, not BF16" in report.notes


def test_what_headers_show_of_other_classes(tmp_path: Path) -> None:
    """Each case has tensors beside those of a linear, as dtype and shape, and options; some of types that cannot be."""

    def outcome(name: str, tensors: dict[str, str], options: dict[str, Any]) -> str:
        made = {key: text.split() for key, text in tensors.items()}
        ones = {key: torch.ones([*map(int, shape)]).to(getattr(torch, dtype)) for key, (dtype, *shape) in made.items()}
        folder = write_checkpoint(tmp_path / name, {**LINEAR, **ones}, "MimiModel", **options)
        try:
            report = verify(folder)
        except MalformedCheckpoint as error:
            return error.message.replace(f"{folder}: ", "")
        found = [f"{check}: {detail}" for check, detail in failed(report).items()] + [*report.notes[2:-1]]
        return " | ".join([f"{report.quantized_modules} of {report.parameters}", *found])

    check_cases("others.jsonl", outcome)
    assert verify(tmp_path / "sound").checks[5].detail == "none"


def test_what_a_checkpoint_says_of_itself_is_shown_escaped(lensconv: Lensconv, tmp_path: Path) -> None:
    escape = "\x1b[2J\x07" + "x" * 500
    options = {"weights_dtype": escape, "modules_to_not_convert": [escape + "+*"], escape: 1}
    folder = write_checkpoint(tmp_path / "one", {**LINEAR, f"{escape}.scale": torch.ones(3)}, escape, **options)
    weight_map = dict.fromkeys([*LINEAR, f"{escape}.scale"], WEIGHTS)
    index = {"metadata": {"total_size": escape}, "weight_map": weight_map}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    for method in (escape, "sdnq"):
        (folder / "quantization_config.json").write_text(json.dumps({**options, "quant_method": method}))
        outcome = lensconv("verify", folder)
        assert outcome.code == 1
        assert [text for text in ("\x1b[2J", "\x07", "x" * 300) if text in outcome.stderr] == []
    shown = lensconv("verify", write_checkpoint(tmp_path / "two", LINEAR, "")).stderr
    parts = ("unknown class, 4,096 parameters", "\n  note  no manifest: ", "\nNot sound. Failed: config.\n")
    assert [text for text in parts if text not in shown] == []


def test_a_pattern_that_cannot_be_judged_is_noted(folder: Path) -> None:
    excluded = json.loads((folder / "quantization_config.json").read_text())["modules_to_not_convert"]
    hostile = [f"(a+)+*${number}" for number in range(5)]
    lists: dict[str, Any] = {"modules_to_not_convert": [*excluded, *hostile[:2], "*a" * 12 + "*b"]}
    lists |= {"modules_to_not_use_matmul": [hostile[2]], "modules_quant_config": {hostile[3]: {}}}
    change_config(**lists, modules_dtype_dict={"int8": [hostile[4]]})(folder, {})
    (folder / "lensconv_manifest.json").unlink()
    report = verify(folder)
    assert report.ok, failed(report)
    (note,) = (note for note in report.notes if "too complex to check" in note)
    assert note.endswith(": (a+)+*$0; (a+)+*$1; (a+)+*$2; and 2 more")


def test_what_sdnq_cannot_restore(lens_source: Path, lens_output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("Bad in-place call")

    monkeypatch.setattr("converter.verification.fidelity.dequantize", fail)
    with pytest.raises(UnsupportedCheckpoint, match=r"SDNQ cannot dequantize .*attn.*: Bad in-place"):
        verify(lens_output, against=lens_source)


def test_options_that_are_not_those_of_the_weights(lens_source: Path, folder: Path) -> None:
    change_config(use_hadamard=True)(folder, {})
    assert "near source" in failed(verify(folder, against=lens_source))
    sound = {"weights_dtype": "uint4", "quantized_matmul_dtype": None}
    for option, wrong in (("weights_dtype", "nf4"), ("quantized_matmul_dtype", "int99")):
        change_config(**sound | {option: wrong})(folder, {})
        with pytest.raises(UnsupportedCheckpoint, match="SDNQ cannot use this quantization config"):
            verify(folder, against=lens_source)


def test_two_reports_of_an_audit_are_the_same(folder: Path) -> None:
    (folder / "lensconv_manifest.json").unlink()
    audit = Audit(folder)
    assert make_report([audit]) == make_report([audit])
    assert (len(make_report([audit]).notes), make_report([audit]).fidelity) == (1, {})
    # A name that loaders do not look for is noted.
    save_file(load_file(folder / WEIGHTS), folder / "lens.safetensors")
    (folder / WEIGHTS).unlink()
    (folder / "lens.safetensors").chmod(0o640)
    assert verify(folder).notes[1:] == (
        "the header of lens.safetensors lacks the metadata format=pt; transformers refuses it",
        "the permissions of lens.safetensors let only its owner or group read it (`chmod a+r`)",
        "loaders look for diffusion_pytorch_model or model, not for lens",
    )


def module(name: str, value: float) -> ModuleFidelity:
    return ModuleFidelity(name, "attn", value, value, value, value, 1.0, value, 0.5)


def test_figures_do_not_depend_on_where_a_weight_that_is_no_number_stands() -> None:
    sound, broken = module("a", 0.9), module("b", math.nan)
    assert Fidelity((), (sound, module("c", 0.7))).to_dict()["sqnr_db"] == {"min": 0.7, "median": pytest.approx(0.8)}
    assert [*Fidelity((), ()).to_dict().values()] == [{"min": None, "median": None}, 0.0, None, 1.0, [], []]
    assert [bad["name"] for bad in Fidelity((), (module("b", 1), module("a", 1))).to_dict()["worst"]] == ["a", "b"]
    for modules in ((sound, broken), (broken, sound)):
        figures = Fidelity((), modules).to_dict()
        assert figures["sqnr_db"] == {"min": None, "median": None}
        assert figures["max_abs_error"] is figures["cosine_min"] is figures["max_error_steps"] is None
        assert figures["families"][0]["cosine_min"] is None
        assert figures["worst"][0]["name"] == "b"


def test_loading_compares_every_parameter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loader that gets one number wrong is found out."""
    loader = load_library("sdnq.loader")
    original = loader.load_sdnq_model

    def careless(*arguments: Any, **options: Any) -> Any:
        model = original(*arguments, **options)
        model.proj_out.weight.data[0, 0] += 1
        return model

    monkeypatch.setattr(loader, "load_sdnq_model", careless)
    report = verify(folder, load=True)
    assert "proj_out.weight" in failed(report)["load with sdnq"]
    assert "load with diffusers" not in failed(report)
    change_tensors(lambda tensors: tensors.update(extra=tensors.pop(KEPT)))(folder, load_file(folder / WEIGHTS))
    found = failed(verify(folder, load=True))
    assert found["load with diffusers"] == f"{KEPT} was not loaded; extra is not in the loaded model"
    assert found["load with sdnq"].startswith("RuntimeError: Error(s) in loading state_dict for Lens")


def test_what_the_library_changes_in_a_config_when_it_saves_it_may_differ(tmp_path: Path) -> None:
    """transformers ties the embeddings of T5's encoder, though the published config says that they are not tied."""
    source = save_model(tmp_path / "source", "T5EncoderModel")
    edit_json(source / "config.json", tie_word_embeddings=False)
    convert(source, tmp_path / "out", "sdnq-uint4")
    assert read_json(tmp_path / "out" / "config.json")["tie_word_embeddings"] is True
    report = verify(tmp_path / "out", against=source)
    assert report.ok, failed(report)
    edit_json(tmp_path / "out" / "config.json", relative_attention_num_buckets=16)
    said = failed(verify(tmp_path / "out", against=source))["config of the source"]
    assert said == "config.json and the source's disagree on relative_attention_num_buckets"
