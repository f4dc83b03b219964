"""What a search can choose from: candidates of real models, and what rules leave of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from converter.checkpoint.layout import TensorSpec
from converter.checkpoint.source import Checkpoint, open_checkpoint
from converter.conversion.planning.planner import plan_with_sdnq
from converter.conversion.recipe.recipe import Recipe, Rule, find_recipe
from converter.errors import InputError, RecipeError, UnsupportedCheckpoint
from converter.measurement.search.candidates import (
    KEPT,
    Candidate,
    SearchedModule,
    SearchSpace,
    find_choices,
    parse_candidates,
)
from converter.measurement.search.constraints import constrain
from converter.measurement.search.rules import (
    AT_LEAST,
    INCLUDE,
    KEEP,
    SAME,
    SearchRule,
    included,
    parse_rule,
    read_rules,
)
from converter.measurement.sensitivity.storage import Storage, storages
from tests.cases import check_cases
from tests.tiny_models import save_model

LENS = "LensTransformer2DModel"
UINT4 = Recipe("mine", {"weights_dtype": "uint4", "use_hadamard": False})
CANDIDATES = tuple(Candidate(name, {"weights_dtype": name}) for name in ("uint4", "int5", "int8"))


@pytest.fixture(scope="module")
def checkpoint(lens_source: Path) -> Checkpoint:
    return open_checkpoint(lens_source)


@pytest.fixture(scope="module")
def lens(checkpoint: Checkpoint) -> SearchSpace:
    recipe = find_recipe(None, LENS)
    return find_choices(checkpoint, recipe, parse_candidates("uint4,int5,int8+svd,BF16", recipe))


def make_space(*names: str, asked: tuple[Candidate, ...] = (*CANDIDATES, Candidate(KEPT, {}))) -> SearchSpace:
    """A space without a model: modules with these names, and two that SDNQ skips."""

    def storage(name: str, dtype: str) -> Storage:
        return Storage(name, {"": TensorSpec(name, dtype, (2, 2))}, None)

    kinds = {candidate.name: "U8" for candidate in CANDIDATES} | {KEPT: "BF16"}
    modules = []
    for number, name in enumerate(names):
        stored = {kind: storage(name, dtype) for kind, dtype in kinds.items()}
        sizes = {kind: (number + 1) * (at + 1) for at, kind in enumerate(kinds)}
        modules.append(SearchedModule(f"{name}.weight", (name,), stored, sizes))
    return SearchSpace(LENS, UINT4, asked, tuple(modules), 7, {}, ("proj_out", "norm"))


BLOCKS = make_space(*(f"blocks.{number}.{name}" for number in (0, 1) for name in ("to_q", "to_k", "to_out.0", "mlp")))


def test_candidates_are_dtypes_of_sdnq_with_svd_or_hadamard_or_none() -> None:
    assert parse_candidates("uint4, int8+hadamard+svd ,keep,fp8", UINT4) == (
        Candidate("uint4", {"weights_dtype": "uint4"}),
        Candidate("int8+svd+hadamard", {"weights_dtype": "int8", "use_svd": True, "use_hadamard": True}),
        Candidate(KEPT, {}),
        Candidate("fp8", {"weights_dtype": "fp8"}),
    )
    assert parse_candidates("uint4", UINT4)[0].rule("a.*") == Rule("a.*", options={"weights_dtype": "uint4"})
    assert parse_candidates("BF16,uint4", UINT4)[0].rule("b") == Rule("b", keep=True)


def test_wrong_candidates_and_rules_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each case is what is parsed, and its text."""

    def said(kind: str, text: str) -> str:
        with pytest.raises(InputError) as caught:
            parsers[kind](text)
        return caught.value.with_hint

    def read(text: str) -> object:
        Path("rules.toml").write_text(text)
        return constrain(BLOCKS, read_rules(Path("rules.toml")))

    monkeypatch.chdir(tmp_path)
    with_svd = Recipe("svd", {"weights_dtype": "uint4", "use_svd": True})
    parsers: dict[str, Callable[[str], object]] = {
        "candidates": lambda text: parse_candidates(text, with_svd),
        "rule": lambda text: constrain(BLOCKS, [parse_rule(text)]),
        "file": read,
    }
    check_cases("search_refusals.jsonl", said)


