"""The rules that are restated without torch, against SDNQ itself."""

from __future__ import annotations

import itertools
import re
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from converter.conversion.planning.patterns import is_judged, matching_pattern
from converter.conversion.planning.rules import group_count, linear_parts, option_of, weight_format, weights_dtype_of
from converter.libraries import load_library
from converter.models.classes import SAFETENSORS_NAMES
from tests.conftest import time_limit
from tests.reference import BROKEN, SDNQ_DTYPES

QUANTIZE, UTILS = load_library("sdnq.quantizer").sdnq_quantize_layer_weight, load_library("sdnq.utils")


@pytest.mark.parametrize("name", SDNQ_DTYPES)
def test_formats_of_all_dtypes(name: str) -> None:
    facts, fmt = SDNQ_DTYPES[name], weight_format(name)
    assert fmt is not None
    expected = tuple(facts[key] for key in ("num_bits", "is_unsigned", "is_integer", "is_packed"))
    assert (fmt.bits, fmt.is_unsigned, fmt.is_integer, fmt.is_packed) == expected
    if name in BROKEN:
        return
    _, parts = QUANTIZE(torch.randn(64, 128), layer_class_name="Linear", weights_dtype=name)
    assert SAFETENSORS_NAMES[parts["weight"].dtype] == fmt.storage
    assert fmt.elements(tuple(parts["weight"].shape)) == 64 * 128
    assert (parts["zero_point"] is not None) == fmt.is_unsigned


def test_names_that_are_no_dtypes() -> None:
    names = ["", "int", "int17", "uint0", "float", "nf4", "float4_e2m1fn extra", "fp0", "fp", "fp17", "ufp32"]
    names += [kind + "9" * 5000 for kind in ("fp", "int", "uint", "float")]
    assert [name for name in names if weight_format(name) is not None] == []


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("kind", ["int", "uint"])
def test_parts_of_a_linear(kind: str, bits: int) -> None:
    shapes = [(64, 128), (128, 341), (48, 96), (40, 96), (1024, 40), (33, 64), (256, 200), (32, 96), (96, 32), (16, 96)]
    assert linear_parts("m", (64, 128), {"group_size": None}) == linear_parts("m", (64, 128), {}), "null is the default"
    # With the word none, SDNQ leaves scales in F32, whatever dequantize_fp32 says.
    pairs = [*itertools.product(("scale_dtype", "zero_point_dtype"), ("uint8", "none")), ("weights_dtype", "int11")]
    pairs += [("weights_dtype", "float8_e4m3fn"), ("quantized_matmul_dtype", "float8_e4m3fn")]
    pairs += itertools.product(("use_svd", "use_hadamard", "use_codebook", "modules_quant_config"), ("yes",))
    assert [linear_parts("m", (64, 128), {option: value}) for option, value in pairs] == [None] * 11
    assert linear_parts("m", (64, 128), {"group_size": -2}) is None
    as_usual = {"use_quantized_matmul": True, "modules_to_not_use_matmul": ["m"], "quantized_matmul_dtype": "uint8"}
    assert linear_parts("m", (64, 128), as_usual) == linear_parts("m", (64, 128), {})
    compared = 0
    for shape, use_matmul, group_size in itertools.product(shapes, (False, True), (0, -1, 32, 48)):
        # What a config does not say is as SDNQ has it by default.
        matmul = {"use_quantized_matmul": True, "dequantize_fp32": False} if use_matmul else {}
        config = {"weights_dtype": f"{kind}{bits}", "group_size": group_size, **matmul}
        try:
            _, parts = QUANTIZE(torch.ones(shape), layer_class_name="Linear", torch_dtype=torch.bfloat16, **config)
        except RuntimeError:
            continue  # A number of codes that does not fill whole bytes; SDNQ has no answer.
        found = {f"m.{part}": tensor for part, tensor in parts.items() if tensor is not None}
        actual = {part: (SAFETENSORS_NAMES[tensor.dtype], tuple(tensor.shape)) for part, tensor in found.items()}
        predicted = linear_parts("m", shape, config)
        assert predicted is not None
        assert {spec.name: (spec.dtype, spec.shape) for spec in predicted} == actual, config
        compared += 1
    assert compared > 30


WORDS = st.sampled_from(["attn", "mod", "1", "norm", "weight", "txt_in"])
NAMES = st.lists(WORDS, min_size=1, max_size=5).map(".".join)
PATTERNS = st.text(alphabet="atnmod1._*wx", min_size=1, max_size=8) | NAMES | NAMES.map(lambda name: "." + name)


@given(name=NAMES, patterns=st.lists(PATTERNS | NAMES.map(lambda name: f"*.{name}.*"), max_size=4))
def test_patterns_match_as_in_sdnq(name: str, patterns: list[str]) -> None:
    assert matching_pattern(name, patterns) == UTILS.check_param_name_in(name, patterns)


