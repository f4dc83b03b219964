"""Recipes."""

from __future__ import annotations

from tests.malformed.site import Invocation, Site, add_case


def _add_recipe_case(
    name: str, content: bytes | str, *message: str, hint: tuple[str, ...] = (), error: str = "RecipeError"
) -> None:
    def build(site: Site) -> Invocation:
        site.copy_lens()
        return site.convert("--recipe", str(site.write("work/mine.toml", content)))

    add_case(f"recipe-{name}", build, error, *message, hint=hint)


def add_option_case(name: str, error: str, *message: str, options: tuple[str, ...], hint: tuple[str, ...] = ()) -> None:
    def build(site: Site) -> Invocation:
        site.copy_lens()
        return site.convert(*options)

    add_case(name, build, error, *message, hint=hint)


_UINT4 = '[sdnq]\nweights_dtype = "uint4"\n'
for _name, _recipe, _error, *_message in (
    ("is-a-folder", "/etc", "RecipeError", "/etc", "no such recipe"),
    ("is-a-device", "/dev/zero", "RecipeError", "/dev/zero", "no such"),
    ("name-too-long", "n" * 300, "InputError", "nnn"),
):
    add_option_case(f"recipe-{_name}", _error, *_message, options=("--recipe", _recipe))
# What is wrong with the file itself, and what to do instead; the message names the file.
for _name, _content, _hint, *_message in (
    ("not-toml", "{}", "", "is not TOML"),
    ("repeated-key", "name = 'a'\nname = 'b'", "", "is not TOML"),
    ("nested-too-deep", "name = " + "[" * 10**5, ""),
    ("5000-digits", "seed = " + "9" * 5000, ""),
    ("unknown-key", "[sdqn]\n", "sdnq", "sdqn is not a key of a recipe"),
    ("unknown-key-hostile", '"evil\\u001b[2J" = 1', "", "evil\\x1b[2J is not a key"),
    ("rule-no-table", f"rules = [1]\n{_UINT4}", "", "rule 1", "must be a table"),
):
    _add_recipe_case(_name, _content, "mine.toml", *_message, hint=(_hint,))
# What the model or SDNQ does not know.
for _name, _content, _hint, *_message in (
    ("unknown-scale-dtype", "scale_dtype = 'F32'", "", "scale_dtype = F32"),
    ("unknown-zero-point-dtype", "zero_point_dtype = 'uint88'", "uint8", "zero_point_dtype = uint88"),
    ("unknown-matmul-dtype", "quantized_matmul_dtype = 'uint4'", "", "quantized_matmul_dtype = uint4"),
):
    _add_recipe_case(_name, _UINT4 + _content, *_message, hint=(_hint,))
_DYNAMIC = "use_dynamic_quantization = true"
for _name, _dtype, _more, _hint, *_message in (
    ("unknown-dtype", "uint99", "", "uint9"),
    ("dynamic-from-a-dtype-that-is-not-in-its-order", "bool", _DYNAMIC, "uint4", "use_dynamic_quantization"),
):
    _message = ["recipe mine", f"weights_dtype = {_dtype}", *_message]
    _add_recipe_case(_name, f"[sdnq]\nweights_dtype = '{_dtype}'\n{_more}", *_message, hint=(_hint,))
_add_recipe_case("codebook-of-int8", "[sdnq]\nuse_codebook = true", "recipe mine", "use_codebook is only supported")
_add_recipe_case(
    "rotating-groups-of-nothing",
    f"{_UINT4}use_hadamard = true\nhadamard_group_size = 0",
    "SDNQ cannot quantize LensTransformer2DModel with this recipe",
    error="UnsupportedCheckpoint",
)
for _name, _setting, _hint, *_message in (
    ("for-nothing", "*.atn.*=keep", "attn", "*.atn.*", "matches nothing in the model"),
    ("unknown-dtype", "*.attn.to_out.0=uint44", "uint4", "uint44"),
):
    add_option_case(f"set-{_name}", "RecipeError", *_message, options=("--set", _setting), hint=(_hint,))