def test_a_file_of_rules_must_be_text(tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_bytes(b"# \xff")
    with pytest.raises(RecipeError, match="is not UTF-8 at byte 2"):
        read_rules(tmp_path / "rules.toml")
    with pytest.raises(InputError, match="no such file"):
        read_rules(tmp_path / "other.toml")


RULES = """
[[rules]]
match = "*.mlp"
keep = true
[[rules]]
family = "attn"
at_least = "int8"
[[rules]]
match = "proj_out"
include = true
[[rules]]
match = "*.to_k"
same = true
[[rules]]
same = ["*.to_q", "*.to_out.*"]
"""


def test_rules_are_the_same_in_a_file_and_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text(RULES)
    rules = read_rules(tmp_path / "rules.toml")
    assert rules[1] == SearchRule(AT_LEAST, family="attn", dtype="int8", where=f"{tmp_path}/rules.toml: rule 2")
    texts = ("*.mlp=keep", "*.attn.*>=int8", "proj_out=include", "*.to_k=same", "*.to_q,*.to_out.*=same")
    given = [parse_rule(text) for text in texts]
    assert [rule.to_dict() for rule in given] == [
        {"match": "*.mlp", "keep": True},
        {"match": "*.attn.*", "at_least": "int8"},
        {"match": "proj_out", "include": True},
        {"match": "*.to_k", "same": True},
        {"same": ["*.to_q", "*.to_out.*"]},
    ]
    assert rules[1].to_dict() == {"family": "attn", "at_least": "int8"}
    for number in (0, 2, 3, 4):
        assert rules[number].to_dict() == given[number].to_dict()
    assert included(rules) == (Rule("proj_out"),)


def allowed(*texts: str) -> dict[str, tuple[str, ...]]:
    found = constrain(BLOCKS, [parse_rule(text) for text in texts])
    return {module.names[0]: names for module, names in zip(BLOCKS.modules, found.allowed, strict=True)}


def test_what_is_kept_and_what_has_enough_bits() -> None:
    found = allowed("*.mlp=keep", "blocks.0.*>=int5", "norm=keep")
    assert found["blocks.0.mlp"] == found["blocks.1.mlp"] == (KEPT,)
    assert found["blocks.0.to_q"] == ("int5", "int8", KEPT)
    assert found["blocks.1.to_q"] == ("uint4", "int5", "int8", KEPT)
    # What must be kept is kept although nobody asked for it as a candidate.
    space = make_space("a", "b", asked=CANDIDATES)
    assert constrain(space, [parse_rule("b=keep")]).allowed == (("uint4", "int5", "int8"), (KEPT,))
    with pytest.raises(RecipeError) as caught:
        constrain(space, [parse_rule("b=keep"), parse_rule("[ab]=same")])
    assert caught.value.message.startswith("--rule [ab]=same: leaves b without a choice: the modules that must be")


@pytest.mark.parametrize(
    ("rules", "groups"),
    [
        ((), ()),
        (("*.to_k=same",), ((1, 5),)),
        (("*.to_q,*.to_k=same",), ((0, 1), (4, 5))),
        (("blocks.*.to_q,blocks.*.to_k,blocks.*.to_out.0=same",), ((0, 1, 2), (4, 5, 6))),
        (("*.to_q,*.to_k=same", "*.to_out.0,*.to_k=same"), ((0, 1, 2), (4, 5, 6))),
        (("*.to_q,*.to_k=same", "blocks.?.to_k=same", "*.mlp=same"), ((0, 1, 4, 5), (3, 7))),
    ],
)
def test_modules_that_must_be_the_same(rules: tuple[str, ...], groups: tuple[tuple[int, ...], ...]) -> None:
    found = constrain(BLOCKS, [parse_rule(text) for text in rules])
    assert found.groups == groups
    harms = {module.source: dict.fromkeys(module.bytes, float(at)) for at, module in enumerate(BLOCKS.modules)}
    problem = found.problem(BLOCKS, harms)
    assert (problem.groups, problem.fixed_bytes) == (groups, 7)
    assert [(choice.bytes, choice.harm, choice.name) for choice in problem.modules[2]] == [
        *((3, 2.0, "uint4"), (6, 2.0, "int5"), (9, 2.0, "int8"), (12, 2.0, KEPT)),
    ]


def test_choices_of_lens_are_those_of_sdnq(lens: SearchSpace, checkpoint: Checkpoint) -> None:
    """Every linear of a block, modulation too, which only the recipe keeps; bytes and storages are those of plans."""
    recipe = find_recipe(None, LENS)
    blocks = [name for name in checkpoint.tensors if ".attn.to_" in name or "_qkv" in name or "_m" in name]
    quantizable = {name for name in blocks if name.endswith(".weight") and "norm" not in name}
    assert {module.source for module in lens.modules} == quantizable
    assert {"proj_out", "img_in", "txt_norm.0", "norm_out.linear"} <= set(lens.skipped)
    for candidate in lens.candidates:
        rule = [] if candidate.options else [Rule("*", keep=True)]
        plan = plan_with_sdnq(checkpoint, Recipe("r", {**recipe.options, **candidate.options}, tuple(rule)))
        own = storages(plan)
        assert {module.storages[candidate.name].key for module in lens.modules} == {
            own[module.source].key for module in lens.modules
        }
        total = lens.fixed_bytes + sum(module.bytes[candidate.name] for module in lens.modules)
        assert total == sum(spec.bytes for spec in plan.specs)
    names = [candidate.name for candidate in lens.candidates]
    assert names == ["uint4", "int5", "int8+svd", KEPT]
    assert all([*module.storages] == names == [*module.bytes] for module in lens.modules)
    assert lens.modules[0].storages["int8+svd"].is_random


def test_modules_that_sdnq_skips_are_included_by_a_rule(lens: SearchSpace, checkpoint: Checkpoint) -> None:
    rules = [parse_rule("proj_out=include"), parse_rule("*.img_mod.*>=int5")]
    found = find_choices(checkpoint, lens.recipe, lens.candidates, included(rules))
    assert {module.source for module in found.modules} - {module.source for module in lens.modules} == {
        "proj_out.weight"
    }
    assert "proj_out" not in found.skipped
    assert found.fixed_bytes == lens.fixed_bytes - found.modules[-1].bytes[KEPT]
    constrain(found, rules)
    with pytest.raises(RecipeError, match="proj_out selects only modules about which nothing is chosen"):
        constrain(lens, rules)
    with pytest.raises(RecipeError, match="rule for proj_in: matches nothing in the model"):
        find_choices(checkpoint, lens.recipe, lens.candidates, included([parse_rule("proj_in=include")]))


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"use_dynamic_quantization": True}, RecipeError, "chooses dtypes by the weights"),
        ({"minimum_allowed_numel": 10**9}, UnsupportedCheckpoint, "quantizes no module of it with any candidate"),
        ({"use_codebook": True}, RecipeError, "use_codebook is only supported with unsigned integer dtypes"),
    ],
)
def test_recipes_that_leave_no_choice(
    options: dict[str, Any], error: type[InputError], said: str, checkpoint: Checkpoint
) -> None:
    with pytest.raises(error, match=said):
        find_choices(checkpoint, Recipe("mine", {"weights_dtype": "uint4", **options}), CANDIDATES)


