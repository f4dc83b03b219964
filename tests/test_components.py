"""The components of a pipeline: what their loaders open, what is missing, what stays as it is, and variants."""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from converter import convert, make_card, plan, verify
from converter.checkpoint.components import PipelineComponent, examine_components
from converter.checkpoint.staging import Staging
from converter.conversion.options import ConvertOptions
from converter.conversion.request import open_request
from converter.errors import MalformedCheckpoint, ReleaseError
from converter.publication.preflight import examine_release
from tests.cases import check_cases
from tests.checkpoints import failed, write_holes
from tests.conftest import Lensconv, edit_json, forget_file, list_file, snapshot
from tests.releases import write_card
from tests.tiny_models import WEIGHTS, build_model, make_pipeline, model_class, save_model

Content = str | int | list[str]
POINTER = b"version https://git-lfs.github.com/spec/v1\n"


def write_pipeline(folder: Path, library: str, class_name: str, files: dict[str, Content]) -> Path:
    """A pipeline with one component ``part``: texts, so many zeros, or safetensors with tensors of these names."""
    folder.mkdir()
    (folder / "model_index.json").write_text(json.dumps({"part": [library, class_name]}))
    for name, content in files.items():
        file = folder / "part" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            write_holes(file, [("F32", tensor, (2,)) for tensor in content])
        else:
            file.write_bytes(content.encode("latin-1") if isinstance(content, str) else bytes(content))
    return folder


def described(component: PipelineComponent, folder: Path) -> str:
    """All that was found, as one line."""
    footprint = component.footprint
    texts = [problem.with_hint for problem in component.problems] + [f"note: {note}" for note in component.notes]
    found = [f"{'model' if component.is_model else 'other'}{component.variant and f' in {component.variant}'}"]
    found += [" ".join(file.name for file in component.weights) or "nothing", str(footprint.bytes)]
    # How much of a long name is shown depends on the length of the folder's path.
    return " | ".join([*found, *(re.sub("x+…x+", "x…x", text.replace(f"{folder}/", "")) for text in texts)])


def test_what_a_loader_opens_follows_from_the_files_of_a_component(tmp_path: Path) -> None:
    def outcome(kind: str, files: dict[str, Content] | None, variant: str | None = None, how: str = "") -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        library, class_name = kind.split(".")
        write_pipeline(folder, library, class_name, files or {})
        (component,) = examine_components(folder, variant, reads_headers=how != "sizes")
        return described(component, folder)

    check_cases("components.jsonl", outcome)


def test_further_models_of_a_component_are_components(tmp_path: Path) -> None:
    from diffusers import ControlNetModel, MultiControlNetModel

    small: dict[str, Any] = {"block_out_channels": (4, 8), "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D")}
    small |= {"layers_per_block": 1, "cross_attention_dim": 8, "attention_head_dim": 2, "norm_num_groups": 2}

    (tmp_path / "model_index.json").write_text('{"controlnet": ["diffusers", "MultiControlNetModel"]}')
    for name in ("controlnet", "controlnet_1", "controlnet_3"):
        ControlNetModel(**small).save_pretrained(tmp_path / name)
    for class_name in ("MultiAdapter", "MultiControlNetUnionModel", "MultiControlNetModel"):
        edit_index(tmp_path, controlnet=["diffusers", class_name])
        assert [found.name for found in examine_components(tmp_path)] == ["controlnet", "controlnet_1"]
    assert len(MultiControlNetModel.from_pretrained(str(tmp_path / "controlnet")).nets) == 2


def shards(folder: Path, stem: str, variant: str = "", *, legacy: bool = False) -> None:
    """Split the weight file of a component into two shards, with the names of a variant in one of two styles."""
    whole = folder / f"{stem}.safetensors"
    tensors = load_file(whole)
    names: dict[str, str] = {}
    whole.unlink()
    for number, part in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2]), 1):
        digits = f"-{number:05}-of-00002"
        middle = (f"{digits}.{variant}" if legacy else f".{variant}{digits}") if variant else digits
        names |= dict.fromkeys(part, f"{stem}{middle}.safetensors")
        save_file({name: tensors[name] for name in part}, folder / names[part[0]], metadata={"format": "pt"})
    end = (f"{variant}.index" if legacy else f"index.{variant}") if variant else "index"
    index = {"metadata": {"total_size": 1}, "weight_map": names}
    (folder / f"{stem}.safetensors.{end}.json").write_text(json.dumps(index))


