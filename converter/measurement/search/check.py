"""Whether a search was worth it: what it found against uniform recipes, for prompts that it has not used.

Each recipe is converted, so that its bytes are those of a release. Its velocity error is measured as `ablate` measures
it. What it has to beat is the best uniform recipe that fits the same budget, by the errors measured here: so the choice
among those favours them.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from statistics import fmean
from typing import Any

from converter.checkpoint.source import open_checkpoint
from converter.checkpoint.writer import writing
from converter.conversion.convert import convert
from converter.conversion.planning.planner import plan_with_sdnq
from converter.conversion.recipe.recipe import Recipe
from converter.errors import ImageError, ReleaseError, UsageError
from converter.measurement.ablation.ablate import ablate_on
from converter.measurement.ablation.options import VELOCITY, AblateOptions
from converter.measurement.evidence.statistics import FEWEST_PAIRS
from converter.measurement.prompts.suite import PromptSuite
from converter.measurement.search.candidates import SearchSpace
from converter.measurement.search.places import release_folder
from converter.measurement.search.run import SearchRun
from converter.measurement.search.scores import Scores
from converter.measurement.search.verdicts import Check, Found, Measured, compare
from converter.measurement.sensitivity.digest import weights_digest
from converter.measurement.sensitivity.storage import storages


def held_out(suite: PromptSuite, used: Iterable[str]) -> PromptSuite:
    """The prompts of a suite that a search has not used.

    Args:
        suite: all prompts.
        used: ids of those that were.

    Raises:
        UsageError: too few are left for an interval.
    """
    prompts = tuple(prompt for prompt in suite.prompts if prompt.id not in set(used))
    if len(prompts) < FEWEST_PAIRS:
        raise UsageError(
            f"--check: {suite.name} leaves {len(prompts)} prompts that the search does not use, and an interval needs "
            f"{FEWEST_PAIRS}",
            "Use fewer --calibration-prompts, or a suite with more prompts.",
        )
    return replace(suite, prompts=prompts)


def uniform_recipes(recipe: Recipe, space: SearchSpace) -> list[Recipe]:
    """The recipe itself, and each candidate for everything linear and with the rules of the recipe.

    Args:
        recipe: that of the search, with its rules.
        space: has the candidates.
    """
    found = [replace(recipe, components={})]
    for candidate in space.candidates:
        if candidate.options:
            options = {**recipe.options, **candidate.options}
            made = replace(recipe, options=options, components={}, classes=(), description="")
            found.append(replace(made, name=f"{candidate.name}, all linear", rules=()))
            if recipe.rules:
                found.append(replace(made, name=f"{candidate.name}, rules of {recipe.name}"))
    different: dict[str, Recipe] = {}
    for one in found:
        different.setdefault(repr((sorted(one.options.items()), one.rules)), one)
    return list(different.values())


def named_apart(recipes: Iterable[Recipe]) -> list[Recipe]:
    """The same recipes; one whose name an earlier one has gets a number, as a table of variants has each name once."""
    different: dict[str, Recipe] = {}
    for recipe in recipes:
        name, number = recipe.name, 1
        while name in different:
            number += 1
            name = f"{recipe.name} ({number})"
        different[name] = replace(recipe, name=name)
    return list(different.values())


def check(found: Sequence[Found], run: SearchRun, scores: Scores) -> Check:
    """Convert with the recipes that were found, and measure them and uniform ones.

    Args:
        found: what the search found.
        run: what was searched; its original is a pipeline repo.
        scores: by which it was chosen. Their prompts are not used.

    Raises:
        ReleaseError: a conversion has other bytes than predicted.
        ImageError: a variant could not be measured.

    Raises also what ``convert`` and ``ablate`` raise.
    """
    digests = [_convert(one, run) for one in found]
    suite, options = held_out(run.suite, scores.prompts), run.options
    recipes = named_apart([*(one.recipe for one in found), *uniform_recipes(run.target.recipe, run.space)])
    report = ablate_on(
        nullcontext(run.cluster),
        run.original,
        run.folder,
        recipes[0],
        suite,
        AblateOptions(
            level=VELOCITY,
            velocity_prompts=len(suite.prompts),
            calls=options.calls,
            jobs=options.jobs,
            memory=options.memory,
            quantize_from=options.quantize_from,
            restart=options.restart,
        ),
        run.drawing,
        recipes[1:],
        run.reporter,
    )
    for failure in report.failures:
        raise ImageError(failure, "Measure with other prompts or in another --dtype.")
    variants = report.content["variants"]
    for one, digest, variant in zip(found, digests, variants, strict=False):
        if digest is not None and digest != variant["sha256"]:
            raise ReleaseError(f"{one.file}: a conversion with it has other numbers than what was measured")
    measured = [_measured(*pair, run, scores) for pair in zip(recipes, variants, strict=True)]
    return compare(found, measured[: len(found)], measured[len(found) :])


def _convert(found: Found, run: SearchRun) -> str | None:
    """Convert the denoiser alone, and compare its bytes with the predicted ones.

    Returns:
        The digest of what was written; None where SDNQ draws random numbers, which the scan draws in another order.

    Raises:
        ReleaseError: the bytes are others.
    """
    release = release_folder(run.folder)
    options = replace(run.target.options, overwrite=True)
    with writing(release):
        release.parent.mkdir(parents=True, exist_ok=True)
    convert(run.target.checkpoint.folder, release, found.recipe, options, reporter=run.reporter)
    written = open_checkpoint(release)
    if written.total_bytes != found.selection.bytes:
        raise ReleaseError(
            f"{found.file}: a conversion has {written.total_bytes} bytes, not the predicted {found.selection.bytes}"
        )
    digest = None if found.recipe.is_random else weights_digest(written, reporter=run.reporter)
    with writing(release):
        shutil.rmtree(release)
    return digest


def _measured(recipe: Recipe, variant: Mapping[str, Any], run: SearchRun, scores: Scores) -> Measured:
    rows = variant["velocity"]["prompts"]
    squares = [fmean(error**2 for error in row["calls"]) for row in rows]
    harms = list(_harms(recipe, run, scores))
    return Measured(
        name=variant["name"],
        bytes=variant["bytes"],
        harm=None if None in harms else math.fsum(harm for harm in harms if harm is not None),
        errors={row["id"]: row["error"] for row in rows},
        root_mean_square=math.sqrt(fmean(squares)),
    )


def _harms(recipe: Recipe, run: SearchRun, scores: Scores) -> Iterator[float | None]:
    """The harm of each module of the search as a recipe stores it; None if it is not known."""
    stored = storages(plan_with_sdnq(run.target.checkpoint, recipe), recipe.rounding)
    for module in run.space.modules:
        key = stored[module.source].key
        names = (name for name, storage in module.storages.items() if storage.key == key)
        yield next((scores.harms[module.source][name] for name in names), None)