def test_a_weight_of_several_modules_counts_with_all_its_bytes(tmp_path: Path) -> None:
    """A tied embedding is one tensor of the source, and two of the output once it is quantized."""
    checkpoint = open_checkpoint(save_model(tmp_path / "source", "Qwen3ForCausalLM", tie_word_embeddings=True))
    recipe = Recipe("mine", {"weights_dtype": "uint4", "quant_embedding": True})
    rules = [parse_rule(f"{name}=include") for name in ("lm_head", "*.embed_tokens")]
    space = find_choices(checkpoint, recipe, parse_candidates("uint4,BF16", recipe), included(rules))
    (tied,) = (module for module in space.modules if len(module.names) > 1)
    assert set(tied.names) == {"lm_head", "model.embed_tokens"}
    # SDNQ cuts the weight of an embedding into other groups than that of a linear.
    assert tied.bytes["uint4"] > 1.5 * tied.storages["uint4"].bytes
    assert tied.bytes[KEPT] == tied.storages[KEPT].bytes
    made = Recipe("r", recipe.options, tuple(Rule(name, options={"weights_dtype": "uint4"}) for name in tied.names))
    total = sum(spec.bytes for spec in plan_with_sdnq(checkpoint, made).specs)
    assert total == space.fixed_bytes + sum(module.bytes["uint4"] for module in space.modules)


def test_kinds_are_what_files_say() -> None:
    assert (KEEP, INCLUDE, AT_LEAST, SAME) == ("keep", "include", "at_least", "same")
