"""Verifications of several components of one pipeline."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
from safetensors.torch import load_file, save_file

from converter import (
    ConvertOptions,
    convert,
    read_header,
    verify,
)
from converter.errors import MissingInput, UsageError
from converter.schemas import load_schema
from tests import reference
from tests.conftest import Lensconv, call
from tests.pipelines import CONVERTED, NAMES, titles

#: The title of the check of numbers.
NEAR = "quantized weights are near the source"


@pytest.fixture(scope="module")
def source(several: Path) -> Path:
    """The pipeline of ``make_several``; nobody changes it."""
    return several


@pytest.fixture(scope="module")
def release(several_release: Path) -> Path:
    """What the default recipe makes of all that can be converted; nobody changes it."""
    return several_release


@pytest.fixture
def copy(release: Path, tmp_path: Path) -> Path:
    """The release, which may be changed."""
    return shutil.copytree(release, tmp_path / "copy")


@pytest.mark.long
def test_all_that_was_converted_is_examined_with_every_option(
    source: Path, release: Path, lensconv: Lensconv, tmp_path: Path
) -> None:
    recipe = tmp_path / "sdnq-uint4.toml"
    recipe.write_text('[sdnq]\nweights_dtype = "uint4"\n')
    options = ("--against", source, "--checksums", "--load", "--recipe", recipe, "--fail-under-sqnr", "15")
    outcome = lensconv("verify", release, *options, "--json")
    result = outcome.result
    assert outcome.code == 0, [check for check in result["checks"] if not check["ok"]]
    jsonschema.validate(result, load_schema("verify"))
    once = [check["name"] for check in result["checks"] if not check["component"]]
    assert sorted(once) == ["checksums", "components", "manifest"]
    for name, class_name in CONVERTED.items():
        alone = lensconv("verify", release, *options, "--component", name, "--json").result
        of_it = [{**check, "component": name} for check in alone["checks"] if check["name"] not in once]
        assert [check for check in result["checks"] if check["component"] == name] == of_it
        assert {"recipe", "load with sdnq", "near source"} <= {check["name"] for check in of_it}
        (part,) = (part for part in result["components"] if part["name"] == name)
        assert [part] == alone["components"]
        assert part["class_name"] == class_name
        assert {family["name"] for family in part["fidelity"]["families"]} == {
            family["name"].partition("/")[2]
            for family in result["fidelity"]["families"]
            if family["name"].startswith(f"{name}/")
        }
    recipes = [check for check in result["checks"] if check["name"] == "recipe"]
    alone = lensconv("verify", release, "--recipe", recipe, "--json").result
    assert [check for check in alone["checks"] if check["name"] == "recipe"] == recipes
    ratios = [part["fidelity"]["sqnr_db"]["min"] for part in result["components"]]
    assert result["fidelity"]["sqnr_db"]["min"] == min(ratios)
    shown = lensconv("verify", release, *options)
    text = " ".join(shown.stderr.split())
    assert (shown.code, text.count("Sound: all"), text.count("against the source")) == (0, 1, 1)
    assert "text_encoder_2: load with sdnq: T5EncoderModel" in text
    # On a screen of 80 columns, names of components take several lines, and are whole.
    column = "".join(line[2:13].strip() for line in shown.stderr.split("against the source")[0].splitlines()[3:])
    assert [name in column for name in NAMES] == [True] * len(NAMES)
    assert lensconv("verify", release, *options[:2], "--fail-under-sqnr", str(min(ratios) + 0.001)).code == 1


def flip_a_scale(folder: Path) -> None:
    """Flip the lowest bit of the exponent of a scale: it is doubled or halved."""
    (file,) = folder.glob("*.safetensors")
    header = read_header(file)
    entry = next(entry for name, entry in header.tensors.items() if name.endswith(".scale"))
    assert entry.dtype == "F32"
    with file.open("r+b") as stream:
        stream.seek(header.data_start + entry.start + 2)
        (byte,) = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte ^ 0x80]))


def lose_a_tensor(folder: Path) -> None:
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    tensors.pop(min(name for name in tensors if name.endswith(".scale")))
    save_file(tensors, file, metadata={"format": "pt"})


def change_a_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["weights_dtype"] = "int8"
    (folder / "config.json").write_text(json.dumps(config))


def take_the_config_of_the_source(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "quantization_config.json").unlink()


def lose_the_quantization_config(folder: Path) -> None:
    (folder / "quantization_config.json").unlink()


@pytest.mark.parametrize("name", ["transformer_2", "text_encoder_2"])
@pytest.mark.parametrize(
    ("damage", "by_headers", "by_numbers"),
    [
        (flip_a_scale, [], ["near source"]),
        (lose_a_tensor, ["packed weights", "kept tensors"], ["plan"]),
        (change_a_config, ["config"], []),
        (take_the_config_of_the_source, ["config"], ["plan"]),
        (lose_the_quantization_config, [], []),
    ],
)
def test_damage_of_any_component_is_found_and_named(
    damage: Callable[[Path], None], by_headers: list[str], by_numbers: list[str], name: str, source: Path, copy: Path
) -> None:
    damage(copy / name)
    found = titles(verify(copy))
    manifest = found.pop("manifest", "")
    assert [*found] == [f"{name}: {check}" for check in by_headers]
    # Of a flipped bit, sizes and headers show nothing.
    assert manifest.startswith(f"{name}/") == (damage is not flip_a_scale)
    found = titles(verify(copy, against=source, checksums=True))
    found.pop("manifest", None)
    assert found.pop("checksums").startswith(f"{name}/")
    assert {title.rpartition(": ")[2].replace(NEAR, "near source") for title in found} == {*by_headers, *by_numbers}
    assert {title.partition(": ")[0] for title in found} <= {name}


def test_a_component_that_was_converted_and_is_gone_is_no_smaller_release(copy: Path) -> None:
    (copy / "text_encoder_2" / "model.safetensors").unlink()
    with pytest.raises(MissingInput, match="text_encoder_2: contains no safetensors weights"):
        verify(copy)
    assert titles(verify(copy, components=["transformer"])) == {
        "manifest": "text_encoder_2/model.safetensors is missing"
    }


def test_one_component_cannot_be_the_source_of_several(source: Path, release: Path, lensconv: Lensconv) -> None:
    outcome = lensconv("verify", release, "--against", source / "transformer", "--json")
    assert outcome.code == 2
    assert outcome.result["error"]["message"].endswith(
        f"is one component, but several are compared: {', '.join(NAMES)}"
    )
    assert outcome.result["error"]["hint"] == "Give the pipeline repo, or choose one with --component."
    assert verify(release, against=source / "transformer", components=["transformer"]).ok
    # The same class, tensors and shapes, and other numbers.
    found = titles(verify(release, against=source / "transformer_2", components=["transformer"]))
    assert "quantized weights are near the source" in found
    for name in ("all", "unet"):
        shown = lensconv("verify", release, "--component", name, "--json")
        assert shown.result["error"]["message"].startswith(f"{name} is not a component of {release}: ")


def test_a_release_that_was_made_in_two_steps(source: Path, several_steps: tuple[Path, Path], tmp_path: Path) -> None:
    """What the second step found quantized is examined too, and compared with either source."""
    first, second = several_steps
    report = verify(second, against=first, checksums=True, load=True)
    assert report.ok, titles(report)
    assert [component.name for component in report.components] == ["transformer", "text_encoder"]
    copied = {check.title: check.detail for check in report.checks if check.name == "copied"}
    size = report.components[0].tensors
    assert copied == {"transformer: copied": f"{size} tensors are those of the source, which is quantized already"}
    assert {family["name"].partition("/")[0] for family in report.fidelity["families"]} == {"text_encoder"}
    report = verify(second, against=source)
    assert report.ok, titles(report)
    assert {family["name"].partition("/")[0] for family in report.fidelity["families"]} == {
        "transformer",
        "text_encoder",
    }
    assert any(note.endswith("describes the component text_encoder, not transformer") for note in report.notes)
    # A recipe made one of them in this step.
    report = verify(second, against=first, recipe="sdnq-int8")
    assert report.ok, titles(report)
    assert [check.title for check in report.checks if check.name == "recipe"] == ["text_encoder: recipe"]
    assert [check for check in verify(second, recipe="sdnq-int8").checks if check.name == "recipe"] == [
        check for check in report.checks if check.name == "recipe"
    ]
    assert [*titles(verify(second, against=source, recipe="sdnq-int8"))] == ["transformer: recipe"]
    for against in (first, None):
        with pytest.raises(UsageError, match="/transformer was quantized before"):
            verify(second, against=against, recipe="sdnq-int8", components=["transformer"])
    with pytest.raises(UsageError, match="needs an unquantized source"):
        verify(second, against=first, fail_under_sqnr=1, components=["transformer"])
    assert verify(second, against=first, fail_under_sqnr=1).ok
    shown = call("verify", second, "--against", first, "--component", "transformer").stderr
    assert "SQNR" not in shown
    spoiled = shutil.copytree(second, tmp_path / "spoiled")
    flip_a_scale(spoiled / "transformer")
    (found,) = titles(verify(spoiled, against=first)).items()
    assert found[0] == "transformer: copied"
    assert found[1].endswith(".scale differs from the source")


def test_what_sdnq_quantized_in_a_repo_without_a_manifest_is_examined(source: Path, tmp_path: Path) -> None:
    repo = shutil.copytree(source, tmp_path / "repo")
    for name in ("transformer_2", "text_encoder_2"):
        shutil.rmtree(repo / name)
        reference.convert_with_sdnq(source / name, repo / name, CONVERTED[name], {"weights_dtype": "int8"})
    report = verify(repo, against=source)
    assert report.ok, titles(report)
    assert [component.name for component in report.components] == ["transformer_2", "text_encoder_2"]
    assert {other.name for other in report.other_components} == {"transformer", "text_encoder", "vae"}
    assert report.notes[0] == "no manifest: files cannot be compared with what was written"
    flip_a_scale(repo / "text_encoder_2")
    assert [*titles(verify(repo, against=source))] == [f"text_encoder_2: {NEAR}"]


def test_packed_weights_of_a_denoiser_are_examined_although_no_config_says_so(copy: Path) -> None:
    """A config of the original in place of the right one makes images of noise, and must not hide the denoiser."""
    take_the_config_of_the_source(copy / "transformer")
    assert "transformer: config" in titles(verify(copy))
    (copy / "lensconv_manifest.json").unlink()
    report = verify(copy)
    assert [component.name for component in report.components] == [*NAMES]
    assert "transformer: config" in titles(report)


def test_a_release_in_which_only_a_text_encoder_is_quantized(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    convert(source, output, options=ConvertOptions(components=("text_encoder_2",)))
    for _ in range(2):
        report = verify(output, against=source)
        assert report.ok, titles(report)
        assert [component.name for component in report.components] == ["text_encoder_2"]
        assert {check.component for check in report.checks} == {""}
        assert len(report.other_components) == 4
        (output / "lensconv_manifest.json").unlink(missing_ok=True)
    assert not verify(output, components=["transformer"]).ok
    # Its keys are about a transformer.
    assert not (output / "sdnq_quantization_summary.json").exists()
