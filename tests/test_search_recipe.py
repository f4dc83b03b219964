"""What a search found, as a recipe: conversions with it give each module what was chosen, and the predicted bytes."""

from __future__ import annotations

import random
import tomllib
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from converter import convert, verify
from converter.checkpoint.source import Checkpoint, open_checkpoint
from converter.conversion.recipe.recipe import Recipe, Rule, choose_recipe, parse_recipe
from converter.conversion.release.manifest import read_manifest
from converter.errors import RecipeError
from converter.measurement.search.candidates import KEPT, SearchSpace, find_choices, parse_candidates
from converter.measurement.search.constraints import constrain
from converter.measurement.search.problem import Selection, select
from converter.measurement.search.recipe_file import make_recipe, plan_selection, recipe_text
from converter.measurement.search.rules import included, parse_rule
from converter.synthesis.synthesize import synthesize
from tests.tiny_models import save_model

DIGEST = "0a" * 32
NAMES = ("uint4", "int8+svd", KEPT)


def open_space(source: Path, candidates: str, *rules: str) -> tuple[Checkpoint, SearchSpace]:
    checkpoint = open_checkpoint(source)
    recipe = choose_recipe(None, checkpoint)
    parsed = parse_candidates(candidates, recipe)
    return checkpoint, find_choices(checkpoint, recipe, parsed, included([parse_rule(text) for text in rules]))


def pick(space: SearchSpace, name_for: Callable[[str], str]) -> Selection:
    """The selection of a candidate for each module, by its name."""
    harms = {module.source: dict.fromkeys(module.bytes, 0.0) for module in space.modules}
    problem = constrain(space, ()).problem(space, harms)
    names = [[choice.name for choice in row.choices] for row in problem.rows]
    wanted = [name_for(module.names[0]) for module in space.modules]
    return select(problem, [own.index(name) for own, name in zip(names, wanted, strict=True)])


def recipe_of(space: SearchSpace, selection: Selection) -> Recipe:
    return make_recipe(space, selection, name="found", description="2 of 3", evidence_sha256=DIGEST)


@pytest.mark.parametrize("preset", ["tiny", "tiny-flux", "tiny-sdxl"])
def test_a_conversion_gives_the_predicted_bytes_and_dtypes(preset: str, tmp_path: Path) -> None:
    """A mixed selection, with modules that the default recipe keeps, and one that SDNQ would skip."""
    synthesize(tmp_path / "source", preset=preset)
    skipped = {"tiny": "proj_out", "tiny-flux": "context_embedder", "tiny-sdxl": "time_embedding.linear_2"}[preset]
    checkpoint, space = open_space(tmp_path / "source", "uint4,int5,int8,uint4+hadamard,BF16", f"{skipped}=include")
    chance = random.Random(3)  # noqa: S311
    kinds = [candidate.name for candidate in space.candidates]
    selection = pick(space, lambda name: chance.choice(kinds) if name != skipped else "int8")
    recipe = recipe_of(space, selection)
    plan_selection(checkpoint, space, selection, recipe)
    (tmp_path / "found.toml").write_text(recipe_text(recipe))
    convert(tmp_path / "source", tmp_path / "out", str(tmp_path / "found.toml"))
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None
    assert sum(manifest.main.bytes_by_dtype.values()) == selection.bytes
    written = sum(tensor.entry.bytes for tensor in open_checkpoint(tmp_path / "out").tensors.values())
    assert written == selection.bytes
    chosen = {module.names[0]: choice.name for module, choice in zip(space.modules, selection.choices, strict=True)}
    quantized = {name: entry["weights_dtype"] for name, entry in manifest.main.recipe["quantized"].items()}
    assert quantized == {name: kind.partition("+")[0] for name, kind in chosen.items() if kind != KEPT}
    rotated = {name for name, kind in chosen.items() if kind == "uint4+hadamard"}
    options = manifest.main.sdnq["modules_quant_config"]
    assert {name.removesuffix(".weight") for name, own in options.items() if own["use_hadamard"]} == rotated
    assert manifest.main.recipe["evidence_sha256"] == DIGEST
    assert len(set(quantized.values())) == 3
    assert quantized[skipped] == "int8"
    if preset == "tiny":
        # The default recipe would keep these.
        assert len({quantized.get(f"transformer_blocks.{block}.img_mod.1") for block in range(4)}) > 2
        report = verify(tmp_path / "out", against=tmp_path / "source", load=True)
        assert report.ok, [check for check in report.checks if not check.ok]


@pytest.fixture(scope="module")
def lens(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, SearchSpace]:
    """A space with three blocks."""
    source = save_model(tmp_path_factory.mktemp("lens") / "source", "LensTransformer2DModel", num_layers=3)
    return open_space(source, ",".join(NAMES))


