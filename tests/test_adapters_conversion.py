"""Conversions with LoRA adapters: the bytes that diffusers and SDNQ give if the adapters are merged in float32."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from safetensors.torch import load_file

from converter import AdapterChoice, ConvertOptions, Recipe, convert, make_card, plan, verify
from converter.checkpoint.staging import Staging
from converter.conversion.adapters import weights as adapter_weights
from converter.conversion.release.manifest import Manifest
from converter.errors import AdapterError, MalformedCheckpoint, MemoryLimitError, OutputError
from converter.schemas import load_schema
from tests import lora_files, reference
from tests.conftest import call, names_in, snapshot
from tests.lora_files import Tensors, alphas_of, factors, kohya, paths_of, prefixed, write
from tests.reporters import Notes
from tests.test_resume import Interruption, interrupt_after
from tests.tiny_models import DIFFUSERS, build_model

#: Classes of the models, by component, and the pipeline's class.
LENS = {"transformer": "LensTransformer2DModel"}, "LensPipeline"
FLUX = {"transformer": "FluxTransformer2DModel"}, "FluxPipeline"
SDXL = {"unet": "UNet2DConditionModel", "text_encoder": "CLIPTextModel"}, "StableDiffusionXLPipeline"
LAYOUTS = {"lens": LENS, "flux": FLUX, "sdxl": SDXL}
SCALES = (1.0, -0.4)


def save_pipeline(folder: Path, models: Mapping[str, Any], pipeline_class: str) -> Path:
    """Write models as the components of a pipeline; returns the folder."""
    index: dict[str, Any] = {"_class_name": pipeline_class}
    for name, model in models.items():
        model.save_pretrained(folder / name)
        class_name = type(model).__name__
        index[name] = ["diffusers" if class_name in DIFFUSERS else "transformers", class_name]
    (folder / "model_index.json").write_text(json.dumps(index))
    for file in folder.rglob("*.*"):
        # safetensors leaves 0600, which a release could not share.
        file.chmod(0o644)
    return folder


def build(name: str, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """The models of a layout."""
    classes, _ = LAYOUTS[name]
    if name == "lens":
        return {"transformer": lora_files.build_lens().to(dtype)}
    return {component: build_model(class_name).to(dtype) for component, class_name in classes.items()}


def quantized_and_kept(model: Any) -> list[str]:
    """Paths of modules of every kind: every third, and the first and the last."""
    paths = paths_of(model)
    return [*paths[::3], paths[-1]]


def make_adapters(folder: Path, name: str, models: Mapping[str, Any]) -> list[AdapterChoice]:
    """Two adapters for all components of a layout: one in float32 in PEFT's names, the other in bfloat16."""
    files: list[Tensors] = [{}, {}]
    for component, model in models.items():
        paths = quantized_and_kept(model)
        alphas = {} if name == "sdxl" else alphas_of([f"{component}.{path}" for path in paths], 5.0)
        if component == "text_encoder":
            paths = [path for path in paths_of(model) if path.endswith(("q_proj", "out_proj", "fc1"))]
        files[0] |= prefixed(factors(model, paths, 1), component) | alphas
        files[1] |= prefixed(factors(model, paths[1:], 2, torch.bfloat16), component)
    return [
        AdapterChoice(write(folder / f"{number}.safetensors", tensors), scale)
        for number, (tensors, scale) in enumerate(zip(files, SCALES, strict=True))
    ]


def fuse(name: str, models: Mapping[str, Any], choices: Sequence[AdapterChoice]) -> None:
    """Let diffusers merge adapters into models."""
    if name == "lens":
        pipeline = lora_files.lens_pipeline(models["transformer"])
    else:
        pipeline = lora_files.pipeline_of(LAYOUTS[name][1], **models)
    lora_files.fuse(pipeline, choices)


def assert_equal(output: Path, expected: Path) -> None:
    """Compare a component with what SDNQ saved: weights by their bytes, configs by their content."""
    assert reference.weight_files(output) == reference.weight_files(expected)
    assert reference.read_configs(output) == reference.read_configs(expected)


