"""What is converted of several components, and by which rules."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from converter import (
    ConvertOptions,
    PlanReport,
    Recipe,
    Rule,
    convert,
    plan,
    verify,
)
from converter.checkpoint.dtypes import BITS
from converter.conversion.choosing import LEAST_TEXT_ENCODER_BYTES, choose_components
from converter.errors import RecipeError
from tests import reference
from tests.checkpoints import write_holes
from tests.conftest import Lensconv, names_in, snapshot
from tests.pipelines import CONVERTED, NAMES, titles
from tests.reporters import Notes
from tests.tiny_models import WEIGHTS


@pytest.fixture(scope="module")
def source(several: Path) -> Path:
    """The pipeline of ``make_several``; nobody changes it."""
    return several


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
        (["vae", "unet", "vae"], {"vae": ("AutoencoderKL", WEIGHTS, "F32", 1000), "unet": _DENOISER}, ["unet", "vae"]),
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
    source: Path, several_steps: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ConvertOptions(components=("all",))
    small = tuple(f"{name} ({CONVERTED[name]}) stays as it is; it is small" for name in NAMES[2:])
    report = plan(source, options=options)
    assert [component.name for component in report.components] == [*NAMES[:2]]
    assert report.notes == small
    # Without it, nobody asked for text encoders.
    one = "transformer_2 (FluxTransformer2DModel) stays as it is; to convert it as well, add --component transformer_2"
    assert plan(source).notes == (one,)
    monkeypatch.setattr("converter.conversion.choosing.LEAST_TEXT_ENCODER_BYTES", 400_000)
    repo = shutil.copytree(several_steps[0], tmp_path / "repo")
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
