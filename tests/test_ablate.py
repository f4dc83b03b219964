"""Ablations of real models: variants, their figures against other commands, and what stops or damages a run."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import jsonschema
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from converter import AblateOptions, GenerateOptions, ablate, convert, open_checkpoint, verify
from converter.conversion.options import ConvertOptions
from converter.conversion.recipe.recipe import choose_recipe
from converter.conversion.request import open_request
from converter.errors import (
    MalformedCheckpoint,
    NonFiniteWeight,
    OutputError,
    RecipeError,
    UnsupportedCheckpoint,
    UsageError,
)
from converter.measurement.ablation.journal import JOURNAL_NAME
from converter.measurement.ablation.variants import builtin_variants, read_variants
from converter.measurement.evidence.files import read_evidence_folder
from converter.measurement.evidence.names import ABLATION_NAME
from converter.measurement.prompts.suite import PromptSuite, SuitePrompt
from converter.measurement.sensitivity.digest import weights_digest
from converter.schemas import load_schema
from converter.synthesis.synthesize import synthesize
from tests.conftest import Lensconv, command, snapshot

#: Small and few, so that an image takes a fraction of a second.
SMALL = GenerateOptions(device="cpu", steps=3, guidance=1.0, height=64, width=64)
SUITE = PromptSuite(
    "three",
    tuple(
        SuitePrompt(f"P{number}", f"Sign {number}", number, f'"{text}" in white on a red sign, snow', (text,))
        for number, text in enumerate(("LAKE 7", "MILL", "HARBOR"), 1)
    ),
)
#: Two variants besides the recipe, so that runs are short.
VARIANTS = """
[[variants]]
name = "all linear"
rules = []

[[variants]]
name = "attention in int8"

[[variants.rules]]
family = "attn"
weights_dtype = "int8"
"""


@pytest.fixture(scope="module")
def signs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ablate") / "Lens"
    synthesize(folder, preset="signs")
    return folder


@pytest.fixture(scope="module")
def variants_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("variants") / "variants.toml"
    file.write_text(VARIANTS)
    return file


@pytest.fixture(scope="module")
def drawn(signs: Path, variants_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole ablation, up to images."""
    output = tmp_path_factory.mktemp("drawn") / "evidence"
    options = AblateOptions(level="images", variants=variants_file, velocity_prompts=3, calls=2)
    assert ablate(signs, output, None, SUITE, options, SMALL).ok
    return output


def content_of(output: Path) -> dict[str, Any]:
    content: dict[str, Any] = read_evidence_folder(output)[ABLATION_NAME]
    return content