@given(
    name=NAMES,
    dtype=st.sampled_from(["uint4", "int8", "int5"]),
    by_dtype=st.dictionaries(
        st.sampled_from(["int8", "uint6", "minimum_6bit", "minimum_uint5", "7bits", "minimum-8-bits", "4bit", "INT6"]),
        st.lists(PATTERNS, max_size=2),
        max_size=3,
    ),
)
def test_dtypes_of_modules_as_in_sdnq(name: str, dtype: str, by_dtype: dict[str, list[str]]) -> None:
    config = {"weights_dtype": dtype, "modules_dtype_dict": by_dtype}
    assert weights_dtype_of(name, config) == UTILS.get_minimum_dtype(dtype, name, by_dtype)


@pytest.mark.parametrize("dtype", ["uint2", "int3", "uint4", "int5", "int8"])
@pytest.mark.parametrize("key", ["minimum_{}bit", "minimum_uint{}", "minimum-int{}-bits", "{}bits", "int{}bit"])
def test_every_minimum_is_as_in_sdnq(key: str, dtype: str) -> None:
    for bits in range(1, 10):
        by_dtype = {key.format(bits): ["a"]}
        config = {"weights_dtype": dtype, "modules_dtype_dict": by_dtype}
        assert weights_dtype_of("a.weight", config) == UTILS.get_minimum_dtype(dtype, "a.weight", by_dtype)


def test_a_module_may_have_a_configuration_of_its_own() -> None:
    config = {"weights_dtype": "uint4", "modules_quant_config": {"a.b.weight": {"weights_dtype": "int6"}}}
    assert [weights_dtype_of(name, config) for name in ("a.b.weight", "a.c.weight")] == ["int6", "uint4"]
    assert option_of("a.b.weight", "weights_dtype", config) == "int6"
    assert option_of("a.b.weight", "use_svd", {**config, "use_svd": True}) is True
    assert weights_dtype_of("a.weight", {"modules_quant_config": None, "modules_dtype_dict": None}) == "int8"
    assert option_of("a.weight", "use_svd", {"modules_quant_config": {"a": "use_svd"}}) is None
    # A dtype of thousands of digits is not a minimum.
    key = "minimum_" + "9" * 5000
    assert weights_dtype_of("a.b.weight", {"weights_dtype": "uint4", "modules_dtype_dict": {key: ["a"]}}) == key


EXPRESSIONS = st.text(alphabet="atmod1._*[]()|^$\\wb-x", min_size=1, max_size=10) | st.sampled_from(
    ["(attn|mod)*", "txt_[in]*", "*(norm|weight)$", "*[^t]*1", "(at|attn).*weight|mod*", "[[a]*", "*\\btxt_in"]
)


@given(name=NAMES, pattern=EXPRESSIONS)
def test_expressions_match_as_in_sdnq(name: str, pattern: str) -> None:
    """What is judged is judged as SDNQ does; what is not is refused for a reason."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            expected = UTILS.check_param_name_in(name, [pattern])
        except re.error:
            expected = None
            assert not is_judged(pattern, len(name))
    assert matching_pattern(name, [pattern]) == (expected if is_judged(pattern, len(name)) else None)


def test_classes_and_alternatives_are_judged() -> None:
    for pattern in ("(attn|mod)*", "*[mn]*", "txt_in.(0|1).*", "*(img|txt)_mod[.]1", ".((*", "(a|b|c|d|e|f|g)*"):
        assert is_judged(pattern, 120), pattern
    limits = ("(*a)(*a)(*a)", "(*a)(*a)(*a)*", "[a]" * 66 + "a*", "[a]" * 66 + "aa*")
    assert [is_judged(pattern, 9) for pattern in limits] == [True, False, True, False]
    assert (is_judged(limits[0], 100), is_judged(limits[0], 101)) == (True, False)


MATCHED_AT_ONCE = ["*a" * 12 + "*b", "*a." * 40 + "*b", "*" * 1000]
NOT_RUN = ["(a+)+*$", "(a{1,9}){1,9}*$", "(*a)(*a)(*a)(*a)b", "(a|a)" * 7 + "*b", "(*a|*a)(*a|a)b"]
NOT_RUN += ["(a)\\1*", "(" * 300 + "*", "*" * 1001]


@pytest.mark.parametrize("pattern", MATCHED_AT_ONCE + NOT_RUN)
def test_patterns_that_are_programs_are_not_run(pattern: str) -> None:
    name = "a" * 2000
    with time_limit(5):
        assert is_judged(pattern, len(name)) == (pattern in MATCHED_AT_ONCE)
        assert matching_pattern(name, [pattern]) in (None, "*" * 1000)


def test_pieces_do_not_overlap_and_do_not_reach_beyond_a_line() -> None:
    pairs = [*itertools.product(("ab", "aba", "abba", "bab", "babb"), ("a*a", "ab*ba", "b*b*b"))]
    for name, pattern in (*pairs, *itertools.product(("a\nb", "ab\n", "\nb"), ("a*b", "*b", "a*", "*"))):
        assert matching_pattern(name, [pattern]) == UTILS.check_param_name_in(name, [pattern])


@given(channels=st.integers(1, 5000), group_size=st.integers(-2, 600))
def test_groups_divide_the_channels(channels: int, group_size: int) -> None:
    count = group_count(channels, group_size)
    assert channels % count == 0
    assert group_size <= 0 or count <= max(1, channels // group_size)
