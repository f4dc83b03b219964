"""Verification of releases by their manifest."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from converter import Recipe, convert, verify
from converter.verification.beside import dangers
from tests.checkpoints import QKV, WEIGHTS, edit_manifest, failed, rewrite
from tests.expected import check_expected
from tests.tiny_models import save_model


@pytest.fixture
def folder(lens_output: Path, tmp_path: Path) -> Path:
    """A quantized checkpoint that may be changed."""
    return shutil.copytree(lens_output, tmp_path / "out")


def drop(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda m: m.update(files=[entry for entry in m["files"] if entry["name"] != name])


def change_modules(change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], object]:
    return lambda m: change(only(m)["recipe"]["quantized"])


def only(manifest: dict[str, Any]) -> dict[str, Any]:
    """The only component of a manifest."""
    (component,) = manifest["components"]
    assert isinstance(component, dict)
    return component


def rename(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda m: m["files"].append({"name": name, "bytes": 1, "sha256": "0" * 64})


#: Manifests that are not those of the release.
MANIFESTS: dict[str, Callable[[dict[str, Any]], object]] = (
    {"another format": lambda m: m.update(format="x\x1b[2J"), "another version": lambda m: m.update(format_version=3)}
    | {"a version that is true": lambda m: m.update(format_version=True), "no weights listed": drop(WEIGHTS)}
    | {"no config listed": drop("config.json"), "no quantization config listed": drop("quantization_config.json")}
    | {"a path out of the folder": rename("../secret"), "a folder": rename("."), "no name": rename("\ud800")}
    | {"nothing listed": lambda m: m.update(files=[]), "a name that is too long": rename("x" * 300)}
    | {"a file listed twice": lambda m: m["files"].append(m["files"][0])}
    | {"another size": lambda m: m["files"][0].update(bytes=5)}
    | {"another header": lambda m: only(m)["output"]["headers"].update({WEIGHTS: "0" * 64})}
    | {"one header too many": lambda m: only(m)["output"]["headers"].update(old="0" * 64)}
    | {"headers that are numbers": lambda m: only(m)["output"].update(headers={WEIGHTS: 5})}
    | {"another recipe": lambda m: only(m)["recipe"]["sdnq"].update(weights_dtype="int8")}
    | {"other tensors": lambda m: only(m)["output"].update(tensors=5)}
    | {"other bytes": lambda m: only(m)["output"].update(bytes_by_dtype={"BF16": 5})}
    | {"other parameters": lambda m: only(m)["output"].update(parameters=5)}
    | {"another source": lambda m: only(m)["source"].update(parameters=10**12)}
    | {"a source of more tensors": lambda m: only(m)["source"].update(parameters=10**12, tensors=69)}
    | {"more tensors of fewer parameters": lambda m: only(m)["source"].update(parameters=5, tensors=69)}
    | {"another shape": change_modules(lambda q: q[QKV].update(shape=[5, 5]))}
    | {"a shape of nothing": change_modules(lambda q: q[QKV].update(shape=[0]))}
    | {"a shape beyond 63 bits": change_modules(lambda q: q[QKV].update(shape=[2**63]))}
    | {"a new module": change_modules(lambda q: q.update(x={"shape": [4]}))}
    | {"another name": change_modules(lambda q: q.update(x=q.pop(QKV))), "no recipe": lambda m: only(m).pop("recipe")}
    | {
        "a recipe that is a list": lambda m: only(m).update(recipe=[1]),
        "no component": lambda m: only(m).pop("component"),
    }
    | {"tensors that are true": lambda m: only(m)["output"].update(tensors=True)}
    | {"files in a table": lambda m: m.update(files={"x": 1})}
    | {"a file that is a name": lambda m: m["files"].append("x")}
    | {"a file without sha256": lambda m: m["files"][0].pop("sha256")}
    | {"a file of half a byte": lambda m: m["files"][0].update(bytes=0.5)}
    | {"a shape in words": change_modules(lambda q: q[QKV].update(shape=["5"]))}
    | {"nested deeply": lambda m: only(m).update(recipe=json.loads("[" * 900 + "]" * 900))}
    | {"no versions": lambda m: m.update(versions=3), "no version": lambda m: m["versions"].update(sdnq=3)}
    | {"a source's file": lambda m: only(m)["source"].update(files=[3])}
    | {"sizes in words": lambda m: only(m)["source"].update(bytes_by_dtype={"F32": "x"})}
    | {
        "no components": lambda m: m.update(components=[]),
        "a component twice": lambda m: m["components"].append(only(m)),
    }
    | {"a component that is a name": lambda m: m.update(components=["transformer"])}
    | {"a component outside": lambda m: only(m).update(component="../x", output={**only(m)["output"], "headers": {}})}
    | {"a component with files of another": lambda m: only(m).update(component="vae")}
    | {"no sizes": lambda m: only(m)["output"].update(bytes_by_dtype=None)}
)


def test_a_manifest_must_describe_the_release(lens_output: Path, tmp_path: Path) -> None:
    text = ""
    folder = shutil.copytree(lens_output, tmp_path / "out")
    for damage, change in MANIFESTS.items():
        shutil.copy(lens_output / "lensconv_manifest.json", folder)
        edit_manifest(folder, change)
        details = dict.fromkeys(failed(verify(folder, checksums=True)).values())
        text += re.sub("too long: .*", "too long", " | ".join([damage, *details])) + "\n"
    check_expected("manifests.txt", text.replace(f"{folder}/", ""))


def test_files_that_the_manifest_does_not_list_are_noted(folder: Path) -> None:
    (folder / "a" / ".git").mkdir(parents=True)
    for name in ("README.md", "a.png", "b.png", "c\x1b.png", ".gitattributes", "a/.git/x", "a/.x"):
        (folder / name).touch()
    report = verify(folder, checksums=True)
    assert report.ok
    assert report.notes == ("the manifest does not list README.md; a.png; b.png; and 1 more",)
    (folder / "c\x1b.png").unlink()
    assert verify(folder).notes == ("the manifest does not list README.md; a.png; b.png",)


def test_a_component_that_was_brought_along(lens_output: Path, tmp_path: Path) -> None:
    """A release's manifest describes one component and lists the files of all."""
    folder = tmp_path / "release"
    shutil.copytree(lens_output, folder / "vae")
    (folder / "vae" / "lensconv_manifest.json").rename(folder / "lensconv_manifest.json")
    (folder / "model_index.json").write_text('{"vae": ["x", "y"]}')

    def describe_another(content: dict[str, Any]) -> None:
        only(content)["component"] = "transformer"
        only(content)["output"]["headers"] = {}
        for entry in content["files"]:
            entry["name"] = "vae/" + entry["name"]

    edit_manifest(folder, describe_another)
    report = verify(folder, components=["vae"], checksums=True)
    assert report.ok, failed(report)
    assert any("describes the component transformer" in note for note in report.notes)
    edit_manifest(folder, drop("vae/quantization_config.json"))
    assert failed(verify(folder, components=["vae"])) == {"manifest": "vae/quantization_config.json is not listed"}


