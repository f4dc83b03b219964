"""Releases whose source is converted again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from safetensors.torch import load_file, save_file

from converter import ConvertOptions, convert, errors, reproduce
from converter.checkpoint.header import read_header
from converter.checkpoint.layout import TensorSpec, lay_out
from converter.conversion.execution.summing import TensorSums
from converter.schemas import load_schema
from tests.conftest import Lensconv, Outcome, Serve, edit_json, forget_file, list_file, snapshot
from tests.loopback import PINNED, PLACE
from tests.pipelines import NAMES
from tests.reference import LENS_OPTIONS, convert_with_sdnq
from tests.tiny_models import save_model

pytestmark = pytest.mark.usefixtures("plain_client")

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def streamed(serve: Serve, tiny_repo: Path, tmp_path: Path) -> Path:
    """A release whose source is a repo on the Hub that still runs."""
    serve(tiny_repo)
    convert(PLACE, tmp_path / "release")
    return tmp_path / "release"


def failed(report: Any) -> dict[str, str]:
    return {check.title: check.detail for check in report.checks if not check.ok}


def shown(outcome: Outcome) -> str:
    """What a command prints for people."""
    return " ".join((outcome.stdout + outcome.stderr).split())


def flip(file: Path, offset: int) -> None:
    content = bytearray(file.read_bytes())
    content[offset] ^= 1
    file.write_bytes(content)


def test_a_release_of_ours_agrees(streamed: Path, lensconv: Lensconv) -> None:
    before = snapshot(streamed)
    done = lensconv("reproduce", streamed, "--json")
    assert done.code == 0, done.stdout
    jsonschema.validate(done.result, load_schema("reproduce"))
    (component,) = done.result["components"]
    assert (component["source"], component["recipe"], component["differing"]) == (PINNED, "manifest", [])
    assert [check["name"] for check in done.result["checks"]] == [
        *("source", "tensors", "files", "config", "other files")
    ]
    assert snapshot(streamed) == before
    assert "agree, byte for byte" in shown(lensconv("reproduce", streamed))


@pytest.mark.parametrize("part", ["weight", "scale", "kept"])
def test_one_byte_names_its_tensor(part: str, streamed: Path, lensconv: Lensconv) -> None:
    file = streamed / "transformer" / WEIGHTS
    header = read_header(file)
    name = {
        "weight": "transformer_blocks.1.attn.img_qkv.weight",
        "scale": "transformer_blocks.1.attn.img_qkv.scale",
        "kept": "img_in.bias",
    }[part]
    name = name if name in header.tensors else next(key for key in header.tensors if key.endswith(part))
    flip(file, header.data_start + header.tensors[name].end - 1)
    done = lensconv("reproduce", streamed, "--json")
    assert done.code == 1
    assert done.result["components"][0]["differing"] == [name]
    text = shown(lensconv("reproduce", streamed))
    assert f"First tensor that differs: {name}." in text


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (lambda folder: flip(folder / "vae" / WEIGHTS, -1), "other files"),
        (lambda folder: edit_json(folder / "transformer" / "config.json", num_layers=3), "config"),
        (lambda folder: edit_json(folder / "transformer" / "quantization_config.json", extra=1), "config"),
    ],
)
def test_other_files_are_compared(change: Callable[[Path], object], check: str, streamed: Path) -> None:
    change(streamed)
    assert check in failed(reproduce(streamed))


@pytest.mark.parametrize("is_listed", [True, False])
@pytest.mark.parametrize("name", ["vae/model.py", "model.py", "transformer/model.py", "tokenizer/more.json"])
def test_a_file_that_the_source_does_not_have(name: str, is_listed: bool, streamed: Path) -> None:
    if is_listed:
        list_file(streamed, name, b"x")
    else:
        (streamed / name).write_bytes(b"x")
    assert failed(reproduce(streamed)) == {"other files": f"{name} is not in the source"}


def test_a_changed_file_that_the_manifest_does_not_list(streamed: Path) -> None:
    forget_file(streamed, "vae/config.json")
    edit_json(streamed / "vae" / "config.json", extra=1)
    assert failed(reproduce(streamed)) == {"other files": "vae/config.json differs from the source"}


def test_another_source(streamed: Path, tiny_repo: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_repo, tmp_path / "other")
    file = folder / "transformer" / WEIGHTS
    flip(file, -1)
    report = reproduce(streamed, folder)
    last = max(read_header(file).tensors.values(), key=lambda entry: entry.end)
    assert report.components[0].differing == (last.name,)
    assert "source" not in failed(report), "only headers of a source on this machine are compared"
    assert reproduce(streamed, tiny_repo).ok


def test_a_release_on_the_hub(serve: Serve, tiny_release: Path, tiny_repo: Path) -> None:
    hub = serve(tiny_release)
    report = reproduce(PLACE, tiny_repo)
    assert report.ok, failed(report)
    assert report.release == PINNED
    assert report.received_bytes <= hub.sent
    assert sum("/lfs/vae" in path for _, path, _ in hub.seen) == 0, "records are enough"


@pytest.mark.parametrize("shard", ["5GB", "200KB"])
def test_one_that_sdnq_made(shard: str, lens_source: Path, tmp_path: Path) -> None:
    release = convert_with_sdnq(lens_source, tmp_path / "out", "LensTransformer2DModel", LENS_OPTIONS, shard=shard)
    report = reproduce(release, lens_source)
    assert report.components[0].recipe == "config"
    assert any("recipe is inferred" in note for note in report.notes)
    assert report.components[0].differing == ()
    # Nothing in such a release says how large its files may be.
    assert failed(report).keys() == (set() if shard == "5GB" else {"files"})
    file = min(release.glob("*.safetensors"))
    header = read_header(file)
    entry = next(iter(header.tensors.values()))
    flip(file, header.data_start + entry.start)
    assert reproduce(release, lens_source).components[0].differing == (entry.name,)


@pytest.mark.parametrize(
    "options",
    [
        'weights_dtype = "int8"',
        'weights_dtype = "float8_e4m3fn"',
        'weights_dtype = "uint4"\nuse_svd = true\nsvd_rank = 8',
        'weights_dtype = "int8"\nuse_stochastic_rounding = true',
        'weights_dtype = "int4"\nuse_dynamic_quantization = true',
        'weights_dtype = "uint4"\nuse_hadamard = true',
    ],
)
def test_other_recipes(options: str, lens_source: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(f'name = "r"\nseed = 3\n[sdnq]\n{options}\n[[rules]]\nmatch = "*.img_mlp.*"\nkeep = true\n')
    convert(lens_source, tmp_path / "out", str(recipe))
    report = reproduce(tmp_path / "out", lens_source)
    assert report.ok, failed(report)


@pytest.mark.parametrize(
    "options",
    [{"rounding": "scale"}, {"quantize_from": "float32"}, {"shard_bytes": 300_000}, {"settings": ("*.attn.*=int8",)}],
)
def test_options_that_the_manifest_has(options: dict[str, Any], lens_source: Path, tmp_path: Path) -> None:
    convert(lens_source, tmp_path / "out", options=ConvertOptions(**options))
    report = reproduce(tmp_path / "out", lens_source)
    assert report.ok, failed(report)


def test_other_classes(tmp_path: Path) -> None:
    for name in ("UNet2DConditionModel", "T5EncoderModel"):
        source = save_model(tmp_path / name, name)
        convert(source, tmp_path / f"{name}-out")
        report = reproduce(tmp_path / f"{name}-out", source)
        assert report.ok, failed(report)


def test_several_components(several: Path, several_release: Path) -> None:
    report = reproduce(several_release, several)
    assert report.ok, failed(report)
    assert {component.name for component in report.components} == set(NAMES)
    assert reproduce(several_release, several, components=[report.components[1].name]).ok


def test_what_cannot_be_reproduced(lens_source: Path, lens_output: Path, tmp_path: Path, lensconv: Lensconv) -> None:
    alone = lensconv("reproduce", lens_output)
    assert alone.code == 2
    assert "nothing says where its source is" in alone.stderr
    original = lensconv("reproduce", lens_source, lens_source)
    assert original.code == 2
    assert "quantized nothing" in original.stderr
    release = shutil.copytree(lens_output, tmp_path / "release")
    file = release / "lensconv_manifest.json"
    content = json.loads(file.read_text())
    for entry, reason in (
        ({"adapters": [{"name": "x", "sha256": "0" * 64, "scale": 1.0}]}, "LoRA adapters"),
        ({"hub": {"repository": 3, "commit": "x", "folder": ""}}, "does not say where"),
        ({"hub": {"repository": "../..", "commit": "x", "folder": ""}}, "not the address"),
    ):
        changed = json.loads(json.dumps(content))
        changed["components"][0]["source"] |= entry
        file.write_text(json.dumps(changed))
        source = lens_source if "adapters" in entry else None
        with pytest.raises(errors.InputError, match=reason):
            reproduce(release, source)
    with pytest.raises(errors.UsageError):
        reproduce(release, "hf://x")


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_source_with_plain_files_and_a_variant(
    variant: str | None, serve: Serve, tiny_repo: Path, tmp_path: Path
) -> None:
    repo = shutil.copytree(tiny_repo, tmp_path / "repo")
    file = repo / "transformer" / WEIGHTS
    half = {name: tensor.half() for name, tensor in load_file(file).items()}
    save_file(half, file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    serve(repo)
    convert(PLACE, tmp_path / "out", options=ConvertOptions(variant=variant))
    report = reproduce(tmp_path / "out")
    assert report.ok, failed(report)


@pytest.mark.parametrize("name", [["a"], {}, None, 3])
def test_a_name_of_a_source_file_that_is_no_text(
    name: object, lens_source: Path, lens_output: Path, tmp_path: Path
) -> None:
    release = shutil.copytree(lens_output, tmp_path / "release")
    file = release / "lensconv_manifest.json"
    content = json.loads(file.read_text())
    content["components"][0]["source"]["files"][0]["name"] = name
    file.write_text(json.dumps(content))
    assert "not a file that the manifest lists" in failed(reproduce(release, lens_source))["source"]


def test_versions_that_differ_are_noted(lens_source: Path, lens_output: Path, tmp_path: Path) -> None:
    release = shutil.copytree(lens_output, tmp_path / "release")
    file = release / "lensconv_manifest.json"
    content = json.loads(file.read_text())
    content["versions"]["sdnq"] = "0.0.1"
    file.write_text(json.dumps(content))
    assert any("sdnq 0.0.1" in note for note in reproduce(release, lens_source).notes)


def test_pieces_must_come_in_order() -> None:
    sums = TensorSums(lay_out([TensorSpec("a", "U8", (4,)), TensorSpec("b", "U8", (4,))], stem="x"))
    (file, start) = (
        "x.safetensors",
        lay_out([TensorSpec("a", "U8", (4,)), TensorSpec("b", "U8", (4,))], stem="x").slots["b"].offset,
    )
    sums.write(file, start, b"12")
    with pytest.raises(ValueError, match="b: bytes at"):
        sums.write(file, start + 3, b"4")
