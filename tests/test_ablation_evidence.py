"""``ablation.json``: its figures agree, its images are those that were measured, and it fits the rest of a folder."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import ttest_1samp

from converter.errors import EvidenceError
from converter.measurement.evidence.ablation import by_prompt, image_figures, paired, velocity_figures
from converter.measurement.evidence.agreement import disagreements
from converter.measurement.evidence.files import read_evidence_folder, write_evidence
from converter.measurement.evidence.folder_agreement import disagreements_between
from converter.measurement.evidence.names import ABLATION_NAME, MATRIX_NAME, METRICS_NAME
from tests import ablations, charts
from tests.conftest import Lensconv
from tests.expected import check_expected
from tests.forms import accepted
from tests.published import published_matrix, published_metrics

Edit = Callable[[dict[str, Any]], object]


def measured() -> dict[str, Any]:
    """An ablation with all levels: two variants with images, one whose images failed, and one with equal weights."""
    own, more = ["attn", "img_mlp", "txt_mlp"], list(ablations.FAMILIES)
    names = ("recipe", "all", "mod", "same")
    found = ablations.content(*map(ablations.variant, names, (own, more, ["img_mod", "txt_mod"], own)))
    errors = {"recipe": [0.05, 0.06, 0.055], "all": [0.07, 0.09, 0.08], "mod": [0.02, 0.025, 0.018]}
    pairs = {"recipe": [(0.1, 0.02), (0.2, 0.0), (0.15, 0.1)], "all": [(1.1, 0.3), (1.3, 0.2), (1.25, 0.5)]}
    ablations.with_velocity(found, errors | {"same": errors["recipe"]})
    second = [(0.05, 0.0), (0.1, 0.02), (-0.02, 0.1)]
    ablations.with_images(found, pairs | {"same": pairs["recipe"]}, [0.02, 0.0, 0.05], second)
    found["variants"][2]["failed"] = {"images": "out of memory"}
    found["suite"] = {"name": "ten-signs", "sha256": "c" * 64, "prompts": 3}
    return found


def at(*path: str | int, value: Any = None) -> Edit:
    """Replace one value; without a value, remove it."""

    def edit(content: dict[str, Any]) -> None:
        target: Any = content
        for key in path[:-1]:
            target = target[key]
        if value is None:
            del target[path[-1]]
        else:
            target[path[-1]] = value

    return edit


def test_what_agrees_is_accepted() -> None:
    assert list(disagreements("ablation", measured())) == []
    assert list(disagreements("ablation", ablations.builtin())) == []
    # Of a single prompt there is no interval; of a variant without a figure of the recipe, no difference.
    one = ablations.with_velocity(ablations.content(ablations.variant("a", ["attn"])), {"a": [0.1]})
    assert list(disagreements("ablation", one)) == []


def test_the_figures_are_those_by_hand() -> None:
    rows = [{"id": name, "calls": calls} for name, calls in (("a", [0.1, 0.3]), ("b", [0.4]), ("c", [0.6, 0.6]))]
    own = [{"id": name, "calls": [error]} for name, error in (("c", 0.1), ("a", 0.1), ("b", 0.1), ("d", 5.0))]
    found = velocity_figures(rows, own)
    ends = ttest_1samp([0.2, 0.4, 0.6], 0).confidence_interval(0.95)
    assert found["error"] == pytest.approx(0.4)
    assert found["interval"] == pytest.approx(list(ends))
    assert found["against_recipe"]["prompts"] == 3
    assert found["against_recipe"]["difference"] == pytest.approx(0.3)
    assert found["against_recipe"]["interval"] == pytest.approx([end - 0.1 for end in ends])
    assert velocity_figures(rows[:2], []) == {"error": pytest.approx(0.3)}
    images = image_figures(
        [{"id": "a", "cer": 0.5, "ssim": 1.0}, {"id": "b", "psnr_db": None}], [{"id": "a", "cer": 1}]
    )
    assert images == {
        "summary": {"ssim": 1.0, "cer": 0.5},
        "against_recipe": {"cer": {"prompts": 1, "difference": -0.5}},
    }
    assert paired(by_prompt(rows, "calls"), {}) is None


def _change_ssim(images: dict[str, Any]) -> None:
    for row in images["prompts"]:
        row["ssim"] = 0.8
    images["summary"]["ssim"] = 0.8
    images["against_recipe"]["ssim"] = {"prompts": 3, "difference": -0.1, "interval": [-0.1, -0.1]}


_GIVE = "but its prompts give"
_VELOCITY = ("variants", 1, "velocity")
_IMAGES = ("variants", 1, "images")


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (at("variants", 1, "name", value="recipe"), "variant recipe is listed 2 times"),
        (at("variants", 1, "name", value=" "), "variant 2: name is empty"),
        (at("unquantized_bytes", value=10**21), "unquantized_bytes is larger than anything that can be measured"),
        (at("variants", 0, "weights", "sqnr_db", value=-1001),
         "variants.0.weights.sqnr_db is larger than anything that can be measured"),
        (lambda found: found.update(unquantized_bytes=0), "unquantized_bytes is 0"),
        (lambda found: found["variants"][1].update(bytes=0), "variant all: bytes is 0"),
        (at("variants", 0, "quantized_modules", value=431),
         "variant recipe: quantized_modules is 431, but its dtypes add up to 432"),
        (at("variants", 0, "weights", "families", 0, "bytes", value=1),
         "variant recipe: bytes is 3785745236, but its families add up to 3117340952"),
        (at("variants", 0, "weights", "blocks", 0, "modules", value=433),
         "variant recipe: modules is 432, but its blocks add up to 433"),
        (at("variants", 0, "weights", "families", 1, "name", value="attn"),
         "variant recipe: families: attn is listed 2 times"),
        (at("variants", 1, "weights", "sqnr_db", value=20.9),
         "variant all: weights.sqnr_db is 20.9, but its families have 20.9691 to 23.9794"),
        (at("variants", 3, "sha256", value="d" * 64), ""),
        (at("variants", 3, "weights", "cosine_min", value=0.5),
         "variants recipe and same have one sha256, but not the same weights"),
        (at("variants", 3, "images", "prompts", 0, "image_sha256", value="d" * 64), ""),
        (lambda found: _change_ssim(found["variants"][3]["images"]),
         "variants recipe and same have one sha256, but not the same images"),
        (at("methods", "velocity"), "methods.velocity is missing"),
        (at("methods", "images"), "methods.images is missing"),
        (at("variants", 2, "failed", value={"velocity": "no"}), "variant mod: velocity failed, but is present"),
        (at(*_VELOCITY, "error", value=0.0801), f"variant all: velocity.error is 0.0801, {_GIVE} 0.08"),
        (at(*_VELOCITY, "error", value=0.08000001), ""),
        (at(*_VELOCITY, "prompts", 0, "calls", 0, value=0.1),
         "variant all: velocity: P01.error is 0.07, but its calls give 0.07625"),
        (at(*_VELOCITY, "prompts", 0, "id", value="P02"), "variant all: velocity: prompt P02 is listed 2 times"),
        (at(*_VELOCITY, "interval", 0, value=0.054),
         f"variant all: velocity.interval.0 is 0.054, {_GIVE} 0.05515862"),
        (at(*_VELOCITY, "against_recipe", "difference", value=0.03),
         f"variant all: velocity.against_recipe.difference is 0.03, {_GIVE} 0.02"),
        (at(*_VELOCITY, "against_recipe", "prompts", value=2),
         f"variant all: velocity.against_recipe.prompts is 2, {_GIVE} 3"),
        (at(*_VELOCITY, "against_recipe"), ""),
        (at("variants", 0, "velocity"), f"variant all: velocity.against_recipe.prompts is 3, {_GIVE} nothing"),
        (at(*_IMAGES, "summary", "cer"), "variant all: images: summary.cer is missing"),
        (at(*_IMAGES, "summary", "lpips", value=0.5), f"variant all: images: summary.lpips is 0.5, {_GIVE}"),
        (at(*_IMAGES, "summary", "cer", value=0.3), f"variant all: images: summary.cer is 0.3, {_GIVE} 0.3"),
        (at(*_IMAGES, "against_recipe", "cer", "difference", value=0.3),
         f"variant all: images: against_recipe.cer.difference is 0.3, {_GIVE} 0.29"),
        (at(*_IMAGES, "prompts", 0, "identical", value=True),
         "variant all: images: P01: identical is True, but psnr_db is 30.0"),
        (at(*_IMAGES, "prompts", 1, "id", value="P01"), "variant all: images: prompt P01 is listed 2 times"),
        (at(*_IMAGES, "prompts", 0, "seed", value=7),
         "variant all: images: prompt P01 has seed 7, and 301 in original_images"),
        (at("baseline", "prompts", 0, "seed", value=301), "baseline: prompt P01 has seed 301, and 301 in"),
        (at("baseline", "summary", "ssim", value=0.5), "baseline: summary.ssim is 0.5, but its prompts give 0.9"),
        (at("original_images", 0), "variant recipe: images: prompt P01 is not in original_images"),
        (at("original_images", 0, "id", value="P02"), "original_images: prompt P02 is listed 2 times"),
    ],
)  # fmt: skip
def test_what_does_not_agree(edit: Edit, reason: str, tmp_path: Path) -> None:
    content = measured()
    edit(content)
    if not reason:
        write_evidence(tmp_path, ABLATION_NAME, content)
        return
    with pytest.raises(EvidenceError) as caught:
        write_evidence(tmp_path, ABLATION_NAME, content)
    assert caught.value.message.startswith(f"{tmp_path}/{ABLATION_NAME}: {reason}")
    assert caught.value.hint == "Measure again with `lensconv ablate`; do not edit the file."
    assert not list(tmp_path.iterdir())


def test_figures_that_overflow_are_refused() -> None:
    """At any place, and without a traceback."""
    content = measured()
    places = list(_numbers(content, ""))
    assert len(places) > 40
    for value in (1e308, -1e308, 10**400):
        for part, key in places:
            kept, part[key] = part[key], value
            assert "is larger than anything that can be measured" in next(disagreements("ablation", content))
            part[key] = kept


def _numbers(part: Any, path: str, known: set[str] | None = None) -> Iterator[tuple[Any, Any]]:
    """Objects and keys of the numbers in a content, one of several alike."""
    known = set() if known is None else known
    items = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
    for key, item in items:
        where = f"{path}.{key if isinstance(part, dict) else ''}"
        if isinstance(item, float | int) and not isinstance(item, bool) and where not in known:
            known.add(where)
            yield part, key
        yield from _numbers(item, where, known)


def test_a_folder_of_an_ablation_alone(tmp_path: Path, lensconv: Lensconv) -> None:
    """It is read, shown as tables and sentences, and its images are those that were measured."""
    content = ablations.draw_images(tmp_path, measured())
    content["variants"][2]["name"] = "[bold]mod[/bold]\x1b"
    write_evidence(tmp_path, ABLATION_NAME, content)
    files = [{"name": ABLATION_NAME, "schema": "ablation", "version": "lensconv.ablation/1"}]
    assert lensconv("evidence", tmp_path, "--json").result == {"files": files, "matrix": None}
    shown = [line.rstrip() for line in lensconv("evidence", tmp_path).stderr.splitlines() if line.strip()]
    check_expected("ablation_evidence.txt", "".join(f"{line}\n" for line in shown))
    changed = ("images/original/P01-301.png", "images/baseline/P02-1302.png", "images/ablation/1/P03-303.png")
    for name in changed:
        kept = (tmp_path / name).read_bytes()
        (tmp_path / name).unlink()
        read_evidence_folder(tmp_path)
        (tmp_path / name).write_bytes(kept + b"\0")
        with pytest.raises(EvidenceError, match=f"{name} is not the image that was measured") as caught:
            read_evidence_folder(tmp_path)
        assert caught.value.hint == "Measure again with `lensconv ablate`; do not edit the file."
        read_evidence_folder(tmp_path, check_images=False)
        (tmp_path / name).write_bytes(kept)
    content["original_images"][0]["image"] = "../P01.png"
    write_evidence(tmp_path, ABLATION_NAME, content)
    with pytest.raises(EvidenceError, match=r"\.\./P01\.png is outside of the folder"):
        read_evidence_folder(tmp_path)


def test_an_ablation_is_of_the_original_of_the_folder() -> None:
    """Of the same weights, wherever they are from; settings and machines of other files do not matter."""
    content = measured() | {"settings": {"num_inference_steps": 4}, "environment": {"hardware": "another GPU"}}
    original = copy.deepcopy(ablations.ORIGINAL)
    sources = {"original": original, "quantized": {**original, "transformer": [{**ablations.WEIGHTS, "bytes": 9}]}}
    metrics = published_metrics() | {"sources": sources, "settings": charts.SETTINGS}
    files = {METRICS_NAME: metrics, MATRIX_NAME: published_matrix(), ABLATION_NAME: content}
    assert list(disagreements_between(files)) == []
    content["sources"]["original"] |= {"repo_id": "elsewhere", "revision": "0" * 40}
    assert list(disagreements_between(files)) == []
    content["sources"]["original"]["components"] = {"vae": original["transformer"]}
    assert list(disagreements_between(files)) == []
    adapter = {"name": "a", "sha256": "e" * 64, "scale": 1.0}
    content["sources"]["original"]["adapters"] = {"transformer": [adapter]}
    assert list(disagreements("ablation", content)) == []
    reason = f"sources.original.adapters is not the same in {ABLATION_NAME}"
    assert list(disagreements_between(files)) == [(METRICS_NAME, reason)]
    del content["sources"]["original"]["adapters"]
    content["sources"]["original"]["transformer"][0]["sha256"] = "0" * 64
    reason = f"sources.original.transformer is not the same in {ABLATION_NAME}"
    assert list(disagreements_between(files)) == [(METRICS_NAME, reason)]


def test_what_the_schema_accepts_although_it_is_missing_or_below_zero() -> None:
    check_expected("ablation_schema.txt", f"{', '.join(accepted(measured(), 'ablation'))}\n")