RECIPES = reference.RECIPES | reference.FURTHER_RECIPES
CASES = [
    *[(name, recipe) for name in LAYOUTS for recipe in ("uint4", "int8")],
    *[("flux", "svd"), ("flux", "dynamic"), ("flux", "stochastic"), ("lens", "dynamic-svd")],
    ("sdxl", "int6-convolutions-embeddings"),
]


@pytest.mark.parametrize(("name", "recipe"), CASES)
def test_the_bytes_are_those_of_merging_in_float32_and_of_sdnq(name: str, recipe: str, tmp_path: Path) -> None:
    models = build(name)
    classes, pipeline_class = LAYOUTS[name]
    source = save_pipeline(tmp_path / "source", models, pipeline_class)
    choices = make_adapters(tmp_path, name, models)
    options = ConvertOptions(components=tuple(classes), adapters=tuple(choices), jobs=2)
    report = convert(source, tmp_path / "out", Recipe("mine", RECIPES[recipe], seed=3), options)
    convert(source, tmp_path / "plain", Recipe("mine", RECIPES[recipe], seed=3), ConvertOptions(tuple(classes)))
    fuse(name, models, choices)
    fused = save_pipeline(tmp_path / "fused", models, pipeline_class)
    for component, class_name in classes.items():
        expected = reference.convert_with_sdnq(
            fused / component, tmp_path / "sdnq" / component, class_name, RECIPES[recipe], seed=3
        )
        assert_equal(tmp_path / "out" / component, expected)
        plain = reference.weight_files(tmp_path / "plain" / component)
        assert plain != reference.weight_files(tmp_path / "out" / component)
    manifest = json.loads((tmp_path / "out" / "lensconv_manifest.json").read_text())
    jsonschema.validate(manifest, load_schema("manifest"))
    for component in manifest["components"]:
        described = component["source"]["adapters"]
        assert [(each["name"], each["scale"]) for each in described] == [
            ("0.safetensors", 1.0),
            ("1.safetensors", -0.4),
        ]
    assert report.tensors > 0


def flux_of_kohya(folder: Path) -> tuple[Path, dict[str, Any], AdapterChoice]:
    """A FLUX pipeline, its models, and an adapter in kohya's format, whose tensors a converter makes."""
    models = build("flux")
    sizes = lora_files.flux_sizes(models["transformer"].inner_dim, 2, 2)
    # diffusers knows the parts of this layer in the published size only.
    sizes = {name: size for name, size in sizes.items() if "linear1" not in name}
    file = write(folder / "kohya.safetensors", lora_files.of_authors(sizes, "kohya"))
    return save_pipeline(folder / "source", models, "FluxPipeline"), models, AdapterChoice(file, 0.7)


def test_formats_that_are_converted_and_a_run_that_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, models, choice = flux_of_kohya(tmp_path)
    output, options = tmp_path / "out", ConvertOptions(adapters=(choice,), jobs=1)
    for count in (5, 9):
        with monkeypatch.context() as patches:
            interrupt_after(count, patches)
            with pytest.raises(Interruption):
                convert(source, output, options=options)
        assert (tmp_path / ".out.lensconv" / "adapters" / "adapter-0").is_file()
    # With so little memory for so many threads, tensors are read in pieces of few rows.
    least = least_memory(source, tmp_path / "x", options)
    report = convert(source, output, options=ConvertOptions(adapters=(choice,), jobs=99, memory=least))
    assert report.resumed_tensors >= 14
    assert names_in(tmp_path) == ["kohya.safetensors", "out", "source"]
    fuse("flux", models, [choice])
    fused = save_pipeline(tmp_path / "fused", models, "FluxPipeline") / "transformer"
    expected = reference.convert_with_sdnq(fused, tmp_path / "sdnq", "FluxTransformer2DModel", RECIPES["uint4"])
    assert_equal(output / "transformer", expected)
    assert snapshot(output) == snapshot(convert(source, tmp_path / "again", options=options).output)


