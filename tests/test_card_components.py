"""Releases in which several components were quantized: their cards, their measurements and their publication."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from converter import convert
from converter.console import SILENT
from converter.conversion.options import ConvertOptions
from converter.conversion.recipe.recipe import parse_recipe
from converter.errors import EvidenceError, MalformedCheckpoint, ReleaseError, UnsupportedCheckpoint, UsageError
from converter.measurement.benchmark.bench import note_differences
from converter.measurement.benchmark.fidelity import compare_weights
from converter.measurement.benchmark.finishing import copy_summary
from converter.measurement.benchmark.subjects import Subject, open_subjects
from converter.presentation.card.make_card import make_card
from converter.presentation.card.options import CardOptions
from converter.presentation.tables.conditions import sources_table
from converter.publication.options import PublishOptions
from converter.publication.preflight import examine_release
from converter.rehearsal.course import Course
from converter.rehearsal.settings import HubSettings
from tests.checkpoints import edit_manifest
from tests.conftest import edit_json, list_file, names_in, snapshot
from tests.expected import check_expected
from tests.faulty_hub import faulty_hub
from tests.generations import change_tensors
from tests.published import published_matrix
from tests.releases import write_card
from tests.reporters import Notes
from tests.tiny_models import WEIGHTS as DIFFUSERS_WEIGHTS
from tests.tiny_models import make_pipeline, save_model

ENCODER = "text_encoder_2"
BOTH = ConvertOptions(components=(ENCODER, "transformer"))
MANIFEST = "lensconv_manifest.json"
MATRIX = "comparison_matrix.json"
#: The autoencoder of the tiny pipeline has few channels, fewer than what SDNQ quantizes by default.
RECIPE = """
name = "both"

[sdnq]
weights_dtype = "int8"

[[rules]]
match = "*_mod.*"
keep = true

[components.vae.sdnq]
quant_conv = true
minimum_allowed_numel = 16
minimum_allowed_channel_size = 8
"""


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline with a Lens transformer and a T5 encoder."""
    folder = make_pipeline(tmp_path_factory.mktemp("several") / "source")
    save_model(folder / ENCODER, "T5EncoderModel")
    # On the Hub, files below a kilobyte cannot be weights.
    save_file({"x": torch.ones(500)}, folder / "vae" / DIFFUSERS_WEIGHTS)
    index = json.loads((folder / "model_index.json").read_text())
    edit_json(folder / "model_index.json", **index, **{ENCODER: ["transformers", "T5EncoderModel"]})
    return folder


@pytest.fixture(scope="module")
def converted(pipeline: Path) -> Path:
    """Both of them quantized."""
    convert(pipeline, pipeline.with_name("both"), options=BOTH)
    return pipeline.with_name("both")


@pytest.fixture
def release(converted: Path, tmp_path: Path) -> Path:
    """The same, to be changed, made with versions that stay the same."""
    copy = shutil.copytree(converted, tmp_path / "release")
    edit_json(copy / MANIFEST, versions={"lensconv": "1.2.3", "sdnq": "0.2.4", "torch": "2.8.0+cpu"})
    return copy