def pickled(folder: Path, stem: str) -> None:
    whole = folder / f"{stem}.safetensors"
    torch.save(load_file(whole), folder / f"{'pytorch_model' if stem == 'model' else stem}.bin")
    whole.unlink()


def renamed(folder: Path, stem: str) -> None:
    (folder / f"{stem}.safetensors").rename(folder / "weights.safetensors")


def cut(folder: Path, stem: str) -> None:
    content = (folder / f"{stem}.safetensors").read_bytes()
    (folder / f"{stem}.safetensors").write_bytes(content[:-1])


def without_shard(folder: Path, stem: str) -> None:
    shards(folder, stem)
    (folder / f"{stem}-00002-of-00002.safetensors").unlink()


def stale_index(folder: Path, stem: str) -> None:
    whole = (folder / f"{stem}.safetensors").read_bytes()
    without_shard(folder, stem)
    (folder / f"{stem}.safetensors").write_bytes(whole)


def without_metadata(folder: Path, stem: str) -> None:
    shards(folder, stem)
    index = folder / f"{stem}.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": json.loads(index.read_text())["weight_map"]}))


def other_names(folder: Path, stem: str) -> None:
    shards(folder, stem)
    index = folder / f"{stem}.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["no.such.tensor"] = content["weight_map"].popitem()[1]
    index.write_text(json.dumps(content))


def cut_pickle(folder: Path, stem: str) -> None:
    pickled(folder, stem)
    (file,) = folder.glob("*.bin")
    file.write_bytes(file.read_bytes()[:-100])


def without_config(folder: Path, _: str) -> None:
    (folder / "config.json").unlink()


