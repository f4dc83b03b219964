"""Adapters and the sources that they are added to: components, tensors that are shared, and files that change."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from converter import AdapterChoice, ConvertOptions, convert, plan
from converter.checkpoint.source import Checkpoint
from converter.checkpoint.staging import Staging
from converter.conversion import convert as convert_module
from converter.conversion import plans as plans_module
from converter.conversion.adapters import fitting
from converter.conversion.request import open_request
from converter.errors import AdapterError, InputError, MalformedCheckpoint, MissingInput
from converter.models.empty import EmptyModel, build_empty_model
from tests import reference
from tests.conftest import call, names_in
from tests.lora_files import factors, prefixed, write
from tests.reporters import Notes
from tests.test_adapters_conversion import build, fuse, make_adapters, save_pipeline
from tests.tiny_models import save_model

QUERY, KEY = (f"transformer_blocks.0.attn.to_{part}" for part in "qk")


@pytest.fixture
def models() -> dict[str, Any]:
    return build("flux")


@pytest.fixture
def source(tmp_path: Path, models: dict[str, Any]) -> Path:
    return save_pipeline(tmp_path / "source", models, "FluxPipeline")


def adapter(folder: Path, models: dict[str, Any], *paths: str) -> AdapterChoice:
    """An adapter in PEFT's names for modules of the transformer."""
    file = folder / f"{len(names_in(folder))}.safetensors"
    return AdapterChoice(write(file, prefixed(factors(models["transformer"], paths), "transformer")))


