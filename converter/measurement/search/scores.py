"""``scores.json``: the scores by which a search chooses, and what they were measured of.

A later search of the same weights can read them instead of measuring them again, for other budgets, rules and fewer
candidates.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter._version import __version__
from converter.checkpoint.files import read_json
from converter.conversion.recipe.recipe import NEAREST
from converter.errors import MalformedCheckpoint, ScoresError, printable
from converter.fields import Fields
from converter.libraries import package_versions
from converter.measurement.ablation.subject import Original
from converter.measurement.evidence.names import ORIGINAL
from converter.measurement.evidence.weights import TRANSFORMER
from converter.measurement.search.candidates import KEPT, SearchedModule, SearchSpace
from converter.measurement.search.options import GRADIENTS, INPUTS, MEASURED, WEIGHTS
from converter.measurement.search.rules import SearchRule

SCORES_NAME = "scores.json"
SCHEMA_ID = "lensconv.scores/1"
#: What each kind of score is.
METHODS = {
    WEIGHTS: "squared error of the module's weight, divided by the squared norm of the weight",
    INPUTS: "squared error of the module's output, divided by its squared norm, from the squared error of each input "
    "channel of the weight and the mean square of its inputs",
    GRADIENTS: "squared relative error that the module alone adds to the denoiser's output, estimated by products of "
    "the error of its weight and gradients of the output in random directions",
    MEASURED: "squared relative error of the denoiser's output with the module alone stored in this way",
}
_KEYS = (
    *("schema", "sources", "component", "class_name", "versions", "score", "method", "settings", "recipe"),
    *("candidates", "rules", "fixed_bytes", "modules"),
)
#: Harms of each module, by the source name of its weight and by candidate.
Harms = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Scores:
    """The harms of a search, and where they come from."""

    harms: Harms
    """Of every storage of every module."""
    score: str
    """One of ``SCORES``."""
    settings: Mapping[str, Any]
    """What else the harms depend on, as JSON values."""

    @property
    def prompts(self) -> tuple[str, ...]:
        """Ids of the prompts by which harms were measured."""
        return tuple(self.settings.get("prompts", ()))


def describe_scores(
    original: Original, space: SearchSpace, scores: Scores, rules: Sequence[SearchRule] = ()
) -> dict[str, Any]:
    """The content of ``scores.json``.

    Args:
        original: whose weights were measured.
        space: what can be chosen.
        scores: of every storage of every module.
        rules: of the user.
    """
    recipe = space.recipe
    return {
        "schema": SCHEMA_ID,
        "sources": {ORIGINAL: original.source()},
        "component": original.checkpoint.component,
        "class_name": space.class_name,
        "versions": {"lensconv": __version__, **package_versions()},
        "score": scores.score,
        "method": METHODS[scores.score],
        "settings": dict(scores.settings),
        "recipe": {
            "name": recipe.name,
            "seed": recipe.seed,
            **({} if recipe.rounding == NEAREST else {"rounding": recipe.rounding}),
            "sdnq": dict(recipe.options),
        },
        "candidates": [candidate.name for candidate in space.candidates],
        "rules": [rule.to_dict() for rule in rules],
        "fixed_bytes": space.fixed_bytes,
        "modules": [_describe_module(module, scores.harms[module.source]) for module in space.modules],
    }


def _describe_module(module: SearchedModule, harms: Mapping[str, float]) -> dict[str, Any]:
    choices = [
        {"candidate": name, "bytes": module.bytes[name], "storage": storage.key, "harm": harms[name]}
        for name, storage in module.storages.items()
    ]
    return {"name": module.names[0], "source": module.source, "choices": choices}


def encode_scores(content: Mapping[str, Any]) -> tuple[bytes, str]:
    """The bytes of ``scores.json``, and their sha256, which a recipe names.

    Raises:
        ValueError: a harm is not finite.
    """
    encoded = (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    return encoded, hashlib.sha256(encoded).hexdigest()


def read_scores(file: Path, original: Original, space: SearchSpace, quantize_from: str) -> Scores:
    """Read the scores of an earlier search, if they are those of these weights and choices.

    Args:
        file: that ``encode_scores`` made.
        original: the weights at hand.
        space: what can be chosen now; the file may have more modules and candidates.
        quantize_from: how numbers are treated now.

    Returns:
        The scores of every storage of every module of ``space``.

    Raises:
        MissingInput: it cannot be read.
        ScoresError: it is malformed, it is of other weights, or it lacks a module or a candidate or has measured it
            with other options.
    """
    try:
        content = Fields(read_json(file), str(file), ScoresError)
    except MalformedCheckpoint as error:
        # The hint of that error is about weights.
        raise ScoresError(file, error.message.partition(": ")[2]) from error
    version = content.content.get("schema")
    if version != SCHEMA_ID:
        found = f"schema {version}" if isinstance(version, str) else "no schema"
        raise ScoresError(file, f"has {found}; this version of lensconv reads {SCHEMA_ID}")
    content.refuse_unknown(_KEYS, "a file of scores")
    _compare_weights(content, original)
    score, settings = content.take("score", str), content.take("settings", dict)
    if score not in METHODS:
        raise ScoresError(file, f"has scores by {printable(score)}, which is none of {', '.join(METHODS)}")
    before = Fields(settings, f"{file}: settings", ScoresError).take("quantize_from", str)
    if before != quantize_from:
        raise ScoresError(file, f"has scores of weights quantized from {printable(before)}, not from {quantize_from}")
    Fields(settings, f"{file}: settings", ScoresError).take_strings("prompts")
    measured = _read_modules(content)
    return Scores({module.source: _find_harms(module, measured, file) for module in space.modules}, score, settings)


def _compare_weights(content: Fields, original: Original) -> None:
    sources = Fields(content.take("sources", dict), f"{content.where}: sources", ScoresError)
    source = Fields(sources.take(ORIGINAL, dict), f"{sources.where}: {ORIGINAL}", ScoresError)
    measured = {file.take("sha256", str) for file in source.take_tables(TRANSFORMER, "file")}
    at_hand = {file.sha256: file.name for file in original.weights}
    if measured != at_hand.keys():
        other = next((name for digest, name in at_hand.items() if digest not in measured), "")
        reason = f"{other} of the original has another sha256" if other else "the original has fewer files"
        raise ScoresError(content.where, f"has scores of other weights: {reason}")


def _read_modules(content: Fields) -> dict[str, dict[str, tuple[str, int, float]]]:
    """Storage, bytes and harm of all candidates, by the source of each module."""
    found: dict[str, dict[str, tuple[str, int, float]]] = {}
    for module in content.take_tables("modules", "module"):
        module.refuse_unknown(("name", "source", "choices"), "a module")
        choices: dict[str, tuple[str, int, float]] = {}
        for choice in module.take_tables("choices", "choice"):
            choice.refuse_unknown(("candidate", "bytes", "storage", "harm"), "a choice")
            harm = choice.take("harm", float)
            if not 0 <= harm < math.inf:
                raise ScoresError(choice.where, f"harm must be a finite number of at least 0, not {harm}")
            name = choice.take("candidate", str)
            if name in choices:
                raise ScoresError(choice.where, f"is the second one for {printable(name)}")
            choices[name] = choice.take("storage", str), choice.take("bytes", int), harm
        source = module.take("source", str)
        if source in found:
            raise ScoresError(module.where, f"is the second one of {printable(source)}")
        found[source] = choices
    return found


def _find_harms(
    module: SearchedModule, scores: Mapping[str, Mapping[str, tuple[str, int, float]]], file: Path
) -> dict[str, float]:
    """The harms of one module, if its storages are those that were measured."""
    measured = scores.get(module.source)
    if measured is None:
        raise ScoresError(file, f"has no scores of {module.names[0]}")
    harms = {}
    for name, storage in module.storages.items():
        what = f"{module.names[0]} as {name}" if name != KEPT else f"{module.names[0]} without quantization"
        if name not in measured:
            raise ScoresError(file, f"has no score of {what}")
        key, size, harms[name] = measured[name]
        if (key, size) != (storage.key, module.bytes[name]):
            raise ScoresError(file, f"has measured {what} with other options of SDNQ")
    return harms