def named(content: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(variant for variant in content["variants"] if variant["name"] == name)
    return found


def test_built_in_variants_show_each_family_from_both_sides(signs: Path) -> None:
    target = open_request(signs, None, ConvertOptions()).main
    variants = {variant.name: variant for variant in builtin_variants(target.checkpoint, target.recipe)}
    families = ("attn", "img_mlp", "img_mod", "txt_mlp", "txt_mod")
    assert list(variants)[:2] == ["lens-uint4-static", "uint4, all linear"]
    everything = set(variants["uint4, all linear"].plan.modules)
    for name in families:
        alone = set(variants[f"uint4, {name} alone"].plan.modules)
        assert alone
        assert alone | set(variants[f"uint4, all but {name}"].plan.modules) == everything
        assert not alone & set(variants[f"uint4, all but {name}"].plan.modules)
        in_int8 = variants[f"int8, {name} alone"].plan.modules
        assert set(in_int8) == alone
        assert {module.options["weights_dtype"] for module in in_int8.values()} == {"int8"}
    assert set(variants["lens-uint4-static"].plan.modules) == everything - {
        source for source in everything if "_mod." in source
    }


def test_weights_are_those_that_convert_writes_and_verify_measures(signs: Path, tmp_path: Path) -> None:
    report = ablate(signs, tmp_path / "evidence")
    content = content_of(tmp_path / "evidence")
    assert report.content == content
    assert report.resumed == 0
    for variant in content["variants"][:2]:
        recipe = choose_recipe("lens-uint4-static", open_request(signs, None, ConvertOptions()).main.checkpoint)
        if variant["name"] != recipe.name:
            recipe = recipe.__class__(recipe.name, recipe.options)
        release = tmp_path / variant["name"].replace(" ", "-")
        made = convert(signs, release, recipe)
        assert variant["bytes"] == sum(made.components[0].bytes_by_dtype.values())
        fidelity = verify(release, against=signs).fidelity
        assert fidelity is not None
        assert variant["weights"]["sqnr_db_min"] == pytest.approx(fidelity["sqnr_db"]["min"], rel=1e-5)
        assert variant["weights"]["cosine_min"] == pytest.approx(fidelity["cosine_min"], abs=1e-8)
        families = {family["name"]: family for family in variant["weights"]["families"]}
        for expected in fidelity["families"]:
            assert families[expected["name"]]["modules"] == expected["modules"]
        assert variant["sha256"] == weights_digest(open_checkpoint(release))
    blocks = [block["name"] for block in content["variants"][0]["weights"]["blocks"]]
    assert blocks == [f"transformer_blocks.{number}" for number in range(4)]


@pytest.mark.long
def test_a_variant_with_searched_scales_is_the_release_with_them(signs: Path, tmp_path: Path) -> None:
    file = tmp_path / "variants.toml"
    file.write_text('[[variants]]\nname = "searched"\nrounding = "scale"\n')
    plain, searched = ablate(signs, tmp_path / "evidence", options=AblateOptions(variants=file)).content["variants"]
    assert searched["bytes"] == plain["bytes"]
    assert searched["weights"]["sqnr_db"] > plain["weights"]["sqnr_db"]
    assert searched["recipe"]["rounding"] == "scale"
    convert(signs, tmp_path / "release", options=ConvertOptions(rounding="scale"))
    assert searched["sha256"] == weights_digest(open_checkpoint(tmp_path / "release"))


@pytest.mark.long
def test_every_level_is_measured_and_agrees(drawn: Path) -> None:
    content = content_of(drawn)
    assert [variant["name"] for variant in content["variants"]] == [
        "lens-uint4-static",
        "all linear",
        "attention in int8",
    ]
    for variant in content["variants"]:
        velocity = variant["velocity"]
        assert [prompt["id"] for prompt in velocity["prompts"]] == ["P1", "P2", "P3"]
        assert all(len(prompt["calls"]) == 2 for prompt in velocity["prompts"])
        assert velocity["error"] == pytest.approx(fmean(prompt["error"] for prompt in velocity["prompts"]), rel=1e-4)
        assert len(variant["images"]["prompts"]) == 3
        assert all((drawn / row["image"]).is_file() for row in variant["images"]["prompts"])
    errors = {variant["name"]: variant["velocity"]["error"] for variant in content["variants"]}
    assert 0 < errors["attention in int8"] < errors["lens-uint4-static"] < 0.5
    assert len(content["original_images"]) == len(content["baseline"]["prompts"]) == 3
    assert not (drawn / ".ablation").exists()
    assert content["sources"]["original"]["transformer"][0]["sha256"]


def test_more_variants_and_levels_measure_only_what_is_new(signs: Path, variants_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "evidence"
    first = ablate(signs, output, options=AblateOptions(variants=variants_file))
    again = ablate(signs, output, options=AblateOptions(variants=variants_file))
    assert again.content == first.content
    assert again.resumed > 100
    lines = len((output / JOURNAL_NAME).read_bytes().splitlines())
    more = tmp_path / "more.toml"
    more.write_text(VARIANTS + '\n[[variants]]\nname = "int5"\nsdnq = { weights_dtype = "int5" }\n')
    report = ablate(signs, output, options=AblateOptions(variants=more))
    assert [variant["name"] for variant in report.content["variants"]][-1] == "int5"
    assert report.content["variants"][:3] == first.content["variants"]
    assert len((output / JOURNAL_NAME).read_bytes().splitlines()) == lines + 40


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has 0 variants"),
        ('[[variants]]\nname = "a"\n[[variants]]\nname = "a"', "a is the name of another variant"),
        ('[[variants]]\nname = "lens-uint4-static"', "is the name of another variant"),
        ('[[variants]]\nname = ""', "1 to 100 characters"),
        ("[[variants]]\nkeep = true", "keep is not a key of a variant"),
        ('[[variants]]\nname = "a"\nrecipe = "none"', "no such recipe"),
        ('[[variants]]\nname = "a"\nsdnq = { weights_dtype = "uint99" }', "is not a dtype of SDNQ"),
        ('[[variants]]\nname = "a"\nsdnq = { use_dynamic_quantization = true }', "it is no variant"),
        ('[[variants]]\nname = "a"\n[[variants.rules]]\nmatch = "*.none.*"\nkeep = true', "matches nothing"),
        ("variants = 3", "variants must be an array"),
        ("[[other]]", "other is not a key"),
    ],
)
def test_malformed_files_of_variants(signs: Path, tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "variants.toml"
    file.write_text(text)
    target = open_request(signs, None, ConvertOptions()).main
    with pytest.raises(RecipeError, match=message):
        read_variants(file, target.checkpoint, target.recipe)


def test_originals_that_are_refused(signs: Path, tiny_release: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedCheckpoint, match="quantized"):
        ablate(tiny_release, tmp_path / "a")
    with pytest.raises(OutputError, match="inside the original"):
        ablate(signs, signs / "evidence")
    with pytest.raises(UsageError, match="no prompts"):
        ablate(signs, tmp_path / "a", options=AblateOptions(level="velocity"))
    options = AblateOptions(level="velocity")
    with pytest.raises(UsageError, match="sequential"):
        ablate(signs, tmp_path / "b", None, SUITE, options, GenerateOptions(offload="sequential"))
    recipe = tmp_path / "dynamic.toml"
    recipe.write_text('[sdnq]\nweights_dtype = "int8"\nuse_dynamic_quantization = true\n')
    with pytest.raises(RecipeError, match="nothing to vary"):
        ablate(signs, tmp_path / "c", str(recipe))
    assert not (signs / "evidence").exists()


def test_an_ablation_of_other_weights_is_not_continued(signs: Path, variants_file: Path, tmp_path: Path) -> None:
    output, other = tmp_path / "evidence", tmp_path / "other"
    options = AblateOptions(variants=variants_file)
    ablate(signs / "transformer", output, options=options)
    synthesize(other, preset="signs")
    file = next((other / "transformer").glob("*.safetensors"))
    tensors = load_file(file)
    tensors["proj_out.bias"] = tensors["proj_out.bias"] + np.float32(1)
    save_file(tensors, file)
    with pytest.raises(OutputError, match="contains another ablation: weights"):
        ablate(other / "transformer", output, options=options)
    ablate(other / "transformer", output, options=AblateOptions(variants=variants_file, restart=True))
    tensors["proj_out.bias"][0] = np.nan
    save_file(tensors, file)
    with pytest.raises(NonFiniteWeight, match=r"proj_out\.bias"):
        ablate(other / "transformer", tmp_path / "nan", options=options)


@pytest.mark.long
def test_other_settings_are_not_mixed(signs: Path, drawn: Path, variants_file: Path) -> None:
    before = snapshot(drawn)
    options = AblateOptions(level="images", variants=variants_file, velocity_prompts=3, calls=2)
    other = GenerateOptions(device="cpu", steps=4, guidance=1.0, height=64, width=64)
    with pytest.raises(OutputError, match=r"settings\.steps was 3, and is now 4"):
        ablate(signs, drawn, None, SUITE, options, other)
    assert snapshot(drawn) == before


def test_the_command(signs: Path, variants_file: Path, tmp_path: Path, lensconv: Lensconv) -> None:
    output = tmp_path / "evidence"
    outcome = lensconv("ablate", signs, "--out", output, "--variants", variants_file, "--json")
    assert outcome.code == 0
    jsonschema.validate(outcome.result, load_schema("ablate"))
    assert [variant["name"] for variant in outcome.result["variants"]][1] == "all linear"
    outcome = lensconv("ablate", signs, "--out", output, "--variants", variants_file)
    assert "all linear" in outcome.stderr


def kill_when(line: Sequence[str], journal: Path, lines: int) -> None:
    """Start a command, and kill it once its journal has so many lines."""
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if journal.exists() and len(journal.read_bytes().splitlines()) >= lines:
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    finally:
        process.wait()


@pytest.mark.long
@pytest.mark.parametrize("kind", ["storage", "velocity", "image"])
def test_a_killed_run_goes_on_with_every_finished_figure(
    signs: Path, variants_file: Path, drawn: Path, tmp_path: Path, kind: str
) -> None:
    suite = tmp_path / "three.toml"
    suite.write_text(SUITE.to_toml())
    output = tmp_path / "evidence"
    line = command(
        *("ablate", signs, "--out", output, "--variants", variants_file, "--level", "images", "--prompts", suite),
        *("--velocity-prompts", 3, "--calls", 2, "--device", "cpu", "--steps", 3, "--guidance", 1),
        *("--height", 64, "--width", 64, "--json"),
    )
    whole = [json.loads(entry) for entry in (drawn / JOURNAL_NAME).read_bytes().splitlines()]
    reached = next(number for number, entry in enumerate(whole) if entry.get("kind") == kind) + 2
    kill_when(line, output / JOURNAL_NAME, reached)
    noted = (output / JOURNAL_NAME).read_bytes()
    assert not (output / ABLATION_NAME).exists()
    result = json.loads(subprocess.run(line, capture_output=True, check=True).stdout)
    assert (output / JOURNAL_NAME).read_bytes().startswith(noted.rpartition(b"\n")[0])
    assert result["resumed"] >= reached - 3
    expected, found = content_of(drawn), content_of(output)
    assert found["variants"] == expected["variants"]


@pytest.mark.long
@pytest.mark.parametrize("preset", ["tiny-flux", "tiny-sdxl"])
def test_pipelines_of_other_classes(preset: str, tmp_path: Path) -> None:
    synthesize(tmp_path / "source", preset=preset)
    file = tmp_path / "variants.toml"
    file.write_text('[[variants]]\nname = "int8"\nsdnq = { weights_dtype = "int8" }\n')
    output = tmp_path / "evidence"
    options = AblateOptions(level="images", variants=file, velocity_prompts=3, calls=2)
    small = GenerateOptions(device="cpu", steps=2, height=64, width=64)
    assert ablate(tmp_path / "source", output, None, SUITE, options, small).ok
    content = content_of(output)
    errors = {variant["name"]: variant["velocity"]["error"] for variant in content["variants"]}
    assert 0 < errors["int8"] < errors["sdnq-uint4"]


def test_a_source_that_changes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "Lens"
    synthesize(source, preset="signs")
    file = next((source / "transformer").glob("*.safetensors"))

    def touch(*_: object) -> str:
        file.touch()
        return "a" * 64

    monkeypatch.setattr("converter.measurement.ablation.ablate.variant_digest", touch)
    with pytest.raises(MalformedCheckpoint, match="changed while it was measured"):
        ablate(source, tmp_path / "evidence")
    assert not (tmp_path / "evidence" / ABLATION_NAME).exists()
