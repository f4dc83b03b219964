"""Recipes: those that ship, those of users, and errors in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from converter import Recipe, Rule, find_recipe, plan
from converter.conversion.recipe.recipe import (
    builtin_recipes,
    parse_recipe,
    parse_setting,
    resolve_rules,
    rule_matches,
    unmatched_rules,
)
from converter.errors import RecipeError
from tests.cases import check_cases
from tests.tiny_models import save_model

MODULES = [
    f"transformer_blocks.{number}.{name}"
    for number in (0, 1)
    for name in ("attn.img_qkv", "attn.to_out.0", "img_mod.1", "txt_mod.1", "img_mlp.w1")
]
TENSORS = [f"{module}.weight" for module in MODULES] + ["txt_norm.0.weight", "proj_out.bias"]
LENS = "LensTransformer2DModel"


def resolve(*rules: Rule) -> dict[str, Rule]:
    return resolve_rules(Recipe("mine", {}, rules), MODULES, TENSORS, LENS)


def test_what_ships() -> None:
    assert [recipe.name for recipe in builtin_recipes()] == [
        *("flux2-uint4", "lens-uint4-static", "qwen-image-uint4", "sdnq-int8", "sdnq-uint4", "sdxl-uint4"),
        *("wan-uint4", "z-image-uint4"),
    ]
    lens = find_recipe(None, LENS)
    assert lens.name == "lens-uint4-static"
    assert lens.options == (
        {"weights_dtype": "uint4", "group_size": 0, "use_quantized_matmul": True}
        | {"quantized_matmul_dtype": "int8", "dequantize_fp32": False}
    )
    assert [rule.match for rule in lens.rules if rule.keep] == ["*.img_mod.*", "*.txt_mod.*"]
    assert find_recipe(None, "FluxTransformer2DModel").options == {"weights_dtype": "uint4"}
    assert find_recipe("sdnq-int8", LENS).options == {"weights_dtype": "int8"}


def test_a_recipe_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        f'description = "d"\nclasses = ["A"]\nseed = 3\nevidence_sha256 = "{"0a" * 32}"\n'
        '[sdnq]\nweights_dtype = "uint4"\ndynamic_loss_threshold = 1\nuse_svd = true\n'
        '[[rules]]\nfamily = "attn"\nweights_dtype = "int8"\n[[rules]]\nmatch = "*.w1"\nkeep = true\n'
    )
    recipe = find_recipe(str(file), LENS)
    assert (recipe.name, recipe.description, recipe.classes, recipe.seed) == ("mine", "d", ("A",), 3)
    assert recipe.evidence_sha256 == "0a" * 32
    assert recipe.options["dynamic_loss_threshold"] == 1.0
    assert recipe.rules == (Rule(family="attn", options={"weights_dtype": "int8"}), Rule(match="*.w1", keep=True))
    assert recipe.is_random
    assert not recipe.is_data_dependent
    # A rule alone makes a recipe random, and only a factorisation depends on threads.
    for option, depends in (("use_svd", True), ("use_stochastic_rounding", False), ("use_hadamard", None)):
        alone = Recipe("r", {}, (Rule(match="*", options={option: True}),))
        assert (alone.is_random, alone.depends_on_threads) == (depends is not None, bool(depends))


def test_the_last_rule_wins() -> None:
    decided = resolve(
        Rule(match="*.attn.*", options={"weights_dtype": "int8"}),
        Rule(match="transformer_blocks.1.*", keep=True),
        Rule(match="*.to_out.0", options={"weights_dtype": "int6"}),
    )
    assert decided["transformer_blocks.0.attn.img_qkv"].options == {"weights_dtype": "int8"}
    assert decided["transformer_blocks.1.attn.img_qkv"].keep
    assert decided["transformer_blocks.1.attn.to_out.0"].options == {"weights_dtype": "int6"}
    assert decided["transformer_blocks.1.img_mod.1"].keep
    assert "transformer_blocks.0.img_mod.1" not in decided


@pytest.mark.parametrize("glob", ["*.img_mod.*", "*.img_mod.1", "*.img_mod.1.weight", "transformer_blocks.?.img_mod.1"])
def test_globs_may_name_modules_or_their_weights(glob: str) -> None:
    assert set(resolve(Rule(match=glob, keep=True))) == {f"transformer_blocks.{number}.img_mod.1" for number in (0, 1)}


def test_a_family_is_what_its_names_say_and_keeping_what_is_kept_anyway_is_no_error() -> None:
    decided = resolve(Rule(family="img_mlp", options={"weights_dtype": "int8"}))
    assert set(decided) == {"transformer_blocks.0.img_mlp.w1", "transformer_blocks.1.img_mlp.w1"}
    assert resolve(Rule(match="txt_norm.*", keep=True)) == {}


def test_what_is_wrong_is_said() -> None:
    """Each case is a rule, by its fields, or the text of a recipe."""

    def said(given: dict[str, Any] | str) -> str:
        with pytest.raises(RecipeError) as caught:
            resolve(Rule(**given)) if isinstance(given, dict) else parse_recipe(given, where="my.toml")
        return caught.value.with_hint

    check_cases("recipe_refusals.jsonl", said)
    with pytest.raises(RecipeError) as caught:
        find_recipe("x", LENS)
    shipped = ", ".join(recipe.name for recipe in builtin_recipes())
    assert caught.value.with_hint == f"x: no such recipe and no such file. Built in: {shipped}."


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff\xfe", "is not UTF-8 at byte 0"), (b"#" * 1_000_001, "is longer than 1000000 bytes")],
)
def test_a_file_that_cannot_be_a_recipe(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_bytes(content)
    with pytest.raises(RecipeError, match=message):
        find_recipe(str(file), LENS)
    file.write_bytes(b"#" * 1_000_000)
    assert find_recipe(str(file), LENS) == Recipe("recipe", {})


def test_settings() -> None:
    assert parse_setting("*.attn.*=int8") == Rule(match="*.attn.*", options={"weights_dtype": "int8"})
    assert parse_setting("a=b=keep") == Rule(match="a=b", keep=True)
    for text in ("a", "=int8", "a=", ""):
        with pytest.raises(RecipeError, match="GLOB=keep or GLOB=DTYPE"):
            parse_setting(text)
    assert parse_setting("vae/*.conv=int8") == Rule(match="*.conv", options={"weights_dtype": "int8"}, component="vae")
    for text in ("/*=keep", "vae/=keep"):
        with pytest.raises(RecipeError, match="GLOB=keep or GLOB=DTYPE"):
            parse_setting(text)
    # They come after the recipe's own rules.
    recipe = Recipe("r", {}, (Rule(match="*", keep=True),)).with_rules([parse_setting("*.w1=int8")])
    assert resolve(*recipe.rules)["transformer_blocks.0.img_mlp.w1"].options == {"weights_dtype": "int8"}


@pytest.mark.parametrize(
    ("recipe", "class_name", "changes", "kept", "int8"),
    [
        ("qwen-image-uint4", "QwenImageTransformer2DModel", {"num_layers": 2}, 0, 2),
        ("z-image-uint4", "ZImageTransformer2DModel", {}, 1, 0),
        ("flux2-uint4", "Flux2Transformer2DModel", {}, 8, 0),
        ("wan-uint4", "WanTransformer3DModel", {"num_layers": 40}, 60, 0),
        ("sdxl-uint4", "UNet2DConditionModel", {"addition_embed_type": "text_time"}, 1, 0),
    ],
)
def test_recipes_of_families_fit_their_class(
    recipe: str, class_name: str, changes: dict[str, Any], kept: int, int8: int, tmp_path: Path
) -> None:
    """Each rule matches modules that SDNQ would quantize; a rule that matches nothing is refused."""
    if class_name == "UNet2DConditionModel":
        changes |= {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 128}
    source = save_model(tmp_path / "source", class_name, **changes)
    by_default, planned = plan(source, "sdnq-uint4").plan.modules, plan(source, recipe).plan.modules
    assert len(by_default.keys() - planned.keys()) >= kept
    assert sum(module.options["weights_dtype"] == "int8" for module in planned.values()) >= int8
    (shipped,) = (found for found in builtin_recipes() if found.name == recipe)
    assert "github.com" in shipped.description
    for rule in shipped.rules:
        assert any(rule_matches(rule, module.name, class_name) for module in by_default.values()), rule


def test_tables_for_components() -> None:
    text = (
        'name = "mine"\nseed = 3\n[sdnq]\nweights_dtype = "uint4"\ngroup_size = 32\n'
        '[[rules]]\nmatch = "a"\nkeep = true\n'
        '[components.text_encoder.sdnq]\nweights_dtype = "int8"\n'
        '[[components.vae.rules]]\nmatch = "b"\nkeep = true\n[components.unet]\nrules = []\n'
    )
    recipe = parse_recipe(text, where="my.toml")
    assert set(recipe.components) == {"text_encoder", "vae", "unet"}
    plain, rules = {"weights_dtype": "uint4", "group_size": 32}, (Rule(match="a", keep=True),)
    expected = {
        "transformer": (plain, rules),
        "": (plain, rules),
        "text_encoder": (plain | {"weights_dtype": "int8"}, rules),
        "vae": (plain, (Rule(match="b", keep=True),)),
        "unet": (plain, ()),
    }
    for name, (options, own) in expected.items():
        assert recipe.for_component(name) == Recipe("mine", options, own, seed=3)


def test_a_rule_for_several_components_may_select_nothing_in_one() -> None:
    """``unmatched_rules`` says which do; one that keeps what is kept in any case selects something."""
    rules = [Rule(match=glob, keep=glob != "*.w9") for glob in ("*.w1", "*.w9", "txt_norm.*", "*.w8")]
    recipe = Recipe("mine", {}, tuple(rules)).with_optional_rules()
    assert set(resolve_rules(recipe, MODULES, TENSORS, LENS)) == {MODULES[4], MODULES[9]}
    unmatched = unmatched_rules(recipe, MODULES, TENSORS, LENS)
    assert [rule.match for rule in unmatched] == ["*.w9", "*.w8"]
    assert unmatched_rules(Recipe("mine", {}, tuple(rules)), MODULES, TENSORS, LENS) == ()
