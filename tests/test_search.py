"""Whole searches: recipes that `convert` takes, what they cost and do, and what stops or damages a run."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import time
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from converter import GenerateOptions, LensconvError, SearchOptions, convert, open_checkpoint, search
from converter.conversion.recipe.recipe import Recipe
from converter.conversion.release.manifest import read_manifest
from converter.errors import (
    EvidenceError,
    NonFiniteWeight,
    OutputError,
    RecipeError,
    ReleaseError,
    ScoresError,
    UnsupportedCheckpoint,
    UsageError,
)
from converter.measurement.evidence.statistics import mean_interval
from converter.measurement.prompts.suite import PromptSuite, SuitePrompt
from converter.measurement.search.check import named_apart
from converter.measurement.search.journal import JOURNAL_NAME
from converter.measurement.search.places import WORK_NAME
from converter.measurement.search.scores import SCORES_NAME
from converter.measurement.search.search import SearchReport
from converter.measurement.search.verdicts import Found, Measured, Verdict, compare
from converter.schemas import load_schema
from converter.synthesis.synthesize import synthesize
from scripts.signs.planting import plant_attention
from tests.conftest import Lensconv, command, snapshot

#: Small and few, so that an image takes a fraction of a second; float32, so that small harms are not those of rounding.
SMALL = GenerateOptions(device="cpu", dtype="float32", steps=3, guidance=1.0, height=64, width=64)
TEXTS = ("LAKE 7", "MILL", "HARBOR", "OPEN", "EXIT 4")
SUITE = PromptSuite(
    "five",
    tuple(
        SuitePrompt(f"P{number}", f"Sign {number}", number, f'"{text}" in white on a red sign, snow', (text,))
        for number, text in enumerate(TEXTS, 1)
    ),
)
#: Footprint in the middle of those that are possible for the model of `synth --preset signs`.
BUDGET = 2_400_000
FAST: dict[str, Any] = {"calibration_prompts": 2, "calls": 2, "probes": 2}


@pytest.fixture(scope="module")
def signs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search") / "Lens"
    synthesize(folder, preset="signs")
    return folder


@pytest.fixture(scope="module")
def found(signs: Path, tmp_path_factory: pytest.TempPathFactory) -> SearchReport:
    """A search by gradients, with a check."""
    output = tmp_path_factory.mktemp("found") / "mine.toml"
    return search(signs, output, SearchOptions(budget=BUDGET, check=True, **FAST), None, SUITE, SMALL)


def options(**changes: Any) -> SearchOptions:
    return SearchOptions(**{"budget": BUDGET, **FAST, **changes})


def recipe_of(report: SearchReport) -> dict[str, Any]:
    return tomllib.loads(report.found[0].file.read_text())


def test_the_recipe_makes_a_release_of_the_predicted_bytes(
    signs: Path, found: SearchReport, tmp_path: Path, lensconv: Lensconv
) -> None:
    (one,) = found.found
    assert found.smallest < one.selection.bytes <= BUDGET < found.largest
    done = lensconv("convert", signs, tmp_path / "release", "--recipe", one.file)
    assert done.code == 0, done.stderr
    written = open_checkpoint(tmp_path / "release", component="transformer")
    assert written.total_bytes == one.selection.bytes
    manifest = read_manifest(tmp_path / "release")
    assert manifest is not None
    assert manifest.components["transformer"].recipe["evidence_sha256"] == found.scores_sha256
    assert recipe_of(found)["evidence_sha256"] == found.scores_sha256
    scores = (found.evidence / SCORES_NAME).read_bytes()
    assert hashlib.sha256(scores).hexdigest() == found.scores_sha256
    content = json.loads(scores)
    jsonschema.validate(content, load_schema("scores"))
    chosen = {choice.name for choice in one.selection.choices}
    assert len(chosen) > 2
    assert content["settings"]["prompts"] == ["P1", "P2"]
    assert sum(one.modules.values()) == len(content["modules"])


def test_a_check_measures_prompts_that_were_not_used(found: SearchReport) -> None:
    check = found.check
    assert check is not None
    (own,) = check.found
    assert own.errors.keys() == {"P3", "P4", "P5"}
    assert own.harm == pytest.approx(found.found[0].selection.harm)
    assert own.predicted is not None
    assert 0.5 < own.predicted / own.root_mean_square < 2
    by_name = {one.name: one for one in check.uniform}
    assert {"lens-uint4-static", "uint4, all linear", "int5, all linear", "int8, all linear"} < by_name.keys()
    assert "uint4, rules of lens-uint4-static" not in by_name
    fitting = [one for one in check.uniform if one.bytes <= BUDGET]
    best = min(fitting, key=lambda one: one.error)
    (verdict,) = check.verdicts
    assert (verdict.recipe, verdict.rival, verdict.outcome) == ("mine", best.name, "better")
    expected = mean_interval([best.errors[name] - own.errors[name] for name in own.errors])
    assert verdict.difference == expected
    assert "the search wins, by " in check.sentences[0]
    jsonschema.validate(json.loads(json.dumps(found.to_dict())), load_schema("search"))
    variants = json.loads((found.evidence / "ablation.json").read_text())["variants"]
    assert variants[0]["name"] == "mine"
    assert not (found.evidence / WORK_NAME).exists()


@pytest.mark.long
def test_a_release_that_is_not_what_was_measured_ends_a_check(
    signs: Path, found: SearchReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = found.evidence / SCORES_NAME
    made = options(check=True, scores=scores, candidates="uint4,int8", budget=2_000_000)
    monkeypatch.setattr("converter.measurement.search.check.weights_digest", lambda *_, **__: "0" * 64)
    with pytest.raises(ReleaseError, match=r"r\.toml: a conversion with it has other numbers than what was measured"):
        search(signs, tmp_path / "r.toml", made, None, SUITE, SMALL)


@pytest.mark.long
def test_two_runs_write_the_same_bytes(signs: Path, found: SearchReport, tmp_path: Path) -> None:
    again = search(signs, tmp_path / "mine.toml", options(), None, SUITE, SMALL)
    assert again.found[0].file.read_bytes() == found.found[0].file.read_bytes()
    assert (again.evidence / SCORES_NAME).read_bytes() == (found.evidence / SCORES_NAME).read_bytes()


def test_scores_are_used_again(signs: Path, found: SearchReport, tmp_path: Path) -> None:
    """By the next run into the same folder, and with --scores; then nothing is drawn, so the decoder is not needed."""
    before = snapshot(found.evidence)
    report = search(signs, found.found[0].file, options(overwrite=True), None, SUITE, SMALL)
    assert report.scores_sha256 == found.scores_sha256
    assert snapshot(found.evidence) == before
    scores = found.evidence / SCORES_NAME
    alone = tmp_path / "transformer"
    alone.symlink_to(signs / "transformer")
    front = search(alone, tmp_path / "f.toml", options(budget=None, front=4, scores=scores))
    assert [one.file.name for one in front.found] == ["f-1.toml", "f-2.toml", "f-3.toml", "f-4.toml"]
    sizes = [one.selection.bytes for one in front.found]
    harms = [one.selection.harm for one in front.found]
    assert sizes == sorted(sizes)
    assert harms == sorted(harms, reverse=True)
    assert sizes[0] == front.smallest
    least = front.found[1].selection.error
    by_error = search(alone, tmp_path / "e.toml", options(budget=None, error=least, scores=scores))
    assert by_error.found[0].selection.error <= least * (1 + 1e-9)
    assert by_error.found[0].selection.bytes <= sizes[1]
    fewer = search(alone, tmp_path / "c.toml", options(candidates="uint4,int8", scores=scores))
    assert fewer.found[0].modules.keys() == {"uint4", "int8"}


@pytest.mark.parametrize(
    "score", ["weights", *(pytest.param(score, marks=pytest.mark.long) for score in ("inputs", "measured"))]
)
def test_other_scores(score: str, signs: Path, tmp_path: Path) -> None:
    made = options(score=score, candidates="uint4,int8")
    report = search(signs, tmp_path / "r.toml", made, None, SUITE, SMALL)
    content = json.loads((report.evidence / SCORES_NAME).read_text())
    assert content["score"] == report.score == score
    assert report.predicts == (score == "measured")
    assert (report.to_dict()["recipes"][0]["predicted_error"] is None) == (score != "measured")
    assert ("prompts" in content["settings"]) == (score != "weights")
    for module in content["modules"]:
        harms = {choice["candidate"]: choice["harm"] for choice in module["choices"]}
        assert harms["uint4"] >= harms["int8"] >= harms["BF16"] >= 0
    # Nothing is measured again for another budget.
    lines = (report.evidence / JOURNAL_NAME).read_bytes()
    again = search(signs, tmp_path / "r.toml", replace(made, budget=2_000_000, overwrite=True), None, SUITE, SMALL)
    assert (report.evidence / JOURNAL_NAME).read_bytes() == lines
    assert again.found[0].selection.bytes <= 2_000_000


def test_rules_hold(signs: Path, found: SearchReport, tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text('[[rules]]\nfamily = "img_mod"\nat_least = "int8"\n')
    made = options(
        rules_file=file, rules=("transformer_blocks.0.*=keep",), scores=found.evidence / SCORES_NAME, budget=3_000_000
    )
    report = search(signs, tmp_path / "r.toml", made, None, SUITE, SMALL)
    content = json.loads((report.evidence / SCORES_NAME).read_text())
    assert content["rules"] == [
        {"family": "img_mod", "at_least": "int8"},
        {"match": "transformer_blocks.0.*", "keep": True},
    ]
    stored = {
        module["name"]: choice.name
        for module, choice in zip(content["modules"], report.found[0].selection.choices, strict=True)
    }
    assert {stored[name] for name in stored if name.startswith("transformer_blocks.0.")} == {"BF16"}
    assert {stored[name] for name in stored if "img_mod" in name} <= {"int8", "BF16"}


@pytest.mark.long
def test_a_search_finds_planted_outliers(tmp_path: Path) -> None:
    """The output layers of the attention in one block, by gradients; their errors alone do not show it."""
    synthesize(tmp_path / "Lens", preset="signs")
    plant_attention(tmp_path / "Lens", 2)
    report = search(tmp_path / "Lens", tmp_path / "r.toml", options(budget=2_000_000), None, SUITE, SMALL)
    modules = json.loads((report.evidence / SCORES_NAME).read_text())["modules"]
    harms = {module["name"]: module["choices"][0]["harm"] for module in modules}
    worst = sorted(harms, key=harms.__getitem__, reverse=True)[:2]
    planted = [f"transformer_blocks.2.attn.{name}" for name in ("to_add_out", "to_out.0")]
    assert sorted(worst) == planted
    chosen = {
        module["name"]: choice.name for module, choice in zip(modules, report.found[0].selection.choices, strict=True)
    }
    assert {chosen[name] for name in planted} <= {"int8", "BF16"}


#: Options that cannot be met, before anything is loaded: changes, the error, and a part of its message.
REFUSED: list[tuple[dict[str, Any], type[LensconvError], str]] = [
    ({"budget": 1000}, UsageError, r"below the smallest possible footprint; footprints go from \d+ bytes .* to \d+"),
    ({"budget": 10**12}, UsageError, r"above the largest possible footprint; footprints go from \d+ bytes"),
    ({"candidates": "uint4,uint99"}, RecipeError, "uint99 is not a dtype of SDNQ"),
    ({"candidates": "BF16"}, UsageError, "has no dtype to quantize to"),
    ({"candidates": "uint4,int5", "rules": ("*>=int8",)}, RecipeError, "leaves .* without a choice"),
    ({"rules": ("nothing.*=keep",)}, RecipeError, "matches nothing in the model"),
    ({"rules": ("nothing",)}, RecipeError, "must be GLOB=keep"),
    ({"check": True, "calibration_prompts": 3}, UsageError, "leaves 2 prompts that the search does not use"),
]


@pytest.mark.parametrize(("changes", "error", "message"), REFUSED, ids=[message for _, _, message in REFUSED])
def test_what_cannot_be_met_is_refused_before_anything_is_measured(
    changes: dict[str, Any], error: type[LensconvError], message: str, signs: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        search(signs, tmp_path / "r.toml", options(**changes), None, SUITE, SMALL)
    assert not list(tmp_path.iterdir())


def test_goals_that_contradict_each_other() -> None:
    for changes, message in (
        ({}, "nothing to reach"),
        ({"budget": 1, "front": 3}, "--budget and --front cannot be combined"),
        ({"error": 0.1, "score": "weights"}, "--error: scores by weights rank modules, but predict no error"),
        ({"front": 1}, "--front 1: must be between 2 and 1000"),
        ({"budget": 0}, "--budget 0: must be at least one byte"),
    ):
        with pytest.raises(UsageError, match=message):
            SearchOptions(**changes)


def test_places_that_are_refused(signs: Path, tmp_path: Path) -> None:
    taken = tmp_path / "r.toml"
    taken.write_text("mine")
    for output, message in (
        (taken, "exists already"),
        (tmp_path / "r.json", "recipes are TOML files"),
        (tmp_path / "missing" / "r.toml", "no such folder"),
        (signs / "r.toml", "is inside the original"),
    ):
        with pytest.raises(OutputError, match=message):
            search(signs, output, options(), None, SUITE, SMALL)
    assert snapshot(tmp_path) == {"r.toml": snapshot(tmp_path)["r.toml"]}


def test_the_same_recipe_needs_no_overwrite(signs: Path, tmp_path: Path) -> None:
    """So that the command of a run that was stopped in its check continues it; another recipe is kept."""
    made = options(score="weights", candidates="uint4,int8")
    report = search(signs, tmp_path / "r.toml", made)
    before = snapshot(tmp_path)
    assert search(signs, tmp_path / "r.toml", made).found == report.found
    assert snapshot(tmp_path).keys() == before.keys()
    text, scores = (file.read_bytes() for file in (tmp_path / "r.toml", report.evidence / SCORES_NAME))
    for edited, changes in ((text, {"budget": 2_000_000}), (text, {"rules": ("*.0.*>=int8",)}), (text + b"#", {})):
        (tmp_path / "r.toml").write_bytes(edited)
        with pytest.raises(OutputError, match=r"r\.toml: exists already"):
            search(signs, tmp_path / "r.toml", replace(made, **changes))
        assert (tmp_path / "r.toml").read_bytes() == edited
        assert (report.evidence / SCORES_NAME).read_bytes() == scores


def test_originals_that_are_refused(signs: Path, found: SearchReport, tmp_path: Path) -> None:
    convert(signs, tmp_path / "release")
    with pytest.raises(UnsupportedCheckpoint, match="already quantized"):
        search(tmp_path / "release", tmp_path / "r.toml", options(), None, SUITE, SMALL)
    with pytest.raises(UnsupportedCheckpoint, match=r"is not a pipeline repo, it has no model_index\.json"):
        search(signs / "transformer", tmp_path / "r.toml", options(), None, SUITE, SMALL)
    changed = tmp_path / "changed" / "transformer"
    changed.mkdir(parents=True)
    for file in (signs / "transformer").iterdir():
        (changed / file.name).write_bytes(file.read_bytes())
    weights = next(changed.glob("*.safetensors"))
    tensors = load_file(weights)
    name = "transformer_blocks.1.attn.img_qkv.weight"
    tensors[name] = tensors[name].copy()
    tensors[name][3, 5] = np.nan
    save_file(tensors, weights)
    with pytest.raises(ScoresError, match="has scores of other weights"):
        search(changed, tmp_path / "s.toml", options(scores=found.evidence / SCORES_NAME))
    with pytest.raises(NonFiniteWeight, match=name):
        search(changed, tmp_path / "n.toml", options(score="weights"))
    assert not list(tmp_path.glob("*.toml"))


def test_other_weights_are_not_continued(signs: Path, tmp_path: Path) -> None:
    made = options(score="weights", candidates="uint4,BF16")
    report = search(signs, tmp_path / "r.toml", made, None, SUITE, SMALL)
    again = replace(made, overwrite=True)
    other = replace(again, quantize_from="float32")
    with pytest.raises(OutputError, match=r"contains another search: quantize_from was .*bfloat16.*, and is now"):
        search(signs, tmp_path / "r.toml", other, None, SUITE, SMALL)
    search(signs, tmp_path / "r.toml", replace(other, restart=True), None, SUITE, SMALL)
    journal = report.evidence / JOURNAL_NAME
    journal.write_bytes(journal.read_bytes() + b'{"kind": "harms", "score": "inputs", "harms": {"a": {"b": -1}}}\n')
    with pytest.raises(EvidenceError, match="is damaged: line"):
        search(signs, tmp_path / "r.toml", other, None, SUITE, SMALL)


@pytest.mark.long
def test_other_calls_are_not_continued(signs: Path, found: SearchReport) -> None:
    with pytest.raises(OutputError, match="contains another search: calls was 2, and is now 1"):
        search(signs, found.found[0].file, options(calls=1, overwrite=True), None, SUITE, SMALL)


@pytest.mark.long
def test_a_killed_search_continues(signs: Path, found: SearchReport, tmp_path: Path) -> None:
    suite = tmp_path / "five.toml"
    suite.write_text(SUITE.to_toml())
    output = tmp_path / "mine.toml"
    words = [
        *("search", signs, "--out", output, "--budget", BUDGET, "--prompts", suite, "--calibration-prompts", 2),
        *("--calls", 2, "--probes", 2, "--device", "cpu", "--dtype", "float32", "--steps", 3, "--guidance", 1),
        *("--height", 64, "--width", 64),
    ]
    journal = tmp_path / "mine-evidence" / JOURNAL_NAME
    process = subprocess.Popen(command(*words), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        while not journal.exists() or b'"estimate"' not in journal.read_bytes():
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    assert not output.exists()
    before = journal.read_bytes()
    report = search(signs, output, options(), None, SUITE, SMALL)
    after = journal.read_bytes()
    assert after.startswith(before.rpartition(b"\n")[0])
    assert after.count(b'"estimate"') == 4
    assert output.read_bytes() == found.found[0].file.read_bytes()
    assert report.scores_sha256 == found.scores_sha256
    assert not (report.evidence / WORK_NAME).exists()


def made_up(name: str, size: int, *errors: float) -> Measured:
    ids = {f"P{number}": error for number, error in enumerate(errors)}
    return Measured(name, size, None, ids, sum(errors) / len(errors))


def verdicts(own: Measured, budget: int, *uniform: Measured) -> tuple[Verdict, ...]:
    one = Found(Path("r.toml"), None, None, budget)  # type: ignore[arg-type]
    return compare([one], [own], uniform).verdicts


def test_compared_recipes_have_different_names() -> None:
    """A recipe that was found may be called as the one that the search began with; it keeps its name."""
    recipes = [
        Recipe(name=name, options={"group_size": size}) for size, name in enumerate(("a", "b", "a", "a (2)", "a"))
    ]
    apart = named_apart(recipes)
    assert [recipe.name for recipe in apart] == ["a", "b", "a (2)", "a (2) (2)", "a (3)"]
    assert [recipe.options for recipe in apart] == [recipe.options for recipe in recipes]


def test_verdicts_claim_only_what_intervals_show() -> None:
    own = made_up("own", 95, 0.10, 0.20, 0.30)
    worse = made_up("uniform", 100, 0.15, 0.25, 0.36)
    better = made_up("smaller error", 100, 0.05, 0.14, 0.25)
    mixed = made_up("mixed", 100, 0.05, 0.26, 0.30)
    large = made_up("too large", 101, 0.01, 0.01, 0.01)
    small = made_up("small", 50, 0.9, 0.9, 0.91)
    (verdict,) = verdicts(own, 100, worse, large, small)
    assert (verdict.rival, verdict.outcome) == ("uniform", "better")
    assert str(verdict).endswith("the search wins, by 0.039 to 0.068 (95% interval over 3 prompts).")
    (verdict, begun) = verdicts(own, 100, small, better, worse)
    assert (verdict.rival, verdict.outcome, begun.rival, begun.outcome) == ("smaller error", "worse", "small", "better")
    assert "the search does not win; it is worse by 0.039 to 0.068 (95% interval" in str(verdict)
    (verdict,) = verdicts(own, 100, mixed)
    assert verdict.outcome == "undecided"
    assert "the search does not win; no difference was found, it is -0." in str(verdict)
    (verdict,) = verdicts(own, 100, replace(own, name="equal"))
    assert str(verdict).endswith("both are the same for each prompt, so the search does not win.")
    alone = compare([Found(Path("r.toml"), None, None, 49)], [own], [small, worse])  # type: ignore[arg-type]
    assert (alone.verdicts, alone.alone) == ((), ("own",))
    assert alone.sentences == ["own: no uniform recipe fits its budget, so there is nothing to compare it with."]
    assert [one.name for one in alone.uniform] == ["small", "uniform"]