def test_other_classes_are_judged_by_the_shapes_in_the_manifest(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "FluxTransformer2DModel", num_layers=1, num_single_layers=1)
    convert(source, tmp_path / "out", "sdnq-int8")
    report = verify(tmp_path / "out")
    assert report.ok, failed(report)
    assert report.notes == ("scales are F32 (dequantize_fp32), twice the size of BF16",)

    def rename_one(content: dict[str, Any]) -> None:
        modules = only(content)["recipe"]["quantized"]
        modules["model.other"] = modules.pop(max(modules))

    edit_manifest(tmp_path / "out", rename_one)
    assert verify(tmp_path / "out").ok, "a class may give its tensors other names"
    tensors = load_file(tmp_path / "out" / WEIGHTS)
    name = next(name for name in sorted(tensors) if name.endswith(".scale"))
    tensors[name] = tensors[name].reshape(-1)
    rewrite(tmp_path / "out", tensors)
    assert f"{name.removesuffix('.scale')}: scale is F32" in failed(verify(tmp_path / "out"))["packed weights"]
    # Of a class whose tensors have other names, headers do not show the parameters.
    named = {"weights_dtype": "int8", "modules_dtype_dict": {"uint4": ["gone.weight"]}}
    convert(source, tmp_path / "renamed", Recipe("x", named))
    edit_manifest(tmp_path / "renamed", lambda m: only(m)["output"].update(parameters=5))
    assert verify(tmp_path / "renamed").ok
    (tmp_path / "out" / "lensconv_manifest.json").unlink()
    report = verify(tmp_path / "out")
    assert "headers alone do not show whether tensors are missing; --against does" in report.notes


OWN = ["README.md", "model.safetensors", "vae/config.json", "images/quantized/P01.png"]
LOADED = "may be loaded in place of the release's weights"
READ = "may be loaded together with the release's files"


@pytest.mark.parametrize(
    ("said", "names"),
    [
        (LOADED, "model.fp16.safetensors vae/a.BIN a.pt a.pth a.ckpt a.msgpack a.h5 vae/a.onnx a.gguf .bin"),
        (LOADED, "model.safetensors.index.json a.bin.index.fp16.json vae/a.safetensors.index.fp16-x.json"),
        (LOADED, "model_index.json vae/adapter_config.json"),
        (LOADED, "Vae/a.bin"),
        (READ, "vae/added_tokens.json vae/vocab.txt vae/a.MODEL vae/modeling.py vae/additional_chat_templates/a.jinja"),
        ("", "LICENSE images/a.png unet/model.safetensors vae/onnx/model.onnx a.bin.txt index.json bin onnx a.py"),
        ("", "vae/NOTICE vae/a.md vae/a.png unet/config.json images/quantized/a.json vaes/a.json"),
        ("differs from README.md in case only", "readme.MD"),
        ("differs from vae/config.json in case only", "Vae/Config.json"),
        ("is a file where the release has a folder", "vae images/Quantized"),
        ("is in README.md, which is a file of the release", "readme.md/a.txt"),
        ("is in model.safetensors, which is a file of the release", "model.safetensors/a/b"),
    ],
)
def test_what_may_not_be_beside_a_release(said: str, names: str) -> None:
    assert dangers(names.split(), OWN) == dict.fromkeys(names.split() if said else (), said)
