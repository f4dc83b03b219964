"""A whole search, one plain value a step.

original and candidates -> what can be chosen -> harm of each choice -> exact optimum -> recipe -> check

The recipes are written before the check, which needs much longer than a choice.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.checkpoint.checksum import file_sha256
from converter.checkpoint.writer import refuse_taken_place, replace_file, writing
from converter.cluster.connection import check_address
from converter.cluster.nodes import named_cluster
from converter.console import SILENT, Reporter
from converter.conversion.recipe.recipe import Recipe
from converter.conversion.request import open_request
from converter.errors import OutputError, printable
from converter.measurement.ablation.subject import hash_original
from converter.measurement.benchmark.output_folder import refuse_output_folder
from converter.measurement.generation.options import GenerateOptions
from converter.measurement.prompts.suite import PromptSuite, read_suite
from converter.measurement.search.candidates import SearchSpace, find_choices, parse_candidates
from converter.measurement.search.check import check, held_out
from converter.measurement.search.constraints import Constraints, constrain
from converter.measurement.search.optimum import choose, choose_by_error, front, front_budgets, refuse_budget
from converter.measurement.search.options import PREDICTING, WEIGHTS, SearchOptions, require_prediction
from converter.measurement.search.places import WORK_NAME, evidence_folder, recipe_files, work_folder
from converter.measurement.search.problem import Problem, Selection
from converter.measurement.search.recipe_file import make_recipe, plan_selection, recipe_text
from converter.measurement.search.rules import SearchRule, included, parse_rule, read_rules
from converter.measurement.search.run import SearchRun
from converter.measurement.search.scores import SCORES_NAME, Scores, describe_scores, encode_scores, read_scores
from converter.measurement.search.scoring import Scoring
from converter.measurement.search.verdicts import Check, Found
from converter.measurement.sensitivity.loaded import open_original
from converter.memory import peak_rss_bytes


@dataclass(frozen=True)
class SearchReport:
    """What a search found."""

    found: tuple[Found, ...]
    """The recipes, in the order of their budgets."""
    evidence: Path
    """Folder of what was measured."""
    scores_sha256: str
    """Of the file with all scores, which the recipes name."""
    score: str
    """Where the harms come from, one of ``SCORES``."""
    smallest: int
    """Bytes of the smallest possible recipe."""
    largest: int
    check: Check | None
    """None if nothing was checked."""
    elapsed_s: float
    peak_rss_bytes: int

    @property
    def predicts(self) -> bool:
        """Whether the harms predict an error of the velocity."""
        return self.score in PREDICTING

    def to_dict(self) -> dict[str, Any]:
        """Return what ``lensconv search --json`` shows."""
        checked = {} if self.check is None else {"check": self.check.to_dict()}
        return {
            "ok": True,
            "recipes": [_shown(one, predicts=self.predicts) for one in self.found],
            "evidence": str(self.evidence),
            "scores_sha256": self.scores_sha256,
            "score": self.score,
            "smallest_bytes": self.smallest,
            "largest_bytes": self.largest,
            **checked,
            "elapsed_s": self.elapsed_s,
            "peak_rss_bytes": self.peak_rss_bytes,
        }


def search(
    original: Path,
    output: Path,
    options: SearchOptions,
    recipe: str | Recipe | None = None,
    suite: PromptSuite | None = None,
    drawing: GenerateOptions | None = None,
    *,
    ray: str | None = None,
    reporter: Reporter = SILENT,
) -> SearchReport:
    """Search for the recipe with the least harm for a number of bytes, and write it.

    A run that was killed continues where it stopped.

    Args:
        original: a pipeline repo; for scores by weights, also a component folder or a ``.safetensors`` file.
        output: the file of the recipe; with ``front``, names get a number. Measurements are in a folder beside it.
        options: what to search for, and how.
        recipe: gives the options that the candidates do not have, not the rules; the default of the model's class when
            None.
        suite: the prompts; ``ten-signs`` when None.
        drawing: how to generate images; the seed is that of each prompt.
        ray: address of a cluster whose nodes measure, as for ``opened_cluster``; None if this machine does.
        reporter: shows progress and notes.

    Raises:
        InputError: the original, a rule or a candidate cannot be used, or a value is out of range.
        ClusterError: the cluster cannot be used, or nodes end again and again.
        SolverError: too many recipes are almost as good as the best one.
        ReleaseError: a conversion has other bytes than predicted.
        OutputError: the recipe cannot be written, or the folder contains the measurements of another search.
        ResourceError: memory, disk or a device is missing.
    """
    started = time.monotonic()
    if ray is not None:
        check_address(ray)
    suite, drawing = suite or read_suite("ten-signs"), drawing or GenerateOptions()
    files, folder = _find_places(original, output, options)
    target = open_request(original, recipe, options.conversion).main
    rules = _find_rules(options)
    space = find_choices(
        target.checkpoint, target.recipe, parse_candidates(options.candidates, target.recipe), included(rules)
    )
    constraints = constrain(space, rules)
    _refuse_impossible(space, constraints, options)
    if options.check or not (options.score == WEIGHTS or options.scores):
        open_original(original)
    if options.check:
        held_out(suite, _prompts(suite, options))
    with named_cluster(ray, reporter) as cluster:
        described = hash_original(target.checkpoint, reporter)
        run = SearchRun(original, described, target, space, suite, options, drawing, folder, reporter, cluster)
        scores = _find_scores(run)
        described.refuse_changed()
        problem = constraints.problem(space, scores.harms)
        content, digest = encode_scores(describe_scores(described, space, scores, rules))
        found = [
            _make_found(file, run, scores, selection, budget, digest)
            for file, (selection, budget) in zip(files, _choose(problem, options), strict=True)
        ]
        _write(found, folder, content, overwrite=options.overwrite)
        checked = None
        if options.check:
            checked = check(found, run, scores)
            work_folder(folder).remove()
    return SearchReport(
        found=tuple(found),
        evidence=folder,
        scores_sha256=digest,
        score=scores.score,
        smallest=problem.smallest,
        largest=problem.largest,
        check=checked,
        elapsed_s=time.monotonic() - started,
        peak_rss_bytes=peak_rss_bytes(),
    )


def _find_places(original: Path, output: Path, options: SearchOptions) -> tuple[list[Path], Path]:
    """The files of the recipes, and the folder of the measurements.

    Raises:
        OutputError: they cannot be written, or a file exists already.
    """
    if output.suffix != ".toml":
        raise OutputError(f"{output}: recipes are TOML files", "Give it a name that ends in .toml.")
    folder = evidence_folder(output)
    refuse_output_folder(folder, original, (WORK_NAME,))
    files = recipe_files(output, options.front)
    for file in files:
        refuse_taken_place(file, overwrite=options.overwrite or _is_found(file, folder))
    return files, folder


def _is_found(file: Path, folder: Path) -> bool:
    """Whether an earlier run with the same measurements wrote a recipe, perhaps one that was stopped in its check."""
    try:
        digest = file_sha256(folder / SCORES_NAME)
        return digest is not None and f'evidence_sha256 = "{digest}"'.encode() in file.read_bytes()
    except OSError:
        return False


def _write(found: Sequence[Found], folder: Path, scores: bytes, *, overwrite: bool) -> None:
    """Write the recipes and ``scores.json``.

    Raises:
        OutputError: they cannot be written, or there is another recipe, perhaps since another process wrote it.
    """
    texts = {one.file: recipe_text(one.recipe).encode() for one in found}
    for file, text in texts.items():
        refuse_taken_place(file, overwrite=overwrite or file_sha256(file) == hashlib.sha256(text).hexdigest())
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / SCORES_NAME, scores)
    for file, text in texts.items():
        replace_file(file, text)


def _find_rules(options: SearchOptions) -> list[SearchRule]:
    of_file = read_rules(options.rules_file) if options.rules_file is not None else ()
    return [*of_file, *map(parse_rule, options.rules)]


def _refuse_impossible(space: SearchSpace, constraints: Constraints, options: SearchOptions) -> None:
    """Refuse a budget that leaves nothing to choose, before anything is measured.

    Raises:
        UsageError: it does.
    """
    if options.budget is not None:
        harmless = {module.source: dict.fromkeys(module.storages, 0.0) for module in space.modules}
        refuse_budget(constraints.problem(space, harmless), options.budget)


def _prompts(suite: PromptSuite, options: SearchOptions) -> list[str]:
    """Ids of the prompts by which harms will be measured."""
    if options.score == WEIGHTS or options.scores is not None:
        return []
    return [prompt.id for prompt in suite.prompts[: options.calibration_prompts]]


def _find_scores(run: SearchRun) -> Scores:
    """Read the scores that the user names, or measure them."""
    options = run.options
    if options.scores is None:
        return Scoring(run).measure()
    scores = read_scores(options.scores, run.described, run.space, options.quantize_from)
    if options.error is not None:
        require_prediction(scores.score)
    if options.check:
        held_out(run.suite, scores.prompts)
    return scores


def _choose(problem: Problem, options: SearchOptions) -> list[tuple[Selection, int]]:
    """What is chosen, and the budget of each."""
    if options.front is not None:
        return list(zip(front(problem, options.front), front_budgets(problem, options.front), strict=True))
    if options.budget is not None:
        return [(choose(problem, options.budget), options.budget)]
    selection = choose_by_error(problem, options.error or 0.0)
    return [(selection, selection.bytes)]


def _make_found(file: Path, run: SearchRun, scores: Scores, selection: Selection, budget: int, digest: str) -> Found:
    """The recipe of a selection; SDNQ has to make of it what was chosen."""
    predicted = f", predicted velocity error {selection.error:.4g}" if scores.score in PREDICTING else ""
    description = f"Found by lensconv search, with scores by {scores.score}: {selection.bytes} bytes{predicted}"
    recipe = make_recipe(
        run.space, selection, name=printable(file.stem), description=description, evidence_sha256=digest
    )
    plan_selection(run.target.checkpoint, run.space, selection, recipe)
    return Found(file, recipe, selection, budget)


def _shown(found: Found, *, predicts: bool) -> dict[str, Any]:
    """A recipe as ``--json`` shows it."""
    return {
        "file": str(found.file),
        "bytes": found.selection.bytes,
        "budget": found.budget,
        "harm": found.selection.harm,
        "predicted_error": found.selection.error if predicts else None,
        "modules": found.modules,
    }
