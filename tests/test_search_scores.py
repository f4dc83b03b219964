"""``scores.json``: read again only for the weights, the modules and the options that were measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from converter.checkpoint.source import open_checkpoint
from converter.console import SILENT
from converter.conversion.recipe.recipe import find_recipe
from converter.errors import MissingInput, ScoresError
from converter.measurement.ablation.subject import Original, hash_original
from converter.measurement.search.candidates import KEPT, SearchSpace, find_choices, parse_candidates
from converter.measurement.search.rules import parse_rule
from converter.measurement.search.scores import Scores, describe_scores, encode_scores, read_scores
from converter.schemas import load_schema

Content = dict[str, Any]


@pytest.fixture(scope="module")
def original(lens_source: Path) -> Original:
    return hash_original(open_checkpoint(lens_source), SILENT)


@pytest.fixture(scope="module")
def space(original: Original) -> SearchSpace:
    recipe = replace(find_recipe(None, "LensTransformer2DModel"), rounding="scale")
    return find_choices(original.checkpoint, recipe, parse_candidates("uint4,int8+svd", recipe))


def make_harms(space: SearchSpace) -> dict[str, dict[str, float]]:
    """Different numbers that are no short decimals."""
    return {
        module.source: {name: (number + 1) / (at + 7) for at, name in enumerate(module.storages)}
        for number, module in enumerate(space.modules)
    }


def make_scores(space: SearchSpace) -> Scores:
    return Scores(make_harms(space), "gradients", {"quantize_from": "bfloat16", "prompts": ["P1", "P2"]})


@pytest.fixture
def content(original: Original, space: SearchSpace) -> Content:
    rules = [parse_rule("*.img_mod.*=keep"), parse_rule("*.to_q,*.to_k=same")]
    return describe_scores(original, space, make_scores(space), rules)


def test_scores_are_read_as_they_were_written(
    original: Original, space: SearchSpace, content: Content, tmp_path: Path
) -> None:
    jsonschema.validate(content, load_schema("scores"))
    encoded, digest = encode_scores(content)
    assert digest == hashlib.sha256(encoded).hexdigest()
    file = tmp_path / "scores.json"
    file.write_bytes(encoded)
    harms = make_harms(space)
    found = read_scores(file, original, space, "bfloat16")
    assert (found, found.prompts) == (make_scores(space), ("P1", "P2"))
    with pytest.raises(ScoresError, match="has scores of weights quantized from bfloat16, not from float32"):
        read_scores(file, original, space, "float32")
    assert all([*own][-1] == KEPT for own in harms.values())
    # A later search may have fewer candidates, but needs the score of what it keeps.
    fewer = find_choices(original.checkpoint, space.recipe, parse_candidates("uint4", space.recipe))
    assert read_scores(file, original, fewer, "bfloat16").harms == {
        source: {name: own[name] for name in ("uint4", KEPT)} for source, own in harms.items()
    }
    with pytest.raises(ValueError, match="Out of range float values"):
        encode_scores({**content, "fixed_bytes": float("nan")})


def change(*path: str | int, to: Any) -> Callable[[Content], object]:
    """A change of one value in the content."""

    def apply(content: Content) -> None:
        *places, last = path
        value: Any = content
        for place in places:
            value = value[place]
        value[last] = to

    return apply


CHOICE = ("modules", 3, "choices", 1)
#: What is done to the content, and how the complaint about the file begins.
WRONG: list[tuple[Callable[[Content], object], str]] = [
    (
        change("schema", to="lensconv.scores/2"),
        "has schema lensconv.scores/2; this version of lensconv reads lensconv.s",
    ),
    (change("schema", to=3), "has no schema; this version"),
    (change("scores", to=1), "scores is not a key of a file of scores"),
    (change("modules", to={}), "modules must be an array, not {}"),
    (change("modules", 2, to=1), "module 3: must be a table"),
    (change("modules", 2, "more", to=1), "module 3: more is not a key of a module"),
    (change(*CHOICE, "more", to=1), "module 4: choice 2: more is not a key of a choice"),
    (change(*CHOICE, "harm", to=-1e-9), "module 4: choice 2: harm must be a finite number of at least 0, not -1e-09"),
    (
        change(*CHOICE, "harm", to=float("nan")),
        "module 4: choice 2: harm must be a finite number of at least 0, not nan",
    ),
    (
        change(*CHOICE, "harm", to=float("inf")),
        "module 4: choice 2: harm must be a finite number of at least 0, not inf",
    ),
    (change(*CHOICE, "harm", to="0"), "module 4: choice 2: harm must be a number, not '0'"),
    (change(*CHOICE, "bytes", to=1.0), "module 4: choice 2: bytes must be an integer, not 1.0"),
    (change(*CHOICE, "candidate", to="uint4"), "module 4: choice 2: is the second one for uint4"),
    (
        lambda content: content["modules"].append(content["modules"][0]),
        "is the second one of transformer_blocks.0.attn",
    ),
    (lambda content: content["modules"].pop(0), "has no scores of transformer_blocks.0.attn.img_qkv"),
    (
        lambda content: content["modules"][0]["choices"].pop(0),
        "has no score of transformer_blocks.0.attn.img_qkv as uint4",
    ),
    (
        lambda content: content["modules"][0]["choices"].pop(),
        "has no score of transformer_blocks.0.attn.img_qkv without",
    ),
    (
        change("modules", 0, "choices", 0, "storage", to="0" * 64),
        "has measured transformer_blocks.0.attn.img_qkv as uint4",
    ),
    (change("modules", 0, "choices", 2, "bytes", to=1), "has measured transformer_blocks.0.attn.img_qkv without quant"),
    (
        change("sources", "original", "transformer", 0, "sha256", to="0" * 64),
        "has scores of other weights: diffusion_pytorch_model.safetensors of the original has another sha256",
    ),
    (
        lambda content: content["sources"]["original"]["transformer"].append({"name": "b", "bytes": 1, "sha256": "x"}),
        "has scores of other weights: the original has fewer files",
    ),
    (change("sources", to={}), "sources: original is missing"),
    (change("score", to="guesses"), "has scores by guesses, which is none of weights, inputs, gradients, measured"),
    (change("settings", "prompts", to=[1]), "settings: prompts must be an array of strings"),
    (change("settings", to={}), "settings: quantize_from is missing"),
]


@pytest.mark.parametrize(("spoil", "said"), WRONG, ids=[said for _, said in WRONG])
def test_scores_that_do_not_fit_are_refused(
    spoil: Callable[[Content], object],
    said: str,
    original: Original,
    space: SearchSpace,
    content: Content,
    tmp_path: Path,
) -> None:
    spoil(content)
    file = tmp_path / "scores.json"
    file.write_text(json.dumps(content))
    with pytest.raises(ScoresError) as caught:
        read_scores(file, original, space, "bfloat16")
    assert said in caught.value.message
    assert caught.value.message.startswith(f"{file}: ")
    assert "bench" not in caught.value.hint


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1, "a": 2}', "{" * 10000, "\x00"])
def test_what_is_no_json_object_is_refused(text: str, original: Original, space: SearchSpace, tmp_path: Path) -> None:
    file = tmp_path / "scores.json"
    file.write_text(text)
    with pytest.raises(ScoresError) as caught:
        read_scores(file, original, space, "bfloat16")
    assert caught.value.hint == "Search again without the scores of this file."
    with pytest.raises(MissingInput):
        read_scores(tmp_path, original, space, "bfloat16")


@pytest.mark.parametrize(
    "spoil",
    [
        change("schema", to="lensconv.scores/2"),
        change(*CHOICE, "harm", to=-1),
        change(*CHOICE, "storage", to="0"),
        change("modules", to=[]),
        change("more", to=1),
        change("fixed_bytes", to=-1),
    ],
)
def test_the_schema_refuses_what_is_wrong(spoil: Callable[[Content], object], content: Content) -> None:
    spoil(content)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, load_schema("scores"))


def test_options_decide_whether_scores_fit(
    original: Original, space: SearchSpace, content: Content, tmp_path: Path
) -> None:
    file = tmp_path / "scores.json"
    file.write_bytes(encode_scores(content)[0])
    for changed in (
        replace(space.recipe, rounding="nearest"),
        replace(space.recipe, options={**space.recipe.options, "use_quantized_matmul": False}),
    ):
        other = find_choices(original.checkpoint, changed, space.candidates)
        with pytest.raises(ScoresError, match=r"img_qkv as uint4 with other options of SDNQ"):
            read_scores(file, original, other, "bfloat16")
