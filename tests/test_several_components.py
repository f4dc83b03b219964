"""Conversions and verifications of several components of one pipeline."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MixtralConfig, MixtralForCausalLM

from converter import (
    ConvertOptions,
    ConvertReport,
    PlanReport,
    Recipe,
    Rule,
    VerifyReport,
    convert,
    open_checkpoint,
    plan,
    read_header,
    verify,
)
from converter.checkpoint.dtypes import BITS
from converter.checkpoint.staging import SPOOLED, Staging
from converter.conversion.choosing import LEAST_TEXT_ENCODER_BYTES, choose_components
from converter.conversion.execution.execute import execute
from converter.errors import DiskError, MissingInput, NonFiniteWeight, OutputError, RecipeError, UsageError
from converter.schemas import load_schema
from tests import reference
from tests.checkpoints import write_holes
from tests.conftest import Lensconv, call, edit_json, names_in, snapshot
from tests.faults import raising
from tests.forms import accepted
from tests.pipelines import CONVERTED, NAMES, make_several
from tests.reporters import Notes
from tests.test_resume import Interruption
from tests.tiny_models import WEIGHTS, save_model

#: The title of the check of numbers.
NEAR = "quantized weights are near the source"
CLIP_NORM = "final_layer_norm.bias"


def spoil(file: Path, name: str) -> None:
    """Make a number of a tensor NaN."""
    tensors = load_file(file)
    tensors[name].view(-1)[0] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline of ``make_several``; nobody changes it."""
    return make_several(tmp_path_factory.mktemp("several") / "source")


@pytest.fixture(scope="module")
def release(source: Path) -> Path:
    """What the default recipe makes of all that can be converted; nobody changes it."""
    output = source.with_name("release")
    convert(source, output, options=ConvertOptions(components=NAMES))
    return output


@pytest.mark.parametrize("name", ["uint4", "svd", "stochastic", "dynamic", "dynamic-svd"])
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


@pytest.fixture
def copy(release: Path, tmp_path: Path) -> Path:
    """The release, which may be changed."""
    return shutil.copytree(release, tmp_path / "copy")


def titles(report: VerifyReport) -> dict[str, str]:
    """Failed checks: what people see of them."""
    return {check.title: check.detail for check in report.checks if not check.ok}


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


@pytest.fixture(scope="module")
def steps(source: Path) -> tuple[Path, Path]:
    """A release of the denoiser alone, and one that was made from it, in which a text encoder is quantized as well."""
    first, second = (source.with_name(name) for name in ("first", "second"))
    convert(source, first)
    convert(first, second, "sdnq-int8", ConvertOptions(components=("text_encoder",)))
    return first, second


def test_a_release_that_was_made_in_two_steps(source: Path, steps: tuple[Path, Path], tmp_path: Path) -> None:
    """What the second step found quantized is examined too, and compared with either source."""
    first, second = steps
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
    assert [*titles(verify(second, against=source, recipe="sdnq-int8"))] == ["transformer: recipe"]
    with pytest.raises(UsageError, match="is quantized already"):
        verify(second, against=first, recipe="sdnq-int8", components=["transformer"])
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


PAIR = ("transformer", "transformer_2")