@pytest.mark.parametrize(
    "change",
    [
        *(shards, pickled, renamed, cut, without_shard, stale_index, without_metadata, other_names, cut_pickle),
        without_config,
    ],
)
@pytest.mark.parametrize("class_name", ["CLIPTextModel", "AutoencoderKL"])
def test_what_is_refused_is_what_the_libraries_do_not_load(
    change: Callable[[Path, str], None], class_name: str, tmp_path: Path
) -> None:
    is_diffusers = class_name == "AutoencoderKL"
    save_model(tmp_path / "part", class_name)
    change(tmp_path / "part", "diffusion_pytorch_model" if is_diffusers else "model")
    library = "diffusers" if is_diffusers else "transformers"
    (tmp_path / "model_index.json").write_text(json.dumps({"part": [library, class_name]}))
    (component,) = examine_components(tmp_path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model_class(class_name).from_pretrained(tmp_path / "part")
    except Exception:  # noqa: BLE001 - whatever a library raises
        loads = False
    else:
        loads = True
    assert loads == (not component.problems), component.problems


def edit_index(folder: Path, **changes: Any) -> None:
    edit_json(folder / "model_index.json", **changes)


def link_out(file: Path) -> None:
    file.parent.mkdir(exist_ok=True)
    file.symlink_to("/etc/hostname")


def zip_in_place_of_pickle(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    with zipfile.ZipFile(folder / "diffusion_pytorch_model.bin", "w") as archive:
        archive.writestr("model/config.json", "{}")


#: An index, which diffusers prefers to the weight file beside it.
STALE = '{"metadata": {}, "weight_map": {"x": "absent.safetensors"}}'
#: What is done to a pipeline, and what both commands say.
REFUSALS: list[tuple[Callable[[Path], object], str]] = [
    (lambda folder: (folder / "vae" / WEIGHTS).unlink(), f"vae: contains no {WEIGHTS}, which its loader opens"),
    (lambda folder: cut(folder / "vae", "diffusion_pytorch_model"), f"vae/{WEIGHTS}: is cut short"),
    (
        lambda folder: (folder / "vae" / WEIGHTS).write_bytes(POINTER),
        f"vae/{WEIGHTS}: should be a safetensors file, but is a Git LFS pointer",
    ),
    (lambda folder: zip_in_place_of_pickle(folder / "vae"), "vae/diffusion_pytorch_model.bin: is a zip archive"),
    (lambda folder: (folder / "vae" / f"{WEIGHTS}.index.json").write_text(STALE), "vae/absent.safetensors: no such"),
    (lambda folder: (folder / "vae" / "config.json").unlink(), "vae/config.json: no such file"),
    (lambda folder: shutil.rmtree(folder / "vae"), "vae: no such folder, though model_index.json names it"),
    (lambda folder: shutil.rmtree(folder / "tokenizer"), "tokenizer: no such folder"),
    (lambda folder: edit_index(folder, **{"lensconv_manifest.json": ["x", "Y"]}), "lensconv_manifest.json: no such"),
    (lambda folder: link_out(folder / "tokenizer" / "private"), "private: is a link to /etc/hostname"),
    (
        lambda folder: (folder / "model_index.json").unlink(),
        "has no model_index.json; its folders transformer, vae contain weights",
    ),
]


@pytest.mark.parametrize(("change", "message"), REFUSALS, ids=[message[:30] for _, message in REFUSALS])
def test_plan_and_convert_refuse_the_same_for_the_same_reason(
    change: Callable[[Path], object], message: str, lensconv: Lensconv, tmp_path: Path
) -> None:
    source = make_pipeline(tmp_path / "source")
    change(source)
    outcomes = [lensconv("plan", source, "--json"), lensconv("convert", source, tmp_path / "out", "--json")]
    assert [outcome.code for outcome in outcomes] == [2, 2]
    assert outcomes[0].result == outcomes[1].result
    assert message in outcomes[0].result["error"]["message"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_plan_refuses_a_memory_limit_as_convert_does(lensconv: Lensconv, lens_source: Path, tmp_path: Path) -> None:
    outcomes = [
        lensconv(*words, "--memory", "1", "--json")
        for words in (("plan", lens_source), ("convert", lens_source, tmp_path / "out"))
    ]
    assert [outcome.code for outcome in outcomes] == [3, 3]
    assert outcomes[0].result == outcomes[1].result


def test_another_component_that_changes_while_it_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, note = make_pipeline(tmp_path / "source"), Staging.note

    def changing(self: Staging, component: str, tensor: str, facts: Any) -> None:
        note(self, component, tensor, facts)
        os.utime(source / "vae" / WEIGHTS, ns=(1, 1))

    monkeypatch.setattr(Staging, "note", changing)
    with pytest.raises(MalformedCheckpoint, match=rf"vae/{WEIGHTS}: was changed while it was read"):
        convert(source, tmp_path / "out")


def lose_file(release: Path, name: str) -> None:
    forget_file(release, name)
    (release / name).unlink()


def test_another_component_that_changes_between_two_runs(tmp_path: Path) -> None:
    """The second does not go on with the work of the first."""
    source = make_pipeline(tmp_path / "source")
    before = open_request(source, None, ConvertOptions()).identity("cpu")
    os.utime(source / "vae" / WEIGHTS, ns=(1, 1))
    after = open_request(source, None, ConvertOptions()).identity("cpu")
    assert [key for key in before if before[key] != after[key]] == ["components"]


def test_names_from_files_are_safe_to_show(lensconv: Lensconv, tmp_path: Path) -> None:
    source = make_pipeline(tmp_path / "source")
    shutil.copytree(source / "transformer", source / "\x1b[31m")
    edit_index(source, **{"\x1b[31m": ["diffusers", "LensTransformer2DModel"]})
    assert convert(source, tmp_path / "out").other_components[1].name == "\x1b[31m"
    for words in (("plan", source), ("verify", tmp_path / "out")):
        shown = lensconv(*words).stderr
        assert "\x1b[31m" not in shown
        assert "\\x1b[31m" in shown


#: What is done to a release whose manifest then lists it so, and what is wrong.
FAULTS: list[tuple[Callable[[Path], object], str]] = [
    (
        lambda release: list_file(release, f"vae/{WEIGHTS}", POINTER),
        f"vae/{WEIGHTS}: should be a safetensors file, but is a Git LFS pointer",
    ),
    (
        lambda release: list_file(release, f"vae/{WEIGHTS}", (release / "vae" / WEIGHTS).read_bytes()[:-1]),
        f"vae/{WEIGHTS}: is cut short",
    ),
    (
        lambda release: lose_file(release, "text_encoder/model.safetensors"),
        "text_encoder: contains no model.safetensors",
    ),
]


@pytest.mark.parametrize(("change", "message"), FAULTS, ids=["pointer", "cut", "missing"])
def test_what_was_wrong_in_the_source_is_found_in_a_release_and_said_of_the_source(
    change: Callable[[Path], object], message: str, release: Path
) -> None:
    """As earlier versions of lensconv made them: the manifest lists what is there."""
    write_card(release, "Tiny")
    change(release)
    found = failed(verify(release))
    assert list(found) == ["components"]
    assert message in found["components"]
    assert verify(release, components=["transformer"]).ok
    with pytest.raises(ReleaseError, match=message) as caught:
        examine_release(release, "maker/tiny")
    assert caught.value.hint == "Download the source again, then convert it again."


def test_what_the_manifest_says_is_not_said_twice(release: Path) -> None:
    write_card(release, "Tiny")
    vae = release / "vae" / WEIGHTS
    content = vae.read_bytes()
    vae.write_bytes(b"\xff" * len(content))
    assert list(failed(verify(release))) == ["components"]
    with pytest.raises(ReleaseError, match="claims a header") as caught:
        examine_release(release, "maker/tiny")
    assert caught.value.hint == "Convert again, or download the release again."
    vae.write_bytes(content[:-1])
    assert list(failed(verify(release))) == ["manifest"]
    shutil.rmtree(release / "vae")
    assert list(failed(verify(release))) == ["manifest"]


def test_weights_whose_headers_are_not_read_are_only_said_to_have_their_names_and_sizes(release: Path) -> None:
    lose_file(release, f"vae/{WEIGHTS}")
    for name, how in (("vae/diffusion_pytorch_model.bin", "by name and size"), (f"vae/{WEIGHTS}", "by their headers")):
        list_file(
            release,
            name,
            b"\x80\2}q" if name.endswith("bin") else (release / "text_encoder/model.safetensors").read_bytes(),
        )
        (check,) = (check for check in verify(release).checks if check.name == "components")
        assert (check.ok, check.detail.endswith(f"weights complete {how}")) == (True, True), check


def test_what_stays_as_it_is_is_said_with_its_bytes(lensconv: Lensconv, tmp_path: Path) -> None:
    source = make_pipeline(tmp_path / "source")
    shutil.copytree(source / "transformer", source / "transformer_2")
    edit_index(source, transformer_2=["diffusers", "LensTransformer2DModel"])
    planned = lensconv("plan", source, "--json").result
    size = planned["source"]["total_bytes"]
    others = [
        {"name": "vae", "class_name": "AutoencoderKLFlux2", "bytes": 20, "bytes_by_dtype": {"F32": 20}},
        {
            "name": "transformer_2",
            "class_name": "LensTransformer2DModel",
            "bytes": size,
            "bytes_by_dtype": {"F32": size},
        },
    ]
    whole = {"bytes": planned["output"]["total_bytes"] + size + 20, "source_bytes": 2 * size + 20}
    assert planned["other_components"] == others
    assert planned["whole"] == whole | {"vs_source": 1 - whole["bytes"] / whole["source_bytes"]}
    assert any(note.startswith("transformer_2 (LensTransformer2DModel) stays as it is") for note in planned["notes"])
    converted = lensconv("convert", source, tmp_path / "out", "--json").result
    assert [converted[key] for key in ("other_components", "whole")] == [others, planned["whole"]]
    verified = lensconv("verify", tmp_path / "out", "--json").result
    assert [verified[key] for key in ("other_components", "whole_bytes")] == [others, whole["bytes"]]
    assert lensconv("verify", tmp_path / "out", "--component", "transformer", "--json").result["other_components"] == []
    # The note says how to convert both; then there is nothing more to convert.
    second = ConvertOptions(components=("transformer_2",))
    assert plan(tmp_path / "out", options=second).notes == (
        "transformer (LensTransformer2DModel) stays as it is; it is quantized already (sdnq)",
    )
    convert(tmp_path / "out", tmp_path / "both", options=second)
    make_card(tmp_path / "both")
    card = (tmp_path / "both" / "README.md").read_text()
    assert "That source already contained `transformer` quantized by SDNQ." in card
    assert "| `transformer` | LensTransformer2DModel | as in the source (sdnq) |" in card
    assert "| `transformer` | as in the source (LensTransformer2DModel, sdnq) |" in card
    report = verify(tmp_path / "both", components=["transformer_2"], against=source)
    assert report.ok
    assert verify(tmp_path / "both").whole_bytes == 2 * (whole["bytes"] - size - 20) + 20


def test_a_release_without_a_denoiser_is_examined_by_its_manifest(tmp_path: Path) -> None:
    source = make_pipeline(tmp_path / "source")
    (source / "transformer").rename(source / "prior")
    index = (source / "model_index.json").read_text()
    (source / "model_index.json").write_text(index.replace('"transformer"', '"prior"'))
    release = tmp_path / "release"
    convert(source, release, options=ConvertOptions(components=("prior",)))
    write_card(release, "tiny")
    examine_release(release, "maker/tiny")
    list_file(release, f"vae/{WEIGHTS}", POINTER)
    with pytest.raises(ReleaseError, match=rf"^{release}: vae/{WEIGHTS}: should be a safetensors file"):
        examine_release(release, "maker/tiny")


def test_a_component_alone_has_no_others(lensconv: Lensconv, lens_source: Path) -> None:
    planned = lensconv("plan", lens_source, "--json").result
    assert planned["other_components"] == []
    assert planned["whole"]["source_bytes"] == planned["source"]["total_bytes"]
    assert "Not converted" not in lensconv("plan", lens_source).stderr


def make_variants(folder: Path, *, style: str, has_plain: bool) -> Path:
    """A pipeline of stock classes with weights in fp16, and other ones under plain names."""
    for name, class_name, stem in (
        ("transformer", "FluxTransformer2DModel", "diffusion_pytorch_model"),
        ("text_encoder", "CLIPTextModel", "model"),
    ):
        save_model(folder / name, class_name)
        plain = (folder / name / f"{stem}.safetensors").read_bytes()
        half = {key: 2 * tensor for key, tensor in load_file(folder / name / f"{stem}.safetensors").items()}
        save_file(half, folder / name / f"{stem}.safetensors", metadata={"format": "pt"})
        if style == "single":
            (folder / name / f"{stem}.safetensors").rename(folder / name / f"{stem}.fp16.safetensors")
        else:
            shards(folder / name, stem, "fp16", legacy=style == "legacy")
        if has_plain:
            (folder / name / f"{stem}.safetensors").write_bytes(plain)
    parts = dict.fromkeys(("scheduler", "vae", "tokenizer", "text_encoder_2", "tokenizer_2"), (None, None))
    index = {"_class_name": "FluxPipeline", **parts, "transformer": ("diffusers", "FluxTransformer2DModel")}
    (folder / "model_index.json").write_text(json.dumps(index | {"text_encoder": ("transformers", "CLIPTextModel")}))
    return folder


@pytest.mark.parametrize(("style", "has_plain"), [("single", True), ("new", True), ("legacy", False)])
def test_a_variant_is_converted_under_plain_names_that_stock_loaders_open(
    style: str, has_plain: bool, tmp_path: Path
) -> None:
    from diffusers import FluxPipeline

    source = make_variants(tmp_path / "source", style=style, has_plain=has_plain)
    options = ConvertOptions(variant="fp16" if has_plain else None)
    convert(source, tmp_path / "out", "sdnq-int8", options)
    assert verify(tmp_path / "out", against=source, variant=options.variant).ok
    assert not [name for name in snapshot(tmp_path / "out") if "fp16" in name]
    nothing = dict.fromkeys(("scheduler", "vae", "tokenizer", "text_encoder_2", "tokenizer_2"))
    loaded = FluxPipeline.from_pretrained(tmp_path / "out", **nothing)
    expected = build_model("CLIPTextModel").state_dict()
    for name, tensor in loaded.text_encoder.state_dict().items():
        assert torch.equal(tensor, 2 * expected[name]), name
    kept = build_model("FluxTransformer2DModel").state_dict()["proj_out.bias"]
    assert torch.equal(loaded.transformer.proj_out.bias.float(), (2 * kept).bfloat16().float())


def test_a_variant_is_where_it_exists_and_exactly_named(lensconv: Lensconv, tmp_path: Path) -> None:
    source = make_variants(tmp_path / "source", style="new", has_plain=True)
    for file in (source / "text_encoder").glob("*fp16*"):
        file.unlink()
    found = plan(source, options=ConvertOptions(variant="fp16"))
    assert [note for note in found.notes if "only the variant" in note] == []
    outcome = lensconv("plan", source, "--variant", "fp", "--json")
    assert outcome.result["error"]["hint"] == "Its variants are: fp16."
    for words in (("plan", source / "vae"), ("verify", source), ("verify", "hf://a/b", "--against", source)):
        assert lensconv(*words, "--variant", "fp16").code == 2
    (file, *_) = (source / "transformer").glob("*.safetensors")
    assert "SOURCE is a file" in lensconv("plan", file, "--variant", "fp16").stderr


def test_two_conversions_of_a_variant_write_the_same_bytes(tmp_path: Path) -> None:
    source = make_variants(tmp_path / "source", style="legacy", has_plain=True)
    for name in ("one", "two"):
        convert(source, tmp_path / name, "sdnq-int8", ConvertOptions(variant="fp16"))
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "two")