def test_modules_that_differ_by_numbers_share_a_rule(lens: tuple[Checkpoint, SearchSpace]) -> None:
    checkpoint, space = lens
    kept = ("transformer_blocks.1.attn.to_out.0", "transformer_blocks.0.img_mlp.w1")
    different = dict(zip((f"transformer_blocks.{number}.txt_mlp.w2" for number in range(3)), NAMES, strict=True))

    def name_for(path: str) -> str:
        if path in kept or "txt_mod" in path:
            return KEPT
        return "int8+svd" if "img_mod" in path else different.get(path, "uint4")

    selection = pick(space, name_for)
    recipe = recipe_of(space, selection)
    rules = {rule.match: rule.options or KEPT for rule in recipe.rules}
    # One for each module of a block except the one that is different in each; those follow, with the exceptions.
    assert len(rules) == len(recipe.rules) == len(space.modules) // 3 - 1 + 3 + 2
    assert rules["transformer_blocks.*.img_mod.*"] == {"weights_dtype": "int8", "use_svd": True}
    assert rules["transformer_blocks.*.txt_mod.*"] == KEPT
    assert rules["transformer_blocks.*.attn.to_out.*"] == {"weights_dtype": "uint4"}
    assert {rule.match for rule in recipe.rules[-5:]} == {*kept, *different}
    plan_selection(checkpoint, space, selection, recipe)


def test_a_star_that_would_reach_other_modules_is_not_used(tmp_path: Path) -> None:
    """In UNets, modules of one name and other numbers are too small to be quantized."""
    synthesize(tmp_path / "source", preset="tiny-sdxl")
    checkpoint, space = open_space(tmp_path / "source", "uint4,BF16")
    selection = pick(space, lambda _: "uint4")
    recipe = recipe_of(space, selection)
    for rule in recipe.rules:
        assert not any(fnmatchcase(path, rule.match) for path in space.skipped)
    assert 10 < sum("*" in rule.match for rule in recipe.rules) < len(recipe.rules)
    plan_selection(checkpoint, space, selection, recipe)


def test_the_text_is_the_recipe_and_always_the_same(lens: tuple[Checkpoint, SearchSpace]) -> None:
    _, space = lens
    chance = random.Random(4)  # noqa: S311
    selection = pick(space, lambda _: chance.choice(NAMES))
    recipe = recipe_of(space, selection)
    text = recipe_text(recipe)
    assert parse_recipe(text, where="x") == recipe
    assert text == recipe_text(recipe_of(space, selection))
    content = tomllib.loads(text)
    assert {*content} == {"name", "description", "evidence_sha256", "sdnq", "rules"}
    assert content["sdnq"] == choose_recipe("lens-uint4-static", lens[0]).options
    changed = replace(recipe, seed=5, rounding="scale", evidence_sha256="", rules=(Rule('a"[*]\\', keep=True),))
    assert parse_recipe(recipe_text(changed), where="x") == changed


@pytest.mark.parametrize(("chosen", "rounding"), [("uint4", "scale"), ("int8+svd", "nearest"), (KEPT, "nearest")])
def test_a_rounding_that_works_for_nothing_chosen_is_left_out(
    chosen: str, rounding: str, lens: tuple[Checkpoint, SearchSpace], tmp_path: Path
) -> None:
    """A conversion would refuse it, and has the same bytes without it."""
    checkpoint, _ = lens
    recipe = replace(choose_recipe(None, checkpoint), rounding="scale")
    space = find_choices(checkpoint, recipe, parse_candidates(",".join(NAMES), recipe))
    selection = pick(space, lambda _: chosen)
    found = recipe_of(space, selection)
    assert found.rounding == rounding
    plan_selection(checkpoint, space, selection, found)
    convert(checkpoint.folder, tmp_path / "out", found)
    assert open_checkpoint(tmp_path / "out").total_bytes == selection.bytes


def test_a_recipe_that_sdnq_takes_for_another_is_refused(lens: tuple[Checkpoint, SearchSpace]) -> None:
    checkpoint, space = lens
    selection = pick(space, lambda _: "uint4")
    recipe = recipe_of(space, selection)
    with pytest.raises(RecipeError, match=r"img_mod.1 is not stored as uint4"):
        plan_selection(checkpoint, space, selection, recipe.with_rules([Rule("*.0.img_mod.*", keep=True)]))
    with pytest.raises(RecipeError, match=r"the result has [0-9]+ bytes, not 7"):
        plan_selection(checkpoint, space, replace(selection, bytes=7), recipe)