def least_memory(source: Path, output: Path, options: ConvertOptions) -> int:
    """The least memory that a conversion allows, by what it says."""
    with pytest.raises(MemoryLimitError, match="too little") as caught:
        convert(source, output, options=replace(options, memory=1))
    return int(caught.value.hint.split()[-1].rstrip("."))


def test_the_memory_of_adapters_counts(tmp_path: Path) -> None:
    source, _, choice = flux_of_kohya(tmp_path)
    without = least_memory(source, tmp_path / "out", ConvertOptions())
    with_adapter = least_memory(source, tmp_path / "out", ConvertOptions(adapters=(choice,)))
    # One whole product is computed to see whether its blocks equal it.
    assert with_adapter > max(without, 128 * 128 * 4 * 6)
    planned = plan(source, options=ConvertOptions(adapters=(choice,), jobs=1))
    assert planned.peak_memory_bytes > plan(source, options=ConvertOptions(jobs=1)).peak_memory_bytes
    assert names_in(tmp_path) == ["kohya.safetensors", "source"]


def test_whole_products_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, _, choice = flux_of_kohya(tmp_path)
    options = ConvertOptions(adapters=(choice, choice), jobs=2)
    convert(source, tmp_path / "out", "sdnq-int8", options)
    monkeypatch.setattr(adapter_weights, "blocks_are_exact", lambda *_: False)
    with monkeypatch.context() as patches:
        interrupt_after(5, patches)
        with pytest.raises(Interruption):
            convert(source, tmp_path / "whole", "sdnq-int8", options)
    # The last bits of whole products may depend on the number of threads, so another number starts over.
    with monkeypatch.context() as patches:
        patches.setattr("converter.conversion.execution.work.library_threads", lambda: 77)
        assert convert(source, tmp_path / "whole", "sdnq-int8", options).resumed_tensors == 0
    assert snapshot(tmp_path / "whole") == snapshot(tmp_path / "out")


