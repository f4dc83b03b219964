"""What charts show is what was measured, and legible."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from converter.conversion.release.manifest import SUMMARY_NAME
from converter.errors import EvidenceError
from converter.measurement.evidence.names import (
    ABLATION_NAME,
    IMAGES_NAME,
    MATRIX_NAME,
    METRICS_NAME,
    OFFLOAD_NAME,
    SEQUENTIAL_NAME,
    WEIGHTS_NAME,
)
from converter.presentation.charts.chart import Chart
from converter.presentation.charts.draw_charts import prepare_charts, render
from converter.presentation.charts.figures import choose_unit, exact_size
from converter.presentation.charts.style import LIGHT, TEXT_SIZE, THEMES, Theme
from converter.presentation.charts.text import drawable, shorten, text_width, wrap
from tests import ablations
from tests import charts as of
from tests.published import published_summary
from tests.timed_pairs import matrix_over_pairs, pair


def contrast(first: str, second: str) -> float:
    """Ratio of two colors as WCAG 2.2 defines it."""

    def luminance(color: str) -> float:
        channels = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    darker, lighter = sorted((luminance(first), luminance(second)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
def test_text_and_marks_stand_out(theme: Theme) -> None:
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert min(contrast(color, theme.background) for color in (theme.ink, theme.muted)) >= 4.5
    assert min(contrast(color, theme.background) for color in (*theme.original, *theme.quantized)) >= 3
    for shades in (theme.original, theme.quantized):
        assert min(contrast(shades[0], shades[1]), contrast(shades[0], shades[2])) >= 1.3
    # Blue, and orange.
    assert all(shade[5:] > shade[1:3] for shade in theme.original) > any(s[5:] > s[1:3] for s in theme.quantized)
    for made in prepare_charts(of.full_evidence()):
        assert isinstance(made, Chart)
        for text in of.written(made.draw(theme)):
            assert to_hex(text.get_color()) in (theme.ink, theme.muted), text.get_text()
            assert float(text.get_fontsize()) >= TEXT_SIZE


def test_text_is_eleven_pixels_high_at_half_the_width() -> None:
    """From the top of a capital to the foot of a descender."""
    made = of.chart(of.full_evidence(), "memory")
    with Image.open(io.BytesIO(render(made, LIGHT)["png"])) as image:
        assert image.width / 2 == 400
    figure = Figure(figsize=(1, 1), dpi=72)
    text = next(text for text in of.written(made.draw(LIGHT)) if text.get_text() == "Load")
    sample = figure.text(0, 0, "Hp", fontproperties=text.get_fontproperties())
    assert sample.get_window_extent().height / 2 >= 11


def without(evidence: of.Evidence, *keys: str) -> of.Evidence:
    """Metrics whose models lack these keys."""
    for model in evidence[METRICS_NAME]["models"].values():
        for key in keys:
            model.pop(key, None)
    return evidence


def many_families() -> of.Evidence:
    families = {
        f"family{index:02d}": ({"F32": 400 * (index + 1)}, {"I8": 10, "U8": 7, "F16": 3, "F64": 80})
        for index in range(40)
    }
    ratios = {f"family{number}": (20.0 + number % 7, 10.0 + number % 5, 0.9) for number in range(30)}
    times = of.some_times(100) | {"P50": (None, 20.0)}
    return {
        METRICS_NAME: of.metrics(families),
        MATRIX_NAME: of.matrix(times) | {"mode": "Ж" * 100},
        WEIGHTS_NAME: of.weights(**ratios, exact=(None, None, 1.0), broken=(None, None, 0.5)),
    }


def on_a_cpu() -> of.Evidence:
    """Without parts of what is measured on a GPU; the models differ in families and stages, and a dtype is long."""
    sizes = {"U8": 7 * 10**8, "F" * 21: 10**6, "G" * 21: 10**5}
    content = of.metrics({"attn": ({"F32": 5 * 10**8}, sizes), "x" * 50: ({}, {"U8": 1})}, "rss")
    models = content["models"]
    odd = {"bytes": 9, "bytes_by_dtype": {"F32": 9}}
    models["original"]["transformer"]["families"][1:] = [{"name": "odd", **odd}, {"name": "img_mod", **odd}]
    models["original"]["stages"] = {"late": {"time_s": 1.0, "peak_rss_gb": 0.5}, "early": {"time_s": 1.0}}
    models["quantized"]["stages"] = {"vae": {"time_s": 1.0, "peak_rss_gb": 0.25}}
    models["original"]["failed"] = [{"prompt": "P02", "reason": "out of memory"}]
    sequential = of.offload("rss")
    sequential["models"]["quantized"]["warm"] = {"time_s": {"mean": 1.0}, "peak_rss_gb": {"mean": 0.125}}
    return {
        METRICS_NAME: content,
        SEQUENTIAL_NAME: sequential,
        MATRIX_NAME: of.matrix({"P01": (10.0, 9.0), "P02": (None, 99.96), "P03": (9.996, 120.0)}),
        WEIGHTS_NAME: of.weights(
            txt_mlp=(22.1, None, 0.0),
            attn=(21.314, 19.412, 0.99),
            embed=(None, None, 1 - 0.9e-9),
            norm=(None, None, None),
            img_mlp=(None, None, 1 - 1.1e-9),
        ),
    }


def of_one_file() -> of.Evidence:
    """The least that gives charts: one prompt, one family, and sizes as the first releases had them."""
    evidence = {METRICS_NAME: of.metrics(None, "reserved"), MATRIX_NAME: of.matrix({"P01": (10.0, 9.0)})}
    evidence[WEIGHTS_NAME] = of.weights(embed=(None, None, 1.0))
    evidence[WEIGHTS_NAME]["fidelity"]["families"][0]["modules"] = 1
    quantized = evidence[METRICS_NAME]["models"]["quantized"]
    quantized["transformer"] = {"bytes": 1, "bytes_by_dtype": {"U8": 1}}
    del quantized["load_peak_reserved_gb"]
    return without(evidence, "generation_peak_reserved_gb")


def of_nothing() -> of.Evidence:
    """Files whose figures give no chart."""
    evidence = {METRICS_NAME: of.metrics({"attn": ({}, {})}), MATRIX_NAME: of.matrix({"P01": (None, None)})}
    evidence[WEIGHTS_NAME] = of.weights()
    return without(evidence, "load_peak_allocated_gb", "generation_peak_allocated_gb", "stages")


def without_pairs() -> of.Evidence:
    """Of one model alone, whose dtypes take as much each, and which has many stages."""
    evidence: of.Evidence = {MATRIX_NAME: of.matrix({"P01": (None, 0.0), "P02": (None, 0.0)})}
    evidence[METRICS_NAME] = of.metrics({"attn": ({}, dict.fromkeys(("U8", "I8", "F16"), 10**6))})
    evidence[WEIGHTS_NAME] = of.weights(attn=(21.314, 21.1, 0.99))
    quantized = evidence[METRICS_NAME]["models"]["quantized"]
    del quantized["transformer"]["families"]
    without(evidence, "load_peak_allocated_gb", "generation_peak_allocated_gb", "stages")
    quantized["stages"] = {chr(number): {"time_s": 1.0, "peak_allocated_gb": 1.0} for number in b"ponmlkjihgfedcba"}
    return evidence


def of_offload_alone() -> of.Evidence:
    matrix = of.matrix({f"P{n}": (None, 2 + n / 20_000) for n in range(31)})
    return {OFFLOAD_NAME: of.offload("device"), MATRIX_NAME: matrix}


@pytest.mark.parametrize(
    "make",
    [
        *(of.full_evidence, of.published_evidence, many_families, on_a_cpu, of_one_file),
        *(of_nothing, without_pairs, of_offload_alone),
    ],
)
def test_what_charts_show(make: Any) -> None:
    of.check_pictures(make.__name__, make())


@pytest.mark.parametrize("seconds", [0.0, 0.0009, 0.001])
def test_times_of_zero_are_not_compared(seconds: float) -> None:
    made = of.chart({MATRIX_NAME: of.matrix({"P01": (seconds, 9.0)})}, "time")
    assert ("The times of both models were not compared." in made.description) == (seconds == 0)
    assert ("quantized / original" in made.description) == (seconds > 0)
    of.check_layout(made)


@pytest.mark.parametrize("disturbed", [False, True])
@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        ((11.0, 11.1), "Time of an image, quantized / original: 1.100, 1.110, over 2 pairs of processes and 1 prompt."),
        ((11.0, 11.1, 11.05), "an image takes between 9.3 and 11.7 % more time than with the original (95 % interval"),
        ((9.0, 11.0, 10.5), "No difference in time was found at this precision: -22.0 % to +31.5 % for an image (95 %"),
    ],
)
def test_a_chart_says_what_pairs_allow(seconds: tuple[float, ...], said: str, disturbed: bool) -> None:
    busy = {"disturbed": {"original": ["other programs"]}} if disturbed else {}
    pairs = [pair(number, 10.0, time, **busy) for number, time in enumerate(seconds)]
    made = of.chart({MATRIX_NAME: matrix_over_pairs(of.matrix({"P01": (10.0, 11.0)}), pairs, ["P01"])}, "time")
    assert said in made.description
    assert ("pairs were disturbed." in made.description) == disturbed
    of.check_layout(made)


@pytest.mark.parametrize(("number", "bars"), [(5, 10), (6, 12), (12, 24), (13, 26), (30, 60), (31, 16)])
def test_five_prompts_have_figures_thirty_have_bars_and_more_a_distribution(number: int, bars: int) -> None:
    made = of.chart({MATRIX_NAME: of.matrix(of.some_times(number))}, "time")
    figure = made.draw(LIGHT)
    assert (len(figure.axes[0].patches), len(figure.axes)) == (bars, 1 + (number > 30))
    assert ("P01: " in made.description) == (number <= 12)
    assert ("14.0" in [text.get_text() for text in of.written(figure)]) == (number <= 5)
    of.check_layout(made)


@pytest.mark.parametrize(("number", "last"), [(14, "family13"), (15, "2 more")])
def test_fourteen_families_have_rows_and_of_more_the_smallest_share_one(number: int, last: str) -> None:
    families = {f"family{index:02d}": ({"F32": 4000 - index}, {"U8": 500}) for index in range(number)}
    figure = of.chart({METRICS_NAME: of.metrics(families)}, "footprint").draw(LIGHT)
    shown = [text.get_text() for text in of.written(figure)]
    assert [text for text in shown if text.startswith("family") or "more" in text][12:] == ["family12", last]


@pytest.mark.parametrize(("quantized", "shown"), [(1, "0.0 % less"), (2, "100.0 % more")])
def test_a_model_that_is_not_smaller(quantized: int, shown: str) -> None:
    content = of.metrics({"attn": ({"F32": 10**9}, {"U8": quantized * 10**9})})
    assert f" quantized: {shown}." in of.chart({METRICS_NAME: content}, "footprint").description


def test_hostile_names_are_drawn_as_text() -> None:
    pair = of.FAMILIES["attn"]
    bench = of.metrics({of.HOSTILE: pair, "a$x_1$b": ({of.HOSTILE: 10**9}, {"$": 10**8})})
    stage = {"time_s": 1.0, "peak_allocated_gb": 1.0}
    for model in bench["models"].values():
        model["stages"] = {of.HOSTILE: stage, "a$x_1$b": stage}
    prompts = {of.HOSTILE: (1.0, None), "$a_1$": (2.0, 3.0), "": (1.0, 1.0), "\ud800": (1.0, 1.0), " " * 50: (1.0, 1.0)}
    evidence: of.Evidence = {
        METRICS_NAME: bench,
        MATRIX_NAME: of.matrix(prompts) | {"mode": of.HOSTILE},
        WEIGHTS_NAME: of.weights(**{of.HOSTILE: (20.0, 10.0, 0.9), "$x$": (20.0, 10.0, 0.9)}),
        IMAGES_NAME: of.images(**{of.HOSTILE: (0.1, 0.2), "$x$": (0.1, 0.1)}),
        ABLATION_NAME: ablations.content(*(ablations.variant(name, ["attn"]) for name in (of.HOSTILE, "$x$"))),
    }
    for made in prepare_charts(evidence):
        assert isinstance(made, Chart)
        figure = made.draw(LIGHT)
        shown = [text for text in of.written(figure) if "$" in text.get_text()]
        # Only its description names prompts.
        assert shown or made.name == "trajectory"
        assert not any(text.get_parse_math() for text in shown)
        assert made.description.isprintable()
        assert len(made.description) < 1500
        of.check_layout(made)
        ElementTree.fromstring(render(made, LIGHT)["svg"])  # noqa: S314 - made a moment ago


def test_names_are_cut_to_what_the_font_and_the_width_allow() -> None:
    for text, shown in (("Типография", "Типография"), ("a\tb\x1b", "a\\tb\\x1b"), (" 日 ", "□"), ("e\u0301", "é")):
        assert drawable(text) == shown
    assert (len(drawable("e\u0301" * 300)), drawable("abcdef", 5), drawable(" abcdef ", 6)) == (21, "ab…ef", "abcdef")
    width = text_width("ЖЖЖ…")
    cut = [shorten("Ж" * 300, least) for least in (width, width - 0.1, text_width("…") - 1)]
    assert cut == ["ЖЖЖ…", "ЖЖ…", "…"]
    assert (shorten("short", 200), shorten("", 0), shorten("ab…cd", text_width("ab…"))) == ("short", "", "ab…")
    assert [wrap("b b b", text_width("b b") - less) for less in (0, 0.1)] == [["b b", "b"], ["b", "b", "b"]]
    assert text_width("a", bold=True) > text_width("a") == pytest.approx(text_width("a", 2 * TEXT_SIZE) / 2, abs=1)


@pytest.mark.parametrize(
    ("size", "shown", "short"),
    [
        *((10**9, "1 GB", "1.00"), (10**9 - 1, "1000 MB", "1000"), (10**6, "1 MB", "1.00")),
        *((99_940, "99.94 kB", "99.9"), (99_950, "99.95 kB", "100"), (9_994, "9.994 kB", "9.99")),
        *((-99_950, "-99.95 kB", "-100"), (-9_995, "-9.995 kB", "-10.0")),
        *((9_995, "9.995 kB", "10.0"), (10, "0.01 kB", "0.01"), (9, "0.009 kB", "<0.01"), (0, "0 kB", "0.00")),
    ],
)
def test_sizes_have_the_unit_that_suits_them(size: float, shown: str, short: str) -> None:
    assert (exact_size(size), choose_unit(size).show(size)) == (shown, short)


FAMILY = {"name": "a", "sqnr_db": 1.0, "sqnr_db_min": 1.0, "cosine_min": 0.9}
#: What can just be drawn, and what is too large, by what is said of it.
LARGEST: dict[str, Callable[[int], of.Evidence]] = {
    f"{MATRIX_NAME}: time_s": lambda n: {MATRIX_NAME: of.matrix({"P01": (1e9 * n, 1.0)})},
    f"{METRICS_NAME}: a": lambda n: {METRICS_NAME: of.metrics({"a": ({"F32": 10**18 + n - 1}, {})})},
    f"{METRICS_NAME}: transformer_storage_gb": lambda n: {METRICS_NAME: of.metrics(None, stored=1e9 * n)},
    f"{SUMMARY_NAME}: Transformer": lambda n: {
        SUMMARY_NAME: published_summary() | {"base_transformer_dtypes": {"F32": 10**18 + n - 1}}
    },
    f"{WEIGHTS_NAME}: sqnr_db": lambda n: {WEIGHTS_NAME: of.weights(a=(1.0, -1e4 * n, 0.9))},
    f"{WEIGHTS_NAME}: modules": lambda n: {
        WEIGHTS_NAME: {"fidelity": {"families": [FAMILY | {"modules": 10**9 + n - 1}]}}
    },
    f"{IMAGES_NAME}: error": lambda n: {IMAGES_NAME: of.images(P01=(0.1, 1e6 * n))},
    f"{OFFLOAD_NAME}: peak_allocated_gb": lambda n: {OFFLOAD_NAME: of.offload(most=1e9 * n)},
}


@pytest.mark.parametrize("what", LARGEST)
def test_figures_of_nothing_that_exists_are_refused(what: str) -> None:
    prepare_charts(LARGEST[what](1))
    with pytest.raises(EvidenceError) as caught:
        prepare_charts(LARGEST[what](2))
    assert caught.value.message == f"{what} is larger than anything that can be measured"
    huge = of.metrics(None) | {"models": {"original": of.HUGE, "quantized": of.HUGE}}
    for name, enormous in ((MATRIX_NAME, of.matrix({"P01": (1e300, 1.0)})), (METRICS_NAME, huge)):
        with pytest.raises(EvidenceError, match="larger than anything"):
            prepare_charts({name: enormous})


def test_tiny_and_large_figures_can_be_drawn() -> None:
    large = of.matrix({f"P{n}": (123456.789 + n * 1e-7, 99999999.0 if n else None) for n in range(40)})
    for matrix in (
        *(large, large | {"mode": "Ж" * 100}, of.matrix({f"P{n}": (1e-300, 5e-324) for n in range(3)})),
        of.matrix({f"P{n}": (0.0, 0.0) for n in range(40)}),
        *(of.matrix({"P1": (1e-300, 1e9), "P2": (1e9, 123456.789)}), of.matrix({of.HOSTILE: (6.9e8, 6.8e8)})),
    ):
        of.check_layout(of.chart({MATRIX_NAME: matrix}, "time"))
    many = {f"P{number}": (0.1, 0.2 + number / 1000) for number in range(30)}
    for errors in ({"P1": (0.0,) * 3}, {"P1": (0.5,)}, {"P1": (1e-9, 2e-9), "P2": (1e-9,)}, {"P1": (0.1,) * 500}, many):
        of.check_layout(of.chart({IMAGES_NAME: of.images(**errors)}, "trajectory"))
    weights = of.weights(attn=(0.0, -1e-300, 0.9), norm=(-250.0, -300.5, 0.9))
    of.check_layout(of.chart({WEIGHTS_NAME: weights}, "fidelity"))