def share(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let two modules of a model have one tensor, as tied modules of transformers do."""

    def tied(checkpoint: Checkpoint) -> EmptyModel:
        empty = build_empty_model(checkpoint)
        return replace(empty, sources={**empty.sources, f"{KEY}.{part}": empty.sources[f"{QUERY}.{part}"]})

    monkeypatch.setattr(fitting, "build_empty_model", tied)


def test_two_modules_with_one_weight(
    source: Path, models: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, first, second = (adapter(tmp_path, models, *paths) for paths in ((QUERY, KEY), (QUERY,), (KEY,)))
    share("weight", monkeypatch)
    for choices in ((both,), (first, second), (first, first, second)):
        with pytest.raises(
            AdapterError, match=r"attn\.to_. and .*attn\.to_. have one weight, and adapters add to bo"
        ) as caught:
            plan(source, options=ConvertOptions(adapters=choices))
        assert str(choices[-1].file) in caught.value.message
    # One of them may be adapted, several times.
    plan(source, options=ConvertOptions(adapters=(second, second)))


def test_two_modules_with_one_bias(
    source: Path, models: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share("bias", monkeypatch)
    both = adapter(tmp_path, models, QUERY, KEY)
    plan(source, options=ConvertOptions(adapters=(both,)))
    biases = {
        f"transformer.{path}.lora_B.bias": models["transformer"].get_submodule(path).bias.data for path in (QUERY, KEY)
    }
    write(both.file, load_file(both.file) | biases)
    with pytest.raises(AdapterError, match="have one bias, and adapters add to both"):
        plan(source, options=ConvertOptions(adapters=(both,)))


def test_an_adapter_that_is_given_twice_is_added_twice(source: Path, models: dict[str, Any], tmp_path: Path) -> None:
    """As by ``fuse_lora``; people are told."""
    choice, _ = make_adapters(tmp_path, "flux", models)
    choices = (choice, replace(choice, scale=0.5))
    options, notes = ConvertOptions(adapters=choices), Notes()
    said = "0.safetensors: the same adapter 2 times; it is added each time"
    convert(source, tmp_path / "out", options=options, reporter=notes)
    assert notes.texts.count(f"Note: {said}.") == 1
    assert plan(source, options=options).notes.count(said) == 1
    assert said not in plan(source, options=ConvertOptions(adapters=(choice,))).notes
    manifest = json.loads((tmp_path / "out" / "lensconv_manifest.json").read_text())
    assert [each["scale"] for each in manifest["components"][0]["source"]["adapters"]] == [1.0, 0.5]
    fuse("flux", models, choices)
    fused = save_pipeline(tmp_path / "fused", models, "FluxPipeline") / "transformer"
    expected = reference.convert_with_sdnq(
        fused, tmp_path / "sdnq", "FluxTransformer2DModel", reference.RECIPES["uint4"]
    )
    assert reference.weight_files(tmp_path / "out" / "transformer") == reference.weight_files(expected)
    identities = [
        open_request(source, None, ConvertOptions(adapters=given)).identity("")["adapters"]
        for given in (choices, choices[::-1], choices[:1], (choice, choice), (choice, choice, choice))
    ]
    assert all(identity not in identities[:number] for number, identity in enumerate(identities))


def test_all_components_and_what_has_no_effect(tmp_path: Path) -> None:
    """``all`` stands for what is worth it, which a small text encoder is not."""
    models = build("sdxl")
    source = save_pipeline(tmp_path / "source", models, "StableDiffusionXLPipeline")
    choice, _ = make_adapters(tmp_path, "sdxl", models)
    said = "0.safetensors: 12 tensors for text_encoder, to which nothing is added:"
    done = call("convert", source, tmp_path / "out", "--component", "all", "--lora", choice.file, "--json")
    assert done.code == 0
    assert " ".join(done.stderr.split()).count(said) == 1
    assert [each["name"] for each in done.result["components"]] == ["unet"]
    both = ("--component", "unet", "--component", "text_encoder")
    for command in (("plan", source), ("convert", source, tmp_path / "both")):
        done = call(*command, *both, "--lora", choice.file)
        assert done.code == 0
        assert "nothing is added" not in done.stderr


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def edit(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1] + b"x")


@pytest.mark.parametrize(
    ("change", "kind", "reason"),
    [
        (edit, MalformedCheckpoint, "was changed while it was read"),
        (cut, MalformedCheckpoint, "became shorter while it was read|was changed while it was read"),
        (Path.unlink, MissingInput, "cannot be read: No such file or directory"),
    ],
)
def test_a_file_of_an_adapter_that_changes_during_a_conversion(
    change: Callable[[Path], None],
    kind: type[InputError],
    reason: str,
    source: Path,
    models: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its factors are read when their modules are converted; what was made from a changed file is deleted."""
    choice, _ = make_adapters(tmp_path, "flux", models)
    note, noted = Staging.note, []

    def changing(self: Staging, component: str, tensor: str, facts: Any) -> None:
        note(self, component, tensor, facts)
        noted.append(tensor)
        if len(noted) == 5:
            change(choice.file)

    monkeypatch.setattr(Staging, "note", changing)
    with pytest.raises(kind, match=rf"0\.safetensors: .*({reason})"):
        convert(source, tmp_path / "out", options=ConvertOptions(adapters=(choice,), jobs=1))
    assert not (tmp_path / "out").exists()
    assert (tmp_path / ".out.lensconv").exists() == (kind is MissingInput)


def test_adapters_are_planned_in_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fresh process predicts a plan of Lens, and lets a second one check it; but not with adapters."""
    for module in (convert_module, plans_module):
        monkeypatch.setattr(module, "is_loaded", lambda: False)
    monkeypatch.setattr(convert_module, "require_free_memory", lambda *_: None)

    def start(*_: object) -> None:
        raise AssertionError("a second process")

    monkeypatch.setattr(plans_module, "PlannerProcess", start)
    source = save_model(tmp_path / "source", "LensTransformer2DModel")
    with pytest.raises(AssertionError, match="a second process"):
        convert(source, tmp_path / "plain")
    choice = AdapterChoice(write(tmp_path / "x.safetensors", factors(build("lens")["transformer"], ["img_in"])))
    assert convert(source, tmp_path / "out", options=ConvertOptions(adapters=(choice,))).tensors > 0