@pytest.mark.parametrize("changed", ["scale", "order", "file", "none"])
def test_other_adapters_are_another_conversion(changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = build("flux")
    source = save_pipeline(tmp_path / "source", models, "FluxPipeline")
    first, second = make_adapters(tmp_path, "flux", models)
    with monkeypatch.context() as patches:
        interrupt_after(5, patches)
        with pytest.raises(Interruption):
            convert(source, tmp_path / "out", options=ConvertOptions(adapters=(first, second)))
    others = {
        "scale": (first, replace(second, scale=0.5)),
        "order": (second, first),
        "file": (first, first),
        "none": (),
    }
    with pytest.raises(OutputError, match="LoRA adapters, their scales or their order") as caught:
        convert(source, tmp_path / "out", options=ConvertOptions(adapters=others[changed]))
    assert "--restart" in caught.value.hint


def test_an_adapter_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, _, choice = flux_of_kohya(tmp_path)
    note = Staging.note

    def changing(self: Staging, component: str, tensor: str, facts: Any) -> None:
        note(self, component, tensor, facts)
        choice.file.write_bytes(choice.file.read_bytes()[:-1] + b"x")

    monkeypatch.setattr(Staging, "note", changing)
    with pytest.raises(MalformedCheckpoint, match=r"kohya\.safetensors: was changed while it was read"):
        convert(source, tmp_path / "out", options=ConvertOptions(adapters=(choice,)))
    assert names_in(tmp_path) == ["kohya.safetensors", "source"]


def test_an_adapter_inside_the_output_is_not_deleted(tmp_path: Path) -> None:
    source, _, choice = flux_of_kohya(tmp_path)
    convert(source, tmp_path / "out")
    inside = write(tmp_path / "out" / "mine.safetensors", load_file(choice.file))
    (tmp_path / "link").symlink_to(inside)
    for file in (inside, tmp_path / "link"):
        options = ConvertOptions(adapters=(AdapterChoice(file),), overwrite=True)
        with pytest.raises(OutputError, match="which is read"):
            convert(source, tmp_path / "out", options=options)
    assert inside.is_file()


def test_a_lens_transformer_needs_no_pipeline(tmp_path: Path) -> None:
    """And sources in bfloat16 are widened before something is added."""
    models = build("lens", torch.bfloat16)
    source = save_pipeline(tmp_path / "source", models, "LensPipeline")
    choices = make_adapters(tmp_path, "lens", models)
    options = ConvertOptions(adapters=tuple(choices))
    convert(source, tmp_path / "whole", options=options)
    convert(source / "transformer", tmp_path / "alone", options=options)
    weights = reference.weight_files(tmp_path / "alone")
    assert weights == reference.weight_files(tmp_path / "whole" / "transformer")
    models["transformer"].float()
    fuse("lens", models, choices)
    fused = save_pipeline(tmp_path / "fused", models, "LensPipeline") / "transformer"
    expected = reference.convert_with_sdnq(fused, tmp_path / "sdnq", "LensTransformer2DModel", reference.LENS_OPTIONS)
    assert weights == reference.weight_files(expected)


def test_numbers_can_be_quantized_from_float32(tmp_path: Path) -> None:
    """The bytes are those of a conversion of what diffusers merged and saved in float32; so are biases."""
    models = build("flux")
    source = save_pipeline(tmp_path / "source", models, "FluxPipeline")
    model = models["transformer"]
    # PEFT cannot merge a bias into a module without one.
    paths = [path for path in paths_of(model) if model.get_submodule(path).bias is not None]
    tensors = factors(model, paths, 4)
    generator = torch.Generator().manual_seed(0)
    for path in paths:
        rows = model.get_submodule(path).weight.shape[0]
        tensors[f"{path}.lora_B.bias"] = torch.randn(rows, generator=generator)
    ranks = {path: len(tensors[f"{path}.lora_A.weight"]) for path in paths}
    config = {"r": lora_files.RANK, "lora_alpha": 5, "lora_bias": True, "target_modules": paths, "rank_pattern": ranks}
    config = {f"transformer.{key}": value for key, value in config.items()}
    metadata = {"lora_adapter_metadata": json.dumps(config)}
    choice = AdapterChoice(write(tmp_path / "x.safetensors", prefixed(tensors, "transformer"), metadata), 0.3)
    options = ConvertOptions(quantize_from="float32")
    convert(source, tmp_path / "out", options=replace(options, adapters=(choice,)))
    fuse("flux", models, [choice])
    fused = save_pipeline(tmp_path / "fused", models, "FluxPipeline")
    convert(fused, tmp_path / "expected", options=options)
    files = reference.weight_files(tmp_path / "out" / "transformer")
    assert files == reference.weight_files(tmp_path / "expected" / "transformer")


def test_names_for_components_that_are_not_converted(tmp_path: Path) -> None:
    models = build("sdxl")
    source = save_pipeline(tmp_path / "source", models, "StableDiffusionXLPipeline")
    choice, _ = make_adapters(tmp_path, "sdxl", models)
    options, notes = ConvertOptions(adapters=(choice,)), Notes()
    said = "tensors for text_encoder, to which nothing is added: text_encoder."
    convert(source, tmp_path / "out", options=options, reporter=notes)
    assert sum(said in text for text in notes.texts) == 1
    assert sum(said in text for text in plan(source, options=options).notes) == 1
    tensors = kohya(factors(models["unet"], paths_of(models["unet"])), "lora_unet_")
    only = AdapterChoice(write(tmp_path / "unet.safetensors", tensors))
    with pytest.raises(AdapterError, match="has tensors for unet only, and what is converted is text_encoder"):
        convert(source, tmp_path / "out2", options=ConvertOptions(("text_encoder",), adapters=(only,)))


def test_what_the_commands_refuse(tmp_path: Path) -> None:
    source, models, choice = flux_of_kohya(tmp_path)
    model, path = models["transformer"], "transformer_blocks.0.attn.to_q"
    good = prefixed(factors(model, [path]), "transformer")
    down, up = (f"transformer.{path}.lora_{part}.weight" for part in "AB")
    bad = {
        "names": ({name.replace("to_q", "to_z"): tensor for name, tensor in good.items()}, "Nearest: "),
        "ranks": (good | {up: torch.ones(128, 3)}, "ranks"),
        "none": ({"x": torch.ones(3)}, "is not a LoRA adapter"),
        "half": (good | {down.replace("to_q", "to_k"): good[down].clone()}, "has no lora_B"),
    }
    cases: list[tuple[Path, object, str]] = [
        (source, write(tmp_path / f"{name}.safetensors", tensors), words) for name, (tensors, words) in bad.items()
    ]
    cases += [(source, f"{choice.file}={scale}", "scale") for scale in ("0", "nan", "101")]
    cases += [
        (source, f"{choice.file}=much", "is not a number"),
        (source, tmp_path / "missing.safetensors", "No such file"),
    ]
    cases += [(source / "transformer", choice.file, "Give the pipeline repo")]
    for given, adapter, words in cases:
        for command in (["plan", given], ["convert", given, tmp_path / "out"]):
            outcome = call(*command, "--lora", adapter)
            assert outcome.code == 2, adapter
            assert words in outcome.stderr.replace("\n", " "), outcome.stderr
    assert not (tmp_path / "out").exists()
    assert call("plan", source, "--lora", f"{choice.file}=0.5", "--lora", choice.file, "--json").code == 0


def test_a_release_is_verified_against_the_source_and_the_adapters(tmp_path: Path) -> None:
    models = build("sdxl")
    source = save_pipeline(tmp_path / "source", models, "StableDiffusionXLPipeline")
    choices = make_adapters(tmp_path, "sdxl", models)
    names, release = ("unet", "text_encoder"), tmp_path / "release"
    convert(source, release, options=ConvertOptions(components=names, adapters=tuple(choices)))
    assert verify(release, against=source, adapters=choices).ok
    without = verify(release, against=source)
    assert {check.name for check in without.checks if not check.ok} == {"kept equal source", "near source"}
    said = "0.safetensors with scale 1, 1.safetensors with scale -0.4; unless the source contains it, name the files"
    assert sum(said in note for note in without.notes) == 2
    fuse("sdxl", models, choices)
    assert verify(release, against=save_pipeline(tmp_path / "fused", models, "StableDiffusionXLPipeline")).ok
    for others in (choices[::-1], choices[:1], [choices[0], replace(choices[1], scale=0.5)]):
        failed = [check for check in verify(release, against=source, adapters=others).checks if not check.ok]
        assert failed[0].name == "adapters"
        assert "the manifest names other adapters for unet: 0.safetensors with scale 1, 1.safe" in failed[0].detail
    assert call("verify", release, "--lora", choices[0].file).code == 2
    line = ("verify", release, "--against", source, "--lora", choices[0].file, "--lora", f"{choices[1].file}=-0.4")
    assert call(*line).code == 0


def test_the_card_names_the_adapters(tmp_path: Path) -> None:
    models = build("flux")
    source = save_pipeline(tmp_path / "source", models, "FluxPipeline")
    choices = make_adapters(tmp_path, "flux", models)
    convert(source, tmp_path / "out", options=ConvertOptions(adapters=tuple(choices)))
    make_card(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Before quantization, `0.safetensors` (scale `1`), then `1.safetensors` (scale `-0.4`) were added to" in card
    assert f"| LoRA | `1.safetensors`, scale `-0.4`, sha256 `{sha256(choices[1].file)}` |" in card


def test_manifests_with_bad_adapters(tmp_path: Path) -> None:
    source, _, choice = flux_of_kohya(tmp_path)
    convert(source, tmp_path / "out", options=ConvertOptions(adapters=(choice,)))
    content = json.loads((tmp_path / "out" / "lensconv_manifest.json").read_text())
    good = content["components"][0]["source"]["adapters"][0]
    bad: list[Any] = [{}, ["x"], [{}], *([{**good, key: value}] for key, value in (("scale", "1"), ("sha256", None)))]
    for adapters in bad:
        content["components"][0]["source"]["adapters"] = adapters
        with pytest.raises(MalformedCheckpoint):
            Manifest.parse(content)


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