def interrupt_in(component: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a conversion end after so many entries of a component in the journal, as if it had been killed."""
    notes, note = 0, Staging.note

    def counting(self: Staging, noted: str, tensor: str, facts: Any) -> None:
        nonlocal notes
        notes += noted == component
        if notes > count:
            raise Interruption
        note(self, noted, tensor, facts)

    monkeypatch.setattr(Staging, "note", counting)


@dataclass(frozen=True)
class Interrupted:
    """A conversion of two components with the same tensors that ended inside the second one."""

    source: Path
    output: Path
    recipe: Recipe
    finished: frozenset[str]
    """Tensors of the second component that were finished, in their slots or in the spool."""

    @property
    def staged(self) -> Path:
        """Its work folder."""
        return self.output.with_name(f".{self.output.name}.lensconv")

    def go_on(self, **options: Any) -> ConvertReport:
        """Run the same command again."""
        return convert(self.source, self.output, self.recipe, ConvertOptions(components=PAIR, **options))

    def bytes_of(self, names: Iterable[str]) -> int:
        """Bytes of tensors in the source of either component."""
        tensors = open_checkpoint(self.source, component=PAIR[0]).tensors
        return sum(tensors[name].entry.bytes for name in names)

    def all_names(self) -> frozenset[str]:
        """Tensors of either component."""
        return frozenset(open_checkpoint(self.source, component=PAIR[0]).tensors)


Interrupt = Callable[[str, int], Interrupted]


@pytest.fixture
def interrupt(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Interrupt:
    """Begin a conversion by a named recipe, and end it after so many entries of the second component."""

    def run(name: str, count: int) -> Interrupted:
        recipe = Recipe(name, (reference.RECIPES | reference.FURTHER_RECIPES)[name])
        options = ConvertOptions(components=PAIR, jobs=1)
        with monkeypatch.context() as patches:
            interrupt_in(PAIR[1], count, patches)
            with pytest.raises(Interruption):
                convert(source, tmp_path / "out", recipe, options)
        lines = (tmp_path / ".out.lensconv" / "journal").read_text().splitlines()
        entries = [json.loads(line) for line in lines[1:]]
        finished = [entry["tensor"] for entry in entries if entry["component"] == PAIR[1]]
        assert len(finished) == count
        assert not (tmp_path / "out").exists()
        return Interrupted(source, tmp_path / "out", recipe, frozenset(name.removeprefix(SPOOLED) for name in finished))

    return run


def bytes_read(report: ConvertReport) -> int:
    return round(report.bytes_read_per_s * report.elapsed_s)


@pytest.fixture(scope="module")
def undisturbed(source: Path) -> Callable[[Recipe], dict[str, bytes]]:
    """What a run that nobody interrupts makes of the two denoisers, by a recipe."""
    made: dict[str, dict[str, bytes]] = {}

    def files(recipe: Recipe) -> dict[str, bytes]:
        if recipe.name not in made:
            output = source.with_name(f"undisturbed-{recipe.name}")
            convert(source, output, recipe, ConvertOptions(components=PAIR))
            made[recipe.name] = snapshot(output)
        return made[recipe.name]

    return files


Undisturbed = Callable[[Recipe], dict[str, bytes]]


@pytest.mark.parametrize(
    ("name", "count"), [("uint4", 0), ("uint4", 7), ("stochastic", 5), ("dynamic", 6), ("dynamic", 22), ("svd", 3)]
)
def test_an_interrupted_run_goes_on_inside_the_second_component(
    name: str, count: int, interrupt: Interrupt, undisturbed: Undisturbed
) -> None:
    """And reads nothing of the first one again, whose tensors have the same names."""
    run = interrupt(name, count)
    report = run.go_on()
    assert bytes_read(report) == run.bytes_of(run.all_names() - run.finished)
    assert report.resumed_tensors >= report.components[0].tensors + len(run.finished)
    assert snapshot(run.output) == undisturbed(run.recipe)
    assert names_in(run.output.parent) == ["out"]


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


@pytest.mark.parametrize("lost", PAIR)
@pytest.mark.parametrize("name", ["uint4", "stochastic", "dynamic"])
def test_what_is_lost_of_one_component_starts_that_one_over(
    name: str, lost: str, interrupt: Interrupt, undisturbed: Undisturbed
) -> None:
    """Slots of either, or its spool where the weights decide."""
    run = interrupt(name, 6)
    files = (run.staged / ("spool" if name == "dynamic" else "release") / lost).glob("*.safetensors")
    cut(min(files))
    report = run.go_on()
    left = run.all_names() if lost == PAIR[1] else run.all_names() - run.finished
    again = run.bytes_of(run.all_names()) if lost == PAIR[0] else 0
    assert bytes_read(report) == run.bytes_of(left) + again
    assert (report.resumed_tensors >= report.components[0].tensors) == (lost == PAIR[1])
    assert report.resumed_tensors > 0
    assert snapshot(run.output) == undisturbed(run.recipe)


def test_what_is_lost_stays_lost_in_the_run_after_the_next_kill(
    interrupt: Interrupt, undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = interrupt("stochastic", 6)
    cut(run.staged / "release" / PAIR[0] / WEIGHTS)
    with monkeypatch.context() as patches:
        interrupt_in(PAIR[0], 2, patches)
        with pytest.raises(Interruption):
            run.go_on(jobs=1)
    report = run.go_on()
    assert bytes_read(report) > run.bytes_of(run.all_names())
    assert snapshot(run.output) == undisturbed(run.recipe)


def test_another_choice_of_components_is_another_conversion(interrupt: Interrupt, undisturbed: Undisturbed) -> None:
    run = interrupt("uint4", 6)
    for names in (PAIR[:1], (*PAIR, "text_encoder"), ()):
        with pytest.raises(OutputError, match=r"differs from this one in: .*other components.*source") as caught:
            convert(run.source, run.output, run.recipe, ConvertOptions(components=names))
        assert "--restart" in caught.value.hint
    report = run.go_on(restart=True)
    assert (report.resumed_tensors, bytes_read(report)) == (0, 2 * run.bytes_of(run.all_names()))
    assert snapshot(run.output) == undisturbed(run.recipe)


def test_a_run_that_was_killed_after_its_last_step_reports_all_components(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ConvertOptions(components=("text_encoder", "transformer"))
    expected = convert(source, tmp_path / "expected", options=options)
    with monkeypatch.context() as patches:
        patches.setattr(Staging, "discard", raising(Interruption()))
        with pytest.raises(Interruption):
            convert(source, tmp_path / "out", options=options)
    report = convert(source, tmp_path / "out", options=options)
    assert (report.components, {*report.files}) == (expected.components, {*expected.files})
    assert report.resumed_tensors == report.tensors


def test_space_is_needed_for_all_components_together(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=0, f_frsize=1))
    dynamic = {"weights_dtype": "uint4", "use_dynamic_quantization": True}

    def needed(*names: str, recipe: Recipe) -> int:
        with pytest.raises(DiskError, match="bytes are needed, but only 0 are free") as caught:
            convert(source, source.with_name("full"), recipe, ConvertOptions(components=names))
        return int(caught.value.message.split()[1])

    plain = Recipe("mine", {"weights_dtype": "uint4"})
    mixed = replace(plain, components={"text_encoder": Recipe("mine", dynamic)})
    sizes = [needed(name, recipe=plain) for name in NAMES]
    assert needed(*NAMES, recipe=plain) == sum(sizes)
    # Where the weights decide, the parts are on the disk twice for a while.
    assert needed(*NAMES, recipe=mixed) == sum(sizes) + sizes[NAMES.index("text_encoder")]
    assert not source.with_name(".full.lensconv").exists()


def test_a_bad_weight_in_the_second_component_leaves_nothing(source: Path, tmp_path: Path) -> None:
    spoiled = shutil.copytree(source, tmp_path / "source")
    spoil(spoiled / "text_encoder" / "model.safetensors", CLIP_NORM)
    with pytest.raises(NonFiniteWeight, match=f"text_encoder/model.safetensors.*{CLIP_NORM}"):
        convert(spoiled, tmp_path / "out", options=ConvertOptions(components=("transformer", "text_encoder")))
    assert names_in(tmp_path) == ["source"]


@pytest.mark.parametrize(("converted", "kept"), [(0, False), (1, True), (2, True)])
def test_a_shortage_keeps_components_that_are_complete(
    converted: int, kept: bool, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the first one, and of the files beside the weights once all are complete."""
    runs, work = 0, execute

    def full(*arguments: Any) -> Any:
        nonlocal runs
        runs += 1
        if runs > converted:
            raise DiskError("full")
        return work(*arguments)

    options, notes = ConvertOptions(components=PAIR), Notes()
    with monkeypatch.context() as patches:
        patches.setattr("converter.conversion.convert.execute", full)
        if converted == len(PAIR):
            patches.setattr("converter.conversion.convert._Conversion._write_release", raising(DiskError("full")))
        with pytest.raises(DiskError):
            convert(source, tmp_path / "out", options=options, reporter=notes)
    assert names_in(tmp_path) == ([".out.lensconv"] if kept else [])
    assert any("the same command continues" in text for text in notes.texts) == kept
    report = convert(source, tmp_path / "out", options=options)
    assert report.resumed_tensors == sum(component.tensors for component in report.components[:converted])


RECIPE = """
[sdnq]
weights_dtype = "uint4"

[[rules]]
match = "*.attn.*"
keep = true

[components.text_encoder.sdnq]
weights_dtype = "int8"

[components.text_encoder_2.sdnq]
group_size = 32

[[components.text_encoder_2.rules]]
match = "*.SelfAttention.*"
keep = true
"""


def test_a_recipe_has_tables_for_components(source: Path, tmp_path: Path) -> None:
    """Options are laid over the recipe's, rules replace them; a rule that fits no tensor of one is none for it."""
    recipe = tmp_path / "mine.toml"
    recipe.write_text(RECIPE)
    convert(source, tmp_path / "out", str(recipe), ConvertOptions(components=NAMES))
    kept = {"weights_dtype": "uint4", "modules_to_not_convert": ["*.attn.*"]}
    options: dict[str, dict[str, Any]] = {
        "transformer": kept,
        "transformer_2": kept,
        "text_encoder": {"weights_dtype": "int8"},
        "text_encoder_2": {
            "weights_dtype": "uint4",
            "group_size": 32,
            "modules_to_not_convert": ["*.SelfAttention.*"],
        },
    }
    for name, class_name in CONVERTED.items():
        expected = reference.convert_with_sdnq(source / name, tmp_path / name, class_name, options[name])
        assert reference.weight_files(tmp_path / "out" / name) == reference.weight_files(expected)
        assert reference.read_configs(tmp_path / "out" / name) == reference.read_configs(expected)
    report = verify(tmp_path / "out", against=source, recipe=str(recipe))
    assert report.ok, titles(report)
    # The table counts although the source is the component's folder; converting that folder has no tables.
    for name in ("text_encoder", "text_encoder_2"):
        report = verify(tmp_path / "out", components=[name], against=source / name, recipe=str(recipe))
        assert report.ok, titles(report)
    (alone,) = plan(source / "transformer", str(recipe)).components
    assert alone.plan.quantization_config["modules_to_not_convert"][0] == "*.attn.*"
    with pytest.raises(RecipeError, match="matches nothing in the model"):
        plan(source / "text_encoder", str(recipe))


def dtypes(report: PlanReport) -> dict[str, dict[str, str]]:
    """The dtype of each quantized module, by component and module."""
    return {
        component.name: {module.name: module.options["weights_dtype"] for module in component.plan.modules.values()}
        for component in report.components
    }


@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        (["text_encoder/*.k_proj=keep"], {"text_encoder": {"encoder.layers.0.self_attn.k_proj": None}}),
        # Without a component's name, a rule is for all, and need not match in each.
        (["*.k_proj=int8"], {"text_encoder": {"encoder.layers.0.self_attn.k_proj": "int8"}}),
        (["*.fc1=int8", "text_encoder/*.fc1=int6"], {"text_encoder": {"encoder.layers.0.mlp.fc1": "int6"}}),
        (["text_encoder/*.fc1=int6", "*.fc1=int8"], {"text_encoder": {"encoder.layers.0.mlp.fc1": "int8"}}),
        # The same words: nothing that can be quantized in one, a linear layer in the other.
        (["*.to_out.0=int8"], {"transformer": {"transformer_blocks.0.attn.to_out.0": "int8"}}),
    ],
)
def test_settings_are_for_one_component_or_for_all(
    settings: list[str], changed: dict[str, dict[str, str | None]], source: Path
) -> None:
    names = ("transformer", "text_encoder")
    plain = dtypes(plan(source, options=ConvertOptions(components=names)))
    found = dtypes(plan(source, options=ConvertOptions(components=names, settings=tuple(settings))))
    for name in names:
        different = plain[name].keys() ^ found[name].keys()
        different |= {key for key in plain[name].keys() & found[name].keys() if plain[name][key] != found[name][key]}
        assert {key: found[name].get(key) for key in different} == changed.get(name, {})