@pytest.fixture(scope="module")
def lens_release(tiny_repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Lens pipeline whose transformer and autoencoder are quantized."""
    output = tmp_path_factory.mktemp("several") / "lens"
    convert(
        tiny_repo, output, parse_recipe(RECIPE, where="both.toml"), ConvertOptions(components=("transformer", "vae"))
    )
    return output


def card_of(release: Path, evidence: Path | None = None, *, unverified: bool = False) -> str:
    """The text of the card without the programs, and without checksums."""
    make_card(release, evidence, CardOptions(repo="owner/Tiny", license="mit", unverified=unverified))
    text = (release / "README.md").read_text()
    text = re.sub(r"\n## Usage\n.*?\nThe configuration", "\n## Usage\n\nThe configuration", text, flags=re.DOTALL)
    return re.sub("`[0-9a-f]{64}`", "`…`", text)


def weights_of(release: Path, *names: str) -> dict[str, list[dict[str, Any]]]:
    """What measurements say of the weight files of these components."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name in names:
        for file in sorted((release / name).glob("*.safetensors")):
            content = file.read_bytes()
            entry = {"name": file.name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            found.setdefault(name, []).append(entry)
    return found


def measured(folder: Path, weights: Mapping[str, list[dict[str, Any]]]) -> Path:
    """A folder with measurements of these weights; of none, they have no sha256."""
    folder.mkdir(exist_ok=True)
    parts = {name: files for name, files in weights.items() if name != "transformer"}
    source = {"repo_id": "owner/Source", "transformer": weights.get("transformer"), "components": parts}
    if not parts:
        del source["components"]
    sources = {"sources": {"original": source, "quantized": source}} if weights else {}
    (folder / MATRIX).write_text(json.dumps(published_matrix() | sources))
    return folder


def test_a_card_of_two_components_as_a_whole(release: Path) -> None:
    check_expected("card_several.md", card_of(release))


def test_tags_follow_from_the_dtypes_of_the_weights(lens_release: Path, tmp_path: Path) -> None:
    release = shutil.copytree(lens_release, tmp_path / "release")
    tags = yaml.safe_load(card_of(release).split("---")[1])["tags"]
    assert tags == ["lens", "text-to-image", "sdnq", "quantized", "static-quantization", "8-bit", "int8"]


def test_what_a_card_says_if_all_components_are_quantized(release: Path) -> None:
    index = json.loads((release / "model_index.json").read_text())
    del index["vae"]
    (release / "model_index.json").write_text(json.dumps(index))
    edit_json(release / ENCODER / "quantization_config.json", use_quantized_matmul=True)
    config = json.loads((release / ENCODER / "config.json").read_text())
    config["quantization_config"]["use_quantized_matmul"] = True
    (release / ENCODER / "config.json").write_text(json.dumps(config))
    text = card_of(release)
    assert "Sizes of the models of the pipeline; all were quantized:" in text
    assert ". The whole pipeline takes 3.7 MB: 71.9% less than the whole source." in text
    assert "as in the source," not in text
    assert "Configurations contain the flag `use_quantized_matmul`" in text
    for name in ("transformer", ENCODER):
        assert f"pipe.{name} = apply_sdnq_options_to_model(pipe.{name}, use_quantized_matmul=True)\n" in text


def test_a_card_of_a_text_encoder_alone_says_nothing_of_a_quantized_transformer(pipeline: Path, tmp_path: Path) -> None:
    """Also where an earlier version of lensconv wrote a summary, whose keys call the encoder a transformer."""
    release = tmp_path / "release"
    convert(pipeline, release, options=ConvertOptions(components=(ENCODER,)))
    summary = json.dumps({"quant_transformer_dtypes": {"UINT8": 1}}).encode()
    list_file(release, "sdnq_quantization_summary.json", summary)
    text = card_of(release, measured(tmp_path / "evidence", weights_of(release, "transformer", ENCODER)))
    assert "- **Size:** the text encoder 2 takes 427.5 kB (427,520 bytes): 72.9% less than the source" in text
    assert "12 modules of T5EncoderModel are quantized" in text
    assert "| `transformer` | LensTransformer2DModel | as in the source | F32 |" in text
    assert not [words for words in ("the transformer takes", "\n- lens\n", "modulation", "Both tr") if words in text]
    assert "sdnq\\_quantization\\_summary.json](" not in text
    # Measurements from before the weights of encoders were noted say nothing of what was quantized.
    with pytest.raises(EvidenceError, match=f"no sha256 of the weights of {ENCODER}, which was quantized as well"):
        make_card(release, measured(tmp_path / "evidence", weights_of(release, "transformer")))


def test_measurements_are_those_of_all_quantized_components(release: Path, pipeline: Path, tmp_path: Path) -> None:
    folder = tmp_path / "evidence"
    text = card_of(release, measured(folder, weights_of(release, "transformer", ENCODER, "vae")))
    assert "nverified" not in text
    assert json.loads((release / MANIFEST).read_text())["card"]["verified"] is True
    # The encoder is converted again, with another recipe; the transformer stays as it is.
    again = tmp_path / "again"
    options = ConvertOptions(components=BOTH.components, settings=(f"{ENCODER}/*=int8",))
    convert(pipeline, again, options=options)
    assert weights_of(again, "transformer") == weights_of(release, "transformer")
    before = snapshot(again)
    for unverified in (False, True):
        with pytest.raises(EvidenceError, match="is stale: the sha256 of the weights"):
            card_of(again, folder, unverified=unverified)
    # Measurements that name the transformer alone, or nothing, may be of the first encoder as well.
    measured(folder, weights_of(release, "transformer"))
    with pytest.raises(EvidenceError, match=f"no sha256 of the weights of {ENCODER}, which was quantized as well"):
        card_of(again, folder)
    assert snapshot(again) == before
    text = card_of(again, folder, unverified=True)
    assert "contains no sha256 of all quantized weights: `text_encoder_2` may have changed, so the figures" in text
    assert "*These figures are unverified: they come without a sha256 of all quantized weights.*" in text
    assert json.loads((again / MANIFEST).read_text())["card"]["verified"] is False
    assert "no sha256 of the weights that were measured, so" in card_of(again, measured(folder, {}), unverified=True)


@pytest.mark.parametrize("change", ["sha256", "name", "more", "component"])
def test_measurements_with_other_files_are_stale(change: str, release: Path, tmp_path: Path) -> None:
    """Also those of a component that was not quantized, or that the release does not have."""
    weights = weights_of(release, "transformer", ENCODER, "vae")
    if change == "component":
        weights["safety_checker"] = weights["vae"]
    elif change == "more":
        weights[ENCODER] += weights["vae"]
    else:
        weights["vae"][0][change] = "0" * 64
    with pytest.raises(EvidenceError, match="is stale: the sha256 of the weights"):
        card_of(release, measured(tmp_path / "evidence", weights))


def test_measurements_without_one_of_the_shards_are_stale(pipeline: Path, tmp_path: Path) -> None:
    release = tmp_path / "release"
    convert(pipeline, release, options=ConvertOptions(components=(ENCODER,), shard_bytes=300_000))
    weights = weights_of(release, "transformer", ENCODER)
    assert len(weights[ENCODER]) > 1
    card_of(release, measured(tmp_path / "evidence", weights))
    weights[ENCODER].pop()
    with pytest.raises(EvidenceError, match="is stale: the sha256 of the weights"):
        card_of(release, measured(tmp_path / "evidence", weights))


def test_damage_in_the_second_component_is_found(release: Path) -> None:
    write_card(release, "Tiny")
    assert (
        len(examine_release(release, "owner/tiny").files)
        == len(json.loads((release / MANIFEST).read_text())["files"]) + 1
    )
    config = f"{ENCODER}/config.json"
    content = (release / config).read_bytes()
    list_file(release, config, content.replace(b'"uint4"', b'"int4"', 1))
    disagree = f"{ENCODER}: config: config.json and quantization_config.json disagree on weights_dtype"
    with pytest.raises(ReleaseError, match=disagree):
        examine_release(release, "owner/tiny")
    with pytest.raises(MalformedCheckpoint, match=disagree):
        make_card(release)
    list_file(release, config, content)
    edit_manifest(release, lambda found: found["components"][1]["output"]["headers"].clear())
    with pytest.raises(ReleaseError, match=f"{ENCODER}/model.safetensors is not listed|{ENCODER}/model.safetensors"):
        examine_release(release, "owner/tiny")
    with pytest.raises(MalformedCheckpoint, match=f"{ENCODER}/model.safetensors: differs from the file in {MANIFEST}"):
        make_card(release)
    plain = save_model(release / ENCODER / "plain", "T5EncoderModel") / "model.safetensors"
    shutil.copy(plain, release / ENCODER / "model.safetensors")
    with pytest.raises(UnsupportedCheckpoint, match=f"/{ENCODER}: no module in it is quantized"):
        make_card(release)


@pytest.mark.long
def test_a_release_of_two_components_is_rehearsed(converted: Path, tmp_path: Path) -> None:
    release = shutil.copytree(converted, tmp_path / "release")
    write_card(release, "Tiny")
    with faulty_hub(HubSettings(tmp_path / "hub")) as hub:
        options = PublishOptions(receipt=tmp_path / "receipt.json")
        course = Course(hub, release, "rehearsal/tiny", options, tmp_path, tmp_path / "x.png", SILENT, quiet=True)
        course.publish()
        assert "checks passed" in course.audit()
        course.download()
        encoder = course.downloaded / ENCODER / "config.json"
        content = encoder.read_bytes()
        encoder.unlink()
        encoder.write_bytes(content.replace(b'"uint4"', b'"int4"', 1))
        with pytest.raises(ReleaseError, match=f"^{ENCODER}: config: "):
            course.load()


def test_subjects_name_what_is_quantized_and_all_weights(tiny_repo: Path, lens_release: Path, tmp_path: Path) -> None:
    notes = Notes()
    original, both = open_subjects(tiny_repo, lens_release, notes)
    assert (original.label, both.label) == (f"Original {tiny_repo.name}", "SDNQ int8 static, vae int8 static")
    weights = weights_of(lens_release, "transformer", "text_encoder", "vae")
    parts = {name: weights[name] for name in ("text_encoder", "vae")}
    expected = {"repo_id": "lens", "revision": None, "transformer": weights["transformer"], "components": parts}
    assert both.source() == expected
    rows = sources_table({"original": {**expected, "components": {}}, "quantized": expected}).rows
    files = ("transformer/diffusion_pytorch_model", "text_encoder/model", "vae/diffusion_pytorch_model")
    assert [row[3] for row in rows[1:]] == [f"{file}.safetensors" for file in files]
    assert rows[0][3] == "diffusion_pytorch_model.safetensors"
    note_differences((original, both), notes)
    assert notes.texts == []
    # The autoencoder alone is quantized.
    alone = shutil.copytree(lens_release, tmp_path / "alone")
    shutil.rmtree(alone / "transformer")
    shutil.copytree(tiny_repo / "transformer", alone / "transformer")
    edit_manifest(alone, lambda found: found["components"].pop(0))
    _, vae = open_subjects(tiny_repo, alone, notes)
    assert vae.label == "SDNQ vae int8 static"
    with pytest.raises(UsageError, match="is quantized, and"):
        open_subjects(alone, tiny_repo, notes)
    note_differences((vae, original), notes)
    assert [text.partition(";")[0] for text in notes.texts] == ["the repos differ in more than the transformer: vae"]


def test_a_summary_of_another_component_is_left_alone(lens_release: Path, tiny_repo: Path, tmp_path: Path) -> None:
    """It calls the autoencoder a transformer, and its bytes are not the transformer's."""
    release = shutil.copytree(lens_release, tmp_path / "release")
    summary = json.loads((release / "sdnq_quantization_summary.json").read_text())
    summary["quant_transformer_dtypes"] = {"INT8": 10**6}
    summary["quant_transformer_tensor_storage_gb"] = 0.001
    (release / "sdnq_quantization_summary.json").write_text(json.dumps(summary))
    with pytest.raises((UnsupportedCheckpoint, EvidenceError)):
        open_subjects(tiny_repo, release, SILENT)
    edit_manifest(release, lambda found: found["components"].pop(0))
    _, subject = open_subjects(tiny_repo, release, SILENT)
    (tmp_path / "out").mkdir()
    copy_summary(subject, tmp_path / "out")
    assert names_in(tmp_path / "out") == []


def test_weights_are_compared_in_every_quantized_component(tiny_repo: Path, lens_release: Path, tmp_path: Path) -> None:
    def compare(original: Path, quantized: Path) -> tuple[list[str], list[str]]:
        notes = Notes()
        subjects: dict[str, Subject] = {s.name: s for s in open_subjects(original, quantized, SILENT)}
        found = compare_weights(subjects, notes) or {"fidelity": {"families": []}}
        return [family["name"] for family in found["fidelity"]["families"]], notes.texts

    families, notes = compare(tiny_repo, lens_release)
    assert notes == []
    assert {name.partition("/")[0] for name in families} == {"transformer", "vae"}
    # What is refused of one does not lose the other.
    other = shutil.copytree(tiny_repo, tmp_path / "other")
    edit_json(other / "vae" / "config.json", quantization_config={"quant_method": "sdnq", "weights_dtype": "int8"})
    families, notes = compare(other, lens_release)
    assert {name.partition("/")[0] for name in families} == {"transformer"}
    assert [note.replace(str(tmp_path), "") for note in notes] == [
        "weights of vae were not compared: /other/vae: is quantized as well"
    ]
    release = shutil.copytree(lens_release, tmp_path / "release")
    change_tensors(release / "vae/diffusion_pytorch_model.safetensors", lambda found: found["bn.running_mean"].add_(1))
    _, notes = compare(tiny_repo, release)
    assert any(note.startswith("weights: the check 'vae: kept tensors match the source' failed") for note in notes)
