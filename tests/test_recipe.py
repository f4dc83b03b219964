"""Recipes: those that ship, those of users, and errors in them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from converter import Recipe, Rule, find_recipe
from converter.conversion.recipe.recipe import builtin_recipes, parse_recipe, parse_setting, resolve_rules
from converter.errors import RecipeError

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
    assert [recipe.name for recipe in builtin_recipes()] == ["lens-uint4-static", "sdnq-int8", "sdnq-uint4"]
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
        'description = "d"\nclasses = ["A"]\nseed = 3\n'
        '[sdnq]\nweights_dtype = "uint4"\ndynamic_loss_threshold = 1\nuse_svd = true\n'
        '[[rules]]\nfamily = "attn"\nweights_dtype = "int8"\n[[rules]]\nmatch = "*.w1"\nkeep = true\n'
    )
    recipe = find_recipe(str(file), LENS)
    assert (recipe.name, recipe.description, recipe.classes, recipe.seed) == ("mine", "d", ("A",), 3)
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


SHIPPED = "lens-uint4-static, sdnq-int8, sdnq-uint4"
RULE_KEYS = (
    "weights_dtype, scale_dtype, zero_point_dtype, quantized_matmul_dtype, group_size, hadamard_group_size, svd_rank, "
    "svd_steps, codebook_steps, use_svd, use_hadamard, use_codebook, use_codebook_scale, use_quantized_matmul, "
    "use_quantized_matmul_conv, use_stochastic_rounding, dequantize_fp32"
)
ALL_RULE_KEYS = f"match, family, keep, {RULE_KEYS}"
KEYS = (
    f"{RULE_KEYS}, quant_conv, quant_embedding, add_skip_keys, minimum_allowed_numel, minimum_allowed_channel_size, "
    "use_dynamic_quantization, dynamic_loss_threshold"
)
NEITHER = "rule 1: needs keep = true or options such as weights_dtype, not both"
NO_MATCH = "matches nothing in the model"
RULES = (
    (Rule("*.img_mode.*", keep=True), f"*.img_mode.*: {NO_MATCH}. Similar names: img_mod, img_mlp, txt_mod, img_qkv."),
    (Rule("zzzzzz", keep=True), f"zzzzzz: {NO_MATCH}. Compare it with the names in the header."),
    (Rule("txt_norm.*"), "txt_norm.*: matches only tensors that SDNQ cannot quantize. Remove the rule."),
    (Rule(family="atn"), "family atn: no module belongs to that family. Families: attn, img_mlp, img_mod, txt_mod."),
)
TEXTS = {
    "sdnq = 3": "sdnq must be a table, not 3",
    "seed = -1": "seed must be a number from 0 to 2**63 - 1",
    f"seed = {2**63}": "seed must be a number from 0 to 2**63 - 1",
    "weights = 3": "weights is not a key of a recipe. Keys: name, description, classes, seed, sdnq, rules.",
    "[sdnq]\ngroup_size = true": "group_size must be an integer, not True",
    "[sdnq]\nseed = 3": f"seed is not a key of [sdnq]. Keys: {KEYS}.",
    "classes = [1]": "classes must be an array of strings, and 1 is not a string",
    "[[rules]]\nmatch = 'a'\nfamily = 'b'\nkeep = true": "rule 1: needs match or family, not both",
    "[[rules]]\nmatch = 'a'\nkeep = true\nsvd_rank = 1": NEITHER,
    "[[rules]]\nmatch = 'a'\nquant_conv = true": f"rule 1: quant_conv is not a key of a rule. Keys: {ALL_RULE_KEYS}.",
}


def test_what_is_wrong_is_said() -> None:
    calls: list[tuple[Callable[[], object], str]]
    calls = [(partial(resolve, rule), f"recipe mine, rule for {message}") for rule, message in RULES]
    calls += [(partial(parse_recipe, text, where="my.toml"), f"my.toml: {message}") for text, message in TEXTS.items()]
    kinds = {"s": "a string", "i": "an integer", "b": "true or false", "f": "a number"}
    for name, kind in zip(KEYS.split(", "), "ssssiiiiibbbbbbbbbbbiibf", strict=True):
        call = partial(parse_recipe, f"[sdnq]\n{name} = []", where="my.toml")
        calls.append((call, f"my.toml: {name} must be {kinds[kind]}, not []"))
    calls += [(partial(find_recipe, "x", LENS), f"x: no such recipe and no such file. Built in: {SHIPPED}.")]
    for refused, message in calls:
        with pytest.raises(RecipeError) as caught:
            refused()
        assert caught.value.with_hint == message


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
    # They come after the recipe's own rules.
    recipe = Recipe("r", {}, (Rule(match="*", keep=True),)).with_rules([parse_setting("*.w1=int8")])
    assert resolve(*recipe.rules)["transformer_blocks.0.img_mlp.w1"].options == {"weights_dtype": "int8"}