def test_a_rule_for_several_may_match_what_cannot_be_quantized_in_one(source: Path) -> None:
    """``*embed*`` is an embedding of the one, and layers of the other."""
    names, rule = ("transformer", "text_encoder"), Rule(match="*embed*", options={"weights_dtype": "int8"})
    recipe = Recipe("mine", {"weights_dtype": "uint4", "add_skip_keys": False}, (rule,))
    found = dtypes(plan(source, recipe, ConvertOptions(components=names)))
    assert "int8" in found["transformer"].values()
    assert "int8" not in found["text_encoder"].values()
    with pytest.raises(RecipeError, match="matches only tensors that SDNQ cannot quantize"):
        plan(source, recipe, ConvertOptions(components=names[1:]))
    assert found["text_encoder"] == dtypes(plan(source, options=ConvertOptions(components=names[1:])))["text_encoder"]


def test_a_family_of_one_class_is_none_of_another(source: Path) -> None:
    parts = plan(source, options=ConvertOptions(components=NAMES)).components
    families = [{family.name for family in part.families if family.quantized} for part in parts]
    rule = Rule(family=min(families[0] - families[2] - families[3]), options={"weights_dtype": "int8"})
    recipe = Recipe("mine", {"weights_dtype": "uint4"}, (rule,))
    found = dtypes(plan(source, recipe, ConvertOptions(components=NAMES)))
    assert {name for name, modules in found.items() if "int8" in modules.values()} == {"transformer", "transformer_2"}
    assert set(found["text_encoder"].values()) == {"uint4"}


