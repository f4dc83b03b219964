"""What tables, sentences, charts, sheets and cards say of an ablation is what its figures support."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from converter.measurement.evidence.names import ABLATION_NAME
from converter.presentation.charts.chart import Chart, LeftOut
from converter.presentation.charts.draw_charts import prepare_charts
from converter.presentation.charts.labels import Box, Point, place_labels
from converter.presentation.charts.style import LIGHT
from converter.presentation.tables.ablation import ablation_table, describe_table, list_failures
from converter.presentation.tables.ablation_findings import describe_findings
from converter.presentation.tables.ablation_variants import compare_variants
from converter.presentation.tables.table import NOTHING
from tests import ablations, charts

KEPT = ["attn", "img_mlp", "txt_mlp"]
ALL = list(ablations.FAMILIES)
Pairs = Sequence[tuple[float, float]]


def two(errors: Sequence[float], own: Sequence[float] = (0.05, 0.06, 0.055)) -> ablations.Content:
    """A recipe, and all linears quantized, with these velocity errors."""
    found = ablations.content(ablations.variant("recipe", KEPT), ablations.variant("all", ALL))
    return ablations.with_velocity(found, {"recipe": own, "all": errors})


def weights_only() -> ablations.Content:
    found = ablations.builtin()
    for made in found["variants"]:
        del made["velocity"]
    return found


# ---- sentences


def test_a_difference_whose_interval_excludes_zero() -> None:
    low, high = ttest_1samp([0.02, 0.03, 0.025], 0).confidence_interval(0.95)
    first, second, *rest = describe_findings(two([0.07, 0.09, 0.08]))
    assert first == "“all” also quantizes img_mod and txt_mod, which “recipe” keeps, and saves another 1.663 GB."
    interval = f"95% interval {low:.3g} to {high:.3g}"
    assert second == f"Quantizing them raises the velocity error by 0.025, {interval}, over 3 prompts."
    assert rest == []
    (_, second) = describe_findings(two([0.03, 0.03, 0.03]))
    low, high = ttest_1samp([0.02, 0.03, 0.025], 0).confidence_interval(0.95)
    assert second == f"Quantizing them lowers the velocity error by 0.025, {interval}, over 3 prompts."


def test_a_difference_whose_interval_includes_zero() -> None:
    low, high = ttest_1samp([0.02, -0.03, 0.025], 0).confidence_interval(0.95)
    assert low < 0 < high
    (_, second) = describe_findings(two([0.07, 0.03, 0.08]))
    bounds = f"at most {high:.3g} larger, and at most {-low:.3g} smaller (95% interval)"
    assert second == (
        "No difference in the velocity error was found over 3 prompts: at this precision, quantizing them makes it "
        f"{bounds}."
    )


def test_a_recipe_of_a_search_is_compared_with_the_best_variant_that_is_not_larger() -> None:
    """Where no variant quantizes more in the same way: uniform recipes, one of them too large."""
    found = ablations.content(
        ablations.variant("found", ALL, "int8"),
        ablations.variant("small", ALL),
        ablations.variant("best", ALL, "int8", "scale"),
        ablations.variant("large", KEPT[:1]),
    )
    errors = {
        "found": [0.05, 0.06, 0.055],
        "small": [0.3, 0.3, 0.3],
        "best": [0.07, 0.09, 0.08],
        "large": [0.0, 0.0, 0.1],
    }
    sentence = describe_findings(ablations.with_velocity(found, errors))[0]
    low, high = ttest_1samp([0.02, 0.03, 0.025], 0).confidence_interval(0.95)
    assert sentence == (
        "Of 2 variants that are not larger than “found”, “best” has the smallest velocity error, 0.08. That of “found” "
        f"is 0.055 (95% interval of the difference {low:.3g} to {high:.3g}, over 3 prompts)."
    )
    same = two([0.05, 0.06, 0.055])
    same["variants"][1] |= {
        key: same["variants"][0][key] for key in ("sha256", "bytes", "quantized_modules", "dtypes", "weights")
    }
    assert describe_findings(same) == []


@pytest.mark.parametrize(
    ("errors", "words"),
    [
        ([0.07, 0.09], "0.025 larger; 2 prompts are too few for an interval"),
        ([0.04, 0.05], "0.01 smaller; 2 prompts are too few for an interval"),
        ([0.05], "the same; 1 prompt is too few for an interval"),
        ([0.05, 0.06, 0.055], "the same for each of 3 prompts"),
    ],
)
def test_too_few_prompts_and_equal_figures(errors: Sequence[float], words: str) -> None:
    (_, second) = describe_findings(two(errors, [0.05, 0.06, 0.055]))
    assert second == f"With them quantized, the velocity error is {words}."


def test_only_prompts_that_both_have_are_compared() -> None:
    found = two([0.07, 0.09, 0.08, 0.3, 0.4], [0.05, 0.06, 0.055])
    assert "0.025" in describe_findings(found)[1]
    assert "over 3 prompts" in describe_findings(found)[1]
    for row in found["variants"][1]["velocity"]["prompts"]:
        row["id"] += "x"
    assert len(describe_findings(found)) == 1


def test_images_are_compared_with_the_recipe_and_with_a_second_seed() -> None:
    own: Pairs = [(0.1, 0.02), (0.2, 0.0), (0.15, 0.1)]
    more: Pairs = [(1.1, 0.3), (1.3, 0.2), (1.25, 0.0)]
    found = ablations.content(ablations.variant("recipe", KEPT), ablations.variant("all", ALL))
    ablations.with_images(found, {"recipe": own, "all": more}, [0.02, 0.0, 0.05], [(0.05, 0.0), (0.1, 0.02), (0, 0.1)])
    pattern, rate = describe_findings(found)[1:3]

    def ends(values: Sequence[float]) -> tuple[str, str]:
        low, high = ttest_1samp(values, 0).confidence_interval(0.95)
        return f"{low:.3g}", f"{high:.3g}"

    low, high = ends([1.0, 1.1, 1.1])
    least, most = ends([0.05, 0.1, 0])
    assert pattern == (
        f"Quantizing them raises the added periodic pattern by 1.07 grey levels, 95% interval {low} to {high}, over 3 "
        f"prompts. For comparison: a second seed of the original changes it by +0.05, 95% interval {least} to {most}, "
        "over 3 prompts."
    )
    low, high = ends([0.28, 0.2, -0.1])
    least, most = ends([-0.02, 0.02, 0.05])
    assert rate == (
        "No difference in the character error rate was found over 3 prompts: at this precision, quantizing them makes "
        f"it at most {high} larger, and at most {low.removeprefix('-')} smaller (95% interval). For comparison: a "
        f"second seed of the original changes it by +0.0167, 95% interval {least} to {most}, over 3 prompts."
    )
    del found["baseline"]
    assert "second seed" not in " ".join(describe_findings(found))


@pytest.mark.parametrize(
    "other",
    [
        ablations.variant("fewer", ["attn"]),
        ablations.variant("in int8", ALL, "int8"),
        ablations.variant("one of them not", ["attn", "img_mod", "txt_mod", "img_mlp"]),
        ablations.variant("other rounding", ALL, rounding="scale"),
        {**ablations.variant("other groups", ALL), "recipe": {"name": "x", "sdnq": {"group_size": 32}, "rules": []}},
    ],
    ids=lambda other: other["name"],
)
def test_nothing_is_said_of_what_the_recipe_keeps_where_more_differs(other: ablations.Content) -> None:
    assert describe_findings(ablations.content(ablations.variant("recipe", KEPT), other)) == []


def test_the_family_with_the_most_harm() -> None:
    names = [f"{name} alone" for name in ("attn", "img_mod", "txt_mod")]
    made = [ablations.variant(name, [name.split()[0]]) for name in names]
    found = ablations.content(ablations.variant("recipe", ALL), *made)
    errors = [[0.05, 0.051, 0.052], [0.04, 0.041, 0.043], [0.01, 0.01, 0.01]]
    ablations.with_velocity(found, dict(zip(names, errors, strict=True)))
    low, high = ttest_1samp([0.01, 0.01, 0.009], 0).confidence_interval(0.95)
    saved = [found["unquantized_bytes"] - one["bytes"] for one in made]
    rates = [np.mean(errors[0]) ** 2 / saved[0] * 1e9, np.mean(errors[1]) ** 2 / saved[1] * 1e9]
    assert rates[1] > rates[0]
    most, per_byte = describe_findings(found)
    assert most == (
        "Of 3 families quantized alone (uint4), attn has the largest velocity error, 0.051; img_mod follows with "
        f"0.0413 (95% interval of the difference {low:.3g} to {high:.3g}, over 3 prompts)."
    )
    assert per_byte == (
        f"For each GB saved, img_mod has the largest squared velocity error as measured, {rates[1]:.3g}; attn follows "
        f"with {rates[0]:.3g}."
    )
    ablations.with_velocity(found, {names[0]: [0.05, 0.03, 0.06]})
    assert "over 3 prompts, so no difference was found)" in describe_findings(found)[0]
    ablations.with_velocity(found, {names[0]: [0.05, 0.06]})
    assert "follows with 0.0413 (2 prompts are too few for an interval)." in describe_findings(found)[0]


def test_of_weights_alone_nothing_is_said_of_images() -> None:
    found = weights_only()
    variants = {variant.name: variant for variant in compare_variants(found)}
    errors = [variants[name].error for name in ("uint4, all linear", "lens-uint4-static")]
    sentences = describe_findings(found)
    assert sentences[1] == (
        f"The relative error of all weights is {errors[0]:.3g} with them quantized, and {errors[1]:.3g} without."
    )
    assert sentences[2].startswith("Of 5 families quantized alone (uint4), attn has the largest error of the weights, ")
    assert sentences[-1] == "Only the weights were measured; their errors do not say what they do to images."
    assert not [text for text in sentences if "interval" in text or "velocity" in text]


def test_names_in_sentences_are_shown_as_text() -> None:
    found = two([0.07, 0.09, 0.08])
    found["variants"][1]["name"] = "a\x1b" + "Ж" * 300
    for family in found["variants"][1]["weights"]["families"]:
        family["name"] += "\n"
    sentences = describe_findings(found)
    assert all(text.isprintable() and len(text) < 700 for text in sentences)


# ---- the table


def test_the_table_is_sorted_by_harm_per_byte_saved() -> None:
    found = ablations.builtin()
    found["variants"].append(ablations.variant("nothing", []))
    table = ablation_table(found, "uint4, all linear")
    names = [row[0] for row in table.rows]
    harms = {
        made["name"]: np.mean([row["error"] for row in made["velocity"]["prompts"]]) ** 2
        / ((found["unquantized_bytes"] - made["bytes"]) / 1e9)
        for made in found["variants"][:-1]
    }  # fmt: skip
    assert names == [*sorted(harms, key=lambda name: harms[name]), "nothing", "Original"]
    cells = {row[0]: dict(zip(table.columns, map(str, row), strict=True)) for row in table.rows}
    shown = cells["lens-uint4-static"]
    assert float(shown["Harm per GB"]) == pytest.approx(harms["lens-uint4-static"], rel=1e-2)
    assert (shown["Bytes"], shown["Saved"], shown["Modules"]) == ("3.786 GB", "4.066 GB", "432")
    velocity = found["variants"][0]["velocity"]
    half = velocity["interval"][1] - velocity["error"]
    assert shown["Velocity error"] == f"{velocity['error']:.4f}\xa0±\xa0{half:.4f}"
    assert "CER" not in shown
    assert cells["uint4, all linear"]["Mark"] == "this release, front"
    assert shown["Mark"] == "recipe"
    assert (cells["nothing"]["Harm per GB"], cells["nothing"]["Velocity error"]) == (NOTHING, NOTHING)
    assert cells["Original"]["Bytes"] == "7.852 GB"
    assert "a mean over 5 prompts, ± its 95% interval." in describe_table(found)
    assert "a mean over 2 prompts." in describe_table(ablations.builtin(2))
    assert "squared relative error of all weights" in describe_table(weights_only())


def test_the_table_has_what_was_measured_of_images() -> None:
    found = two([0.07, 0.09, 0.08])
    second = [(0.05, 0.0), (0.1, 0.02), (0, 0.1)]
    ablations.with_images(found, {"all": [(1.1, 0.3), (1.3, 0.2), (1.2, 0.1)]}, [0.02, 0.0, 0.04], second)
    found["variants"][0] |= {"failed": {"images": "out of\nmemory " * 20}, "bytes": ablations.UNQUANTIZED + 10**6}
    found["not_measured"] = {"lpips": "its package is missing"}
    table = ablation_table(found)
    cells = [dict(zip(table.columns, map(str, row), strict=True)) for row in table.rows]
    assert [row["Variant"] for row in cells] == ["all", "recipe", "Original", "Original, second seed"]
    assert [row["Pattern"] for row in cells] == ["1.20", NOTHING, NOTHING, "0.05"]
    assert [row["CER"] for row in cells] == ["0.200", NOTHING, "0.020", "0.040"]
    assert (cells[1]["Saved"], cells[1]["Mark"]) == ("-1.0 MB", "recipe, front")
    assert "Pattern is the added periodic pattern in grey levels. CER is the" in describe_table(found)
    failure, missing = list_failures(found)
    assert failure.startswith("recipe: images failed: out of")
    assert len(failure) < 140
    assert missing == "not measured: lpips: its package is missing"
    narrow = ablation_table(found, is_narrow=True)
    assert list(narrow.columns) == ["Variant", "Mark", "Bytes", "Velocity error", "Pattern", "CER", "Harm per GB"]
    assert [row[3] for row in narrow.rows] == ["0.0800", "0.0550", NOTHING, NOTHING]


@pytest.mark.parametrize("seed", range(5))
def test_the_front_is_what_no_other_variant_equals_or_beats(seed: int) -> None:
    """By comparing every variant with every other one; many have as many bytes, or as much error."""
    generator = np.random.default_rng(seed)
    found = ablations.content(*(ablations.variant(f"v{n}", ["attn"]) for n in range(30)))
    for made, size, error in zip(
        found["variants"], generator.integers(1, 12, 30).tolist(), generator.integers(0, 9, 30).tolist(), strict=True
    ):
        made |= {
            "bytes": size,
            "velocity": {"error": float(error), "prompts": [{"id": "a", "error": error, "calls": [error]}]},
        }
    points = [(made["bytes"], made["velocity"]["error"]) for made in found["variants"]]
    expected = [
        not any(size <= own[0] and error <= own[1] and (size, error) != own for size, error in points) for own in points
    ]
    assert [variant.is_on_front for variant in compare_variants(found)] == expected
    assert 0 < sum(expected) < 30


def test_errors_of_weights_without_a_figure() -> None:
    """Equal weights have an error of zero; others without a finite figure are not compared."""
    exact, broken = (ablations.variant(name, []) for name in ("exact", "broken"))
    for made, cosine in ((exact, 1.0), (broken, None)):
        made["weights"] |= {"sqnr_db": None, "cosine_min": cosine}
    found = ablations.content(ablations.variant("recipe", KEPT), exact, broken)
    errors = [variant.error for variant in compare_variants(found)]
    assert errors[0] == pytest.approx(10 ** (-found["variants"][0]["weights"]["sqnr_db"] / 20))
    assert errors[1:] == [0.0, None]
    assert "broken" not in drawn(found).description


# ---- the chart


def drawn(found: ablations.Content) -> Chart:
    (made,) = [made for made in prepare_charts({ABLATION_NAME: found}) if made.name == "ablation"]
    assert isinstance(made, Chart)
    return made


def clustered(count: int = 20) -> ablations.Content:
    """Variants that are nearly the same, and a front of all of them."""
    found = ablations.content(*(ablations.variant(f"uint4, all but block {n:02}", ["attn"]) for n in range(count)))
    for number, made in enumerate(found["variants"]):
        made["bytes"] += number * 10**7
        error = 0.08 - number * 1e-4
        made["velocity"] = {"error": error, "prompts": [{"id": "a", "error": error, "calls": [error]}]}
    return found


def many() -> ablations.Content:
    """More variants than anybody compares by eye, with long names; some have no error at all."""
    generator = np.random.default_rng(3)
    found = ablations.content(*(ablations.variant(f"{n} {charts.HOSTILE}", ["attn"]) for n in range(100)))
    for made in found["variants"]:
        made["bytes"] = int(generator.integers(10**6, 10**9))
        error = max(0.0, float(generator.normal(0.01, 0.01)))
        made["velocity"] = {"error": error, "prompts": [{"id": "a", "error": error, "calls": [error]}]}
    return found


def alone() -> ablations.Content:
    return ablations.content(ablations.variant("recipe", KEPT))


@pytest.mark.parametrize(
    "make", [ablations.builtin, weights_only, clustered, pytest.param(many, marks=pytest.mark.long), alone]
)
def test_names_in_the_chart_do_not_overlap(make: Any) -> None:
    made = drawn(make())
    charts.check_layout(made)
    shown = {text.get_text() for text in charts.written(made.draw(LIGHT))}
    variants = compare_variants(make())
    if make in (ablations.builtin, weights_only, alone):
        # The front, the recipe, and at least half of the others.
        needed = {variant.name for variant in variants if variant.is_on_front or variant.is_recipe}
        assert needed <= shown
        assert len(shown & {variant.name for variant in variants}) >= len(needed) + (len(variants) - len(needed)) / 3
    assert len(made.description) < 4000


def test_what_the_chart_shows() -> None:
    charts.check_pictures("weights_ablation", {ABLATION_NAME: weights_only()})
    (left_out,) = [made for made in prepare_charts({}) if made.name == "ablation"]
    assert left_out == LeftOut("ablation", f"{ABLATION_NAME} is missing")
    found = alone()
    found["variants"][0]["weights"] |= {"sqnr_db": None, "cosine_min": None}
    (left_out,) = [made for made in prepare_charts({ABLATION_NAME: found}) if made.name == "ablation"]
    assert left_out == LeftOut("ablation", f"{ABLATION_NAME} has no variant with a finite error")


def test_a_name_is_nearer_to_its_point_than_to_others() -> None:
    page = Box(0, 0, 700, 500)
    points = [Point((300.0 + 30 * n, 250.0 + 7 * n), f"point {n}", 9.0, is_needed=n < 3) for n in range(6)]
    labels = place_labels(points, page)
    assert [label.point for label in labels[:3]] == points[:3]
    for label in labels:
        assert label.box.is_inside(page)
        assert not any(label.box.overlaps(point.box) for point in points)
        near = min(points, key=lambda point: label.box.distance(point.place))
        assert label.is_far or near is label.point
        assert math.dist(*label.line) == pytest.approx(label.box.distance(label.point.place))
    # Without space there is no name.
    assert place_labels(points, Box(0, 0, 40, 40)) == []


def test_lines_and_boxes() -> None:
    box = Box(10, 10, 20, 20)
    crossed = [((0, 0), (30, 30)), ((15, 0), (15, 30)), ((15, 15), (16, 16)), ((0, 15), (11, 15))]
    beside = [((0, 0), (9, 9)), ((0, 25), (25, 50)), ((10, 0), (10, 30)), ((0, 20.5), (30, 20.5)), ((25, 0), (25, 30))]
    assert [box.is_crossed(*line) for line in (*crossed, *beside)] == [True] * 4 + [False] * 5
    assert box.nearest((0, 15)) == (10, 15)
    assert box.distance((23, 24)) == 5
    assert box.distance((15, 15)) == 0
    assert not box.overlaps(Box(20, 10, 30, 20))
    assert box.overlaps(Box(19, 19, 30, 30))
