"""Recipes."""

from __future__ import annotations

from tests.malformed.site import (
    Invocation,
    Site,
    add_case,
)


def _add_recipe_case(
    name: str, content: bytes | str, *message: str, hint: tuple[str, ...] = (), file: str = "mine.toml"
) -> None:
    def build(site: Site) -> Invocation:
        site.copy_lens()
        recipe = site.write("work/mine.toml", content)
        return site.convert("--recipe", str(recipe))

    add_case(f"recipe-{name}", build, "RecipeError", *(message if not file else (file, *message)), hint=hint)


def add_option_case(name: str, error: str, *message: str, options: tuple[str, ...], hint: tuple[str, ...] = ()) -> None:
    def build(site: Site) -> Invocation:
        site.copy_lens()
        return site.convert(*options)

    add_case(name, build, error, *message, hint=hint)


_UINT4 = '[sdnq]\nweights_dtype = "uint4"\n'
add_option_case(
    "recipe-unknown",
    "RecipeError",
    "lens-uint4",
    "no such recipe",
    options=("--recipe", "lens-uint4"),
    hint=("lens-uint4-static",),
)
add_option_case("recipe-is-a-folder", "RecipeError", "/etc", "no such recipe", options=("--recipe", "/etc"))
add_option_case("recipe-is-a-device", "RecipeError", "/dev/zero", "no such", options=("--recipe", "/dev/zero"))
add_option_case("recipe-name-too-long", "InputError", "nnn", options=("--recipe", "n" * 300))
_add_recipe_case("not-toml", "{}", "is not TOML")
_add_recipe_case("not-utf-8", b"name = '\xff'", "is not UTF-8")
_add_recipe_case("repeated-key", "name = 'a'\nname = 'b'", "is not TOML")
_add_recipe_case("nested-too-deep", "name = " + "[" * 10**5)
_add_recipe_case("5000-digits", "seed = " + "9" * 5000)
_add_recipe_case("unknown-key", "[sdqn]\n", "sdqn is not a key of a recipe", hint=("sdnq",))
_add_recipe_case("unknown-option", "[sdnq]\nweight_dtype = 'uint4'", "weight_dtype is not", hint=("weights_dtype",))
_add_recipe_case("unknown-key-hostile", '"evil\\u001b[2J" = 1', "evil\\x1b[2J is not a key")
_add_recipe_case("option-of-another-type", "[sdnq]\ngroup_size = '64'", "group_size must be an integer")
_add_recipe_case("seed-beyond-64-bits", f"seed = {10**30}\n{_UINT4}use_svd = true\nsvd_rank = 4", "seed")
_add_recipe_case("rule-without-a-glob", f"{_UINT4}[[rules]]\nkeep = true", "rule 1", "needs either match or family")
_add_recipe_case("rule-without-effect", f"{_UINT4}[[rules]]\nmatch = '*'", "rule 1", "keep = true or options")
_add_recipe_case("rule-no-table", f"rules = [1]\n{_UINT4}", "rule 1", "must be a table")
_add_recipe_case(
    "rule-with-unknown-key", f"{_UINT4}[[rules]]\nmatch = '*'\nkept = true", "rule 1", "kept is not", hint=("keep",)
)
_add_recipe_case(
    "rule-for-nothing",
    f"{_UINT4}[[rules]]\nmatch = '*.img_mood.*'\nkeep = true",
    "*.img_mood.*",
    "matches nothing",
    hint=("img_mod",),
    file="",
)
_add_recipe_case(
    "rule-for-no-family",
    f"{_UINT4}[[rules]]\nfamily = 'atn'\nkeep = true",
    "family atn",
    hint=("attn",),
    file="",
)
_add_recipe_case(
    "unknown-dtype", "[sdnq]\nweights_dtype = 'uint99'", "weights_dtype = uint99", hint=("uint9",), file=""
)
_add_recipe_case("unknown-scale-dtype", f"{_UINT4}scale_dtype = 'F32'", "scale_dtype = F32", file="")
_add_recipe_case(
    "unknown-matmul-dtype", f"{_UINT4}quantized_matmul_dtype = 'uint4'", "quantized_matmul_dtype = uint4", file=""
)
_add_recipe_case(
    "dynamic-from-a-dtype-that-is-not-in-its-order",
    "[sdnq]\nweights_dtype = 'bool'\nuse_dynamic_quantization = true",
    "weights_dtype = bool",
    "dynamic quantization",
    hint=("uint4",),
    file="",
)
add_option_case("set-without-a-value", "RecipeError", "--set *.attn.*", options=("--set", "*.attn.*"), hint=("int8",))
add_option_case("set-without-a-glob", "RecipeError", "--set =int8", options=("--set", "=int8"))
add_option_case(
    "set-for-nothing",
    "RecipeError",
    "*.atn.*",
    "matches nothing in the model",
    options=("--set", "*.atn.*=keep"),
    hint=("attn",),
)
add_option_case(
    "set-for-what-stays-as-it-is", "RecipeError", "*.norm_q.*", "cannot quantize", options=("--set", "*.norm_q.*=int8")
)
add_option_case(
    "set-unknown-dtype", "RecipeError", "uint44", options=("--set", "*.attn.to_out.0=uint44"), hint=("uint4",)
)


def _add_unsupported_recipe_case(name: str, content: str, *message: str) -> None:
    def build(site: Site) -> Invocation:
        site.copy_lens()
        return site.convert("--recipe", str(site.write("work/mine.toml", content)))

    add_case(f"recipe-{name}", build, "UnsupportedCheckpoint", *message)


_add_unsupported_recipe_case(
    "rotating-groups-of-nothing",
    f"{_UINT4}use_hadamard = true\nhadamard_group_size = 0",
    "SDNQ cannot quantize LensTransformer2DModel with this recipe",
)