_ATTENTION = Rule(match="*.attn.*", keep=True)


@pytest.mark.parametrize(
    ("components", "recipe", "settings", "message"),
    [
        (NAMES, Recipe("mine", {}), ["*.nothing=int8"], "rule for *.nothing: selects nothing that SDNQ can quantize"),
        (NAMES, Recipe("mine", {}), ["vae/*=keep"], "--set vae/*: vae is not converted"),
        (("transformer",), Recipe("mine", {}), ["text_encoder/*=keep"], "text_encoder is not converted"),
        (NAMES, Recipe("mine", {}), ["text_encoder/*.to_q=keep"], "rule for *.to_q: matches nothing in the model"),
        (NAMES, Recipe("mine", {}), ["/*.to_q=keep"], "must be GLOB=keep or GLOB=DTYPE"),
        (
            ("text_encoder", "text_encoder_2"),
            Recipe("mine", {}, (_ATTENTION,)),
            [],
            "rule for *.attn.*: selects nothing that SDNQ can quantize, in any of the components",
        ),
        (
            NAMES,
            Recipe("mine", {}, components={"text_encoder": Recipe("mine", {}, (_ATTENTION,))}),
            [],
            "rule for *.attn.*: matches nothing in the model",
        ),
        (
            NAMES,
            Recipe("mine", {}, components={"unet": Recipe("mine", {})}),
            [],
            "[components.unet] is not about a component of",
        ),
        (
            NAMES,
            Recipe("mine", {}, (Rule(family="img_mod", options={"weights_dtype": "int8"}),)),
            [],
            "rule for family img_mod: selects nothing that SDNQ can quantize",
        ),
    ],
)
def test_rules_that_would_do_nothing_are_refused(
    components: tuple[str, ...], recipe: Recipe, settings: list[str], message: str, source: Path, tmp_path: Path
) -> None:
    options = ConvertOptions(components=components, settings=tuple(settings))
    with pytest.raises(RecipeError) as planned:
        plan(source, recipe, options)
    assert message in planned.value.message
    with pytest.raises(RecipeError) as converted:
        convert(source, tmp_path / "out", recipe, options)
    assert converted.value.with_hint == planned.value.with_hint
    assert names_in(tmp_path) == []


def test_a_bare_folder_has_no_components(source: Path) -> None:
    """So that the recipe of a pipeline can be used for a folder of it, and names of components in it count nothing."""
    recipe = Recipe("mine", {"weights_dtype": "int8"}, components={"other": Recipe("mine", {"weights_dtype": "uint4"})})
    assert set(dtypes(plan(source / "text_encoder", recipe))[""].values()) == {"int8"}
    with pytest.raises(RecipeError, match="text_encoder is not converted"):
        plan(source / "text_encoder", options=ConvertOptions(settings=("text_encoder/*=keep",)))


def sparse(folder: Path, **components: tuple[str, str, str, int]) -> Path:
    """A pipeline with components of so many bytes that take no space; each is class, file, dtype and bytes."""
    index = {}
    for name, (class_name, file, dtype, size) in components.items():
        (folder / name).mkdir(parents=True)
        library = "transformers" if file.startswith(("model", "pytorch")) else "diffusers"
        key = "architectures" if library == "transformers" else "_class_name"
        (folder / name / "config.json").write_text(json.dumps({key: [class_name] if key[0] == "a" else class_name}))
        if file.endswith(".safetensors"):
            write_holes(folder / name / file, [(dtype, "x.weight", (size * 8 // BITS[dtype],))])
        else:
            torch.save({"x.weight": torch.zeros(9)}, folder / name / file)
        index[name] = ["onnx" if file.endswith("onnx") else library, class_name]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


_DENOISER = ("FluxTransformer2DModel", WEIGHTS, "BF16", 1000)
_ENCODER = "model.safetensors"
_LARGE = ("T5EncoderModel", _ENCODER, "BF16", LEAST_TEXT_ENCODER_BYTES + 2)


@pytest.mark.parametrize(
    ("wanted", "components", "chosen"),
    [
        (["all"], {"text_encoder": _LARGE, "transformer": _DENOISER}, ["transformer", "text_encoder"]),
        (["all"], {"unet": _DENOISER, "transformer": _DENOISER, "transformer_2": _DENOISER},
         ["transformer", "unet", "transformer_2"]),
        (["all"], {"transformer": _DENOISER, "text_encoder": (*_LARGE[:3], LEAST_TEXT_ENCODER_BYTES)}, ["transformer"]),
        (["all"], {"transformer": _DENOISER, "vae": ("AutoencoderKL", WEIGHTS, "F32", 10**9)}, ["transformer"]),
        (["vae", "all"], {"vae": ("AutoencoderKL", WEIGHTS, "F32", 1000), "unet": _DENOISER}, ["unet", "vae"]),
        (["all"], {"transformer": ("FluxTransformer2DModel", WEIGHTS, "U8", 1000), "text_encoder": _LARGE},
         ["text_encoder"]),
        (["all"], {"transformer": _DENOISER, "text_encoder": ("T5EncoderModel", "pytorch_model.bin", "", 0)},
         ["transformer"]),
        (["all"], {"unet": ("OnnxRuntimeModel", "model.onnx", "", 0), "text_encoder": _LARGE}, ["text_encoder"]),
        (["all"], {"all": _DENOISER, "unet": _DENOISER}, ["all"]),
        (["all", "unet"], {"all": _DENOISER, "unet": _DENOISER}, ["unet", "all"]),
        (["unet", "unet", "all"], {"unet": _DENOISER}, ["unet"]),
    ],
)  # fmt: skip
def test_all_stands_for_what_is_worth_it(
    wanted: list[str], components: dict[str, tuple[str, str, str, int]], chosen: list[str], tmp_path: Path
) -> None:
    """Denoisers and large text encoders, unless they are quantized or may contain pickles."""
    folder = sparse(tmp_path / "source", **components)
    assert [*choose_components(folder, wanted)] == chosen


def test_all_needs_something_to_take(lensconv: Lensconv, tmp_path: Path) -> None:
    source = sparse(tmp_path / "source", vae=("AutoencoderKL", WEIGHTS, "F32", 1000), text_encoder=(*_LARGE[:3], 1000))
    for words in (("plan", source), ("convert", source, tmp_path / "out")):
        outcome = lensconv(*words, "--component", "all", "--json")
        assert (outcome.code, outcome.result["error"]["type"]) == (2, "UsageError")
        assert outcome.result["error"]["hint"] == "Name a component: vae, text_encoder."
    alone = lensconv("plan", source / "vae", "--component", "all", "--json").result["error"]
    assert "only a pipeline repo has components" in alone["message"]


def test_what_all_leaves_is_said_with_its_reason(
    source: Path, steps: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ConvertOptions(components=("all",))
    small = tuple(f"{name} ({CONVERTED[name]}) stays as it is; it is small" for name in NAMES[2:])
    report = plan(source, options=options)
    assert [component.name for component in report.components] == [*PAIR]
    assert report.notes == small
    # Without it, nobody asked for text encoders.
    one = "transformer_2 (FluxTransformer2DModel) stays as it is; to convert it as well, add --component transformer_2"
    assert plan(source).notes == (one,)
    monkeypatch.setattr("converter.conversion.choosing.LEAST_TEXT_ENCODER_BYTES", 400_000)
    repo = shutil.copytree(steps[0], tmp_path / "repo")
    encoder = repo / "text_encoder" / "model.safetensors"
    torch.save(load_file(encoder), repo / "text_encoder" / "pytorch_model.bin")
    encoder.unlink()
    notes = Notes()
    convert(repo, tmp_path / "out", options=options, reporter=notes)
    assert [text for text in notes.texts if "stays as it is" in text] == [
        "Note: text_encoder (CLIPTextModel) stays as it is; its weights may contain pickles.",
        "Note: transformer (FluxTransformer2DModel) stays as it is; it is quantized already (sdnq).",
    ]
    found = verify(tmp_path / "out")
    assert found.ok, titles(found)
    assert [component.name for component in found.components] == ["transformer", "transformer_2", "text_encoder_2"]
    named = ConvertOptions(components=NAMES)
    expected = convert(source, tmp_path / "expected", options=named)
    assert convert(source, tmp_path / "all", options=options).components == expected.components
    assert snapshot(tmp_path / "all") == snapshot(tmp_path / "expected")


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
