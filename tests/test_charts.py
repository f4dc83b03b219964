"""What charts show is what was measured, and legible."""

from __future__ import annotations

import io
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from converter.conversion.release.manifest import SUMMARY_NAME
from converter.errors import EvidenceError
from converter.measurement.evidence.names import MATRIX_NAME, METRICS_NAME, SEQUENTIAL_NAME, WEIGHTS_NAME
from converter.measurement.evidence.statistics import slowdown
from converter.presentation.charts.chart import Chart
from converter.presentation.charts.draw_charts import prepare_charts, render
from converter.presentation.charts.style import DARK, LIGHT, TEXT_SIZE, THEMES, Theme
from converter.presentation.charts.text import drawable, shorten, text_width
from tests.charts import (
    FAMILIES,
    HOSTILE,
    HUGE,
    Evidence,
    bars,
    chart,
    check_layout,
    full_evidence,
    matrix,
    metrics,
    offload,
    places,
    published_evidence,
    reason,
    some_times,
    texts,
    weights,
    written,
)


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
    for made in prepare_charts(full_evidence()):
        assert isinstance(made, Chart)
        for text in written(made.draw(theme)):
            assert to_hex(text.get_color()) in (theme.ink, theme.muted), text.get_text()
            assert float(text.get_fontsize()) >= TEXT_SIZE


def test_text_is_eleven_pixels_high_at_half_the_width() -> None:
    """From the top of a capital to the foot of a descender."""
    made = chart(full_evidence(), "memory")
    with Image.open(io.BytesIO(render(made, LIGHT)["png"])) as image:
        assert image.width / 2 == 400
    figure = Figure(figsize=(1, 1), dpi=72)
    text = next(text for text in written(made.draw(LIGHT)) if text.get_text() == "Load")
    sample = figure.text(0, 0, "Hp", fontproperties=text.get_fontproperties())
    assert sample.get_window_extent().height / 2 >= 11


def test_bars_of_the_footprint_are_the_bytes() -> None:
    made = chart(full_evidence(), "footprint")
    figure = made.draw(LIGHT)
    lengths = bars(figure)
    assert lengths["original"] == pytest.approx([5.36, 2.1, 0.05, 0.0004])
    assert lengths["quantized"] == pytest.approx([2.68, 0, 0.032, 0.2625, 0.025, 0, 0.0002, 0])
    patches: list[Any] = list(figure.axes[0].patches)
    # Each row has one part of the original and two of the quantized model, the second where the first ends.
    assert [patch.get_x() for patch in patches] == pytest.approx([0, 0, 2.68, 0, 0, 0.032, 0, 0, 0.025, 0, 0, 0.0002])
    assert figure.axes[0].get_xlim()[0] == 0
    shown = texts(figure)
    assert [name for name in shown if name in FAMILIES] == ["img_mod", "attn", "embed", "norm"]
    assert {
        "5.36",
        "0.29",
        "<0.01",
        "Stored bytes (GB)",
        "Quantized U8",
        "7.51 GB original, 3 GB quantized: 60.1\xa0% less",
    } <= set(shown)
    assert "attn: original 2.1 GB F32, quantized 32 MB BF16 and 262.5 MB U8" in made.description


def test_small_footprints_have_a_small_unit_and_many_families_are_merged() -> None:
    families = {
        f"family{index:02d}": ({"F32": 400 * (index + 1)}, {"I8": 10, "U8": 7, "F16": 3, "F64": 80})
        for index in range(40)
    }
    figure = chart({METRICS_NAME: metrics(families)}, "footprint").draw(LIGHT)
    lengths = bars(figure)
    assert "Stored bytes (kB)" in texts(figure)
    assert "27 more" in texts(figure)
    assert "Quantized other" in texts(figure)
    assert len(lengths["original"]) == 14
    assert sum(lengths["original"]) == pytest.approx(0.4 * sum(range(1, 41)))
    assert sum(lengths["quantized"]) == pytest.approx(4)
    both = chart({METRICS_NAME: metrics({"attn": ({"F32": 5 * 10**9}, {"U8": 4 * 10**8})})}, "footprint")
    assert "5 GB original, 0.4 GB quantized: 92.0 % less" in both.description


def test_published_files_give_totals() -> None:
    evidence = published_evidence()
    assert bars(chart(evidence, "footprint").draw(LIGHT)) == {
        "original": [pytest.approx(16.416900608)],
        "quantized": [pytest.approx(2.942501632), pytest.approx(1.358954496)],
    }
    assert "quantized 2.943 GB BF16 and 1.359 GB U8" in chart(evidence, "footprint").description
    del evidence[SUMMARY_NAME]
    assert bars(chart(evidence, "footprint").draw(LIGHT)) == {"original": [16.417], "quantized": [4.301]}
    figure = chart(evidence, "memory").draw(LIGHT)
    assert bars(figure) == {"original": [22.342, 27.467], "quantized": [pytest.approx(18.342), pytest.approx(23.467)]}
    assert {"Load", "Generation"} <= set(texts(figure))
    assert reason(evidence, "fidelity") == "weight_fidelity.json is missing"
    for name in ("footprint", "memory", "time"):
        check_layout(chart(evidence, name))


def test_bars_of_time_are_the_seconds_and_failures_are_marked() -> None:
    evidence = full_evidence()
    figure = chart(evidence, "time").draw(DARK)
    pairs = [
        [row[model].get("time_s") for model in ("original", "quantized")] for row in evidence[MATRIX_NAME]["prompts"]
    ]
    first, second = ([pair[index] for pair in pairs if pair[index] is not None] for index in range(2))
    assert bars(figure, DARK) == {"original": first, "quantized": second}
    assert figure.axes[0].get_xlim()[0] == 0
    shown = texts(figure)
    assert shown.count("quantized failed") == shown.count("original failed") == shown.count("both failed") == 1
    means = [places(line)[0] for line in figure.axes[0].lines if places(line)[0]]
    assert means == pytest.approx([sum(first) / 8, sum(second) / 8])
    both = [pair for pair in pairs if None not in pair]
    expected = slowdown([pair[0] for pair in both], [pair[1] for pair in both])
    assert expected.ratio_of_means_percent_interval is not None
    low, high = expected.ratio_of_means_percent_interval
    words = f"{expected.ratio_of_means_percent:+.1f} % time (95 % interval {low:+.1f} % to {high:+.1f} %, 7 prompts)"
    assert words in chart(evidence, "time").description
    assert words in " ".join(shown).replace("\xa0", " ")
    assert "P03: original 13.9 s, quantized failed" in chart(evidence, "time").description


def test_one_prompt_has_no_interval() -> None:
    made = chart({MATRIX_NAME: matrix({"P01": (10.0, 9.0)})}, "time")
    assert "-10.0 % time (1 prompt)" in made.description
    figure = made.draw(LIGHT)
    assert bars(figure) == {"original": [10.0], "quantized": [9.0]}
    assert {"10.0", "9.00"} <= set(texts(figure))
    check_layout(made)


@pytest.mark.parametrize("pair", [(0.0, 9.0), (None, 9.0), (3.0, None), (0.0, 0.0)])
def test_times_without_a_ratio_have_no_slowdown(pair: tuple[float | None, float | None]) -> None:
    made = chart({MATRIX_NAME: matrix({"P01": pair})}, "time")
    assert "interval" not in made.description
    assert "% time" not in made.description
    check_layout(made)


def test_thirty_prompts_have_bars_and_a_hundred_a_distribution() -> None:
    thirty = chart({MATRIX_NAME: matrix(some_times(30))}, "time")
    assert len(thirty.draw(LIGHT).axes[0].patches) == 60
    check_layout(thirty)
    times = some_times(100) | {"P50": (None, 20.0)}
    hundred = chart({MATRIX_NAME: matrix(times)}, "time")
    figure = hundred.draw(LIGHT)
    for index, axes in enumerate(figure.axes):
        measured = [pair[index] for pair in times.values() if pair[index] is not None]
        patches: list[Any] = list(axes.patches)
        edges = [patch.get_x() for patch in patches]
        edges.append(2 * edges[-1] - edges[-2])
        heights = [patch.get_height() for patch in patches]
        assert heights == np.histogram(np.asarray(measured), np.asarray(edges))[0].tolist()
        assert sum(heights) == len(measured)
        assert axes.get_ylim()[0] == 0
    assert "1 of 100 failed" in " ".join(texts(figure))
    assert all(len(content) < 60_000 for content in render(hundred, LIGHT).values())
    check_layout(hundred)
    equal = {f"P{number}": (2.0, 2.0) for number in range(40)}
    check_layout(chart({MATRIX_NAME: matrix(equal)}, "time"))


def test_bars_of_memory_are_the_peaks() -> None:
    made = chart(full_evidence(), "memory")
    figure = made.draw(LIGHT)
    assert bars(figure) == {
        "original": pytest.approx([22.342, 18.1, 24.882, 27.467, 12.582, 19.274, 19.276]),
        "quantized": pytest.approx([18.342, 14.1, 20.882, 23.467, 12.582, 19.276]),
    }
    shown = texts(figure)
    assert shown.count("failed") == 1
    assert "Peak allocated on the GPU (GB)" in shown
    assert "Offload cold: original 19.274 GB, quantized failed" in made.description
    check_layout(made)


def test_memory_of_a_cpu_is_that_of_the_process() -> None:
    evidence = {METRICS_NAME: metrics(FAMILIES, "rss"), SEQUENTIAL_NAME: offload("rss")}
    figure = chart(evidence, "memory").draw(LIGHT)
    assert {"Peak resident memory of the process (GB)", "Sequential warm"} <= set(texts(figure))
    assert len(bars(figure)["original"]) == 7
    for model in evidence[METRICS_NAME]["models"].values():
        model["load_peak_rss_gb"] = 0.612
        del model["stages"], model["generation_peak_rss_gb"]
    del evidence[SEQUENTIAL_NAME]
    figure = chart(evidence, "memory").draw(LIGHT)
    assert bars(figure) == {"original": [612.0], "quantized": [612.0]}
    assert "Peak resident memory of the process (MB)" in texts(figure)
    del evidence[METRICS_NAME]["models"]["quantized"]["load_peak_rss_gb"]
    assert "not measured" in texts(chart(evidence, "memory").draw(LIGHT))
    del evidence[METRICS_NAME]["models"]["original"]["load_peak_rss_gb"]
    assert reason(evidence, "memory") == "no peak was measured"


def test_fidelity_shows_what_has_no_figure_for_what_it_is() -> None:
    families = {
        "txt_mlp": (22.1, None, 0.0),
        "attn": (21.314, 19.412, 0.99),
        "embed": (None, None, 0.9999999999999998),
        "norm": (None, None, None),
        "img_mlp": (None, None, 0.0),
    }
    made = chart({WEIGHTS_NAME: weights(**families)}, "fidelity")
    figure = made.draw(LIGHT)
    axes = figure.axes[0]
    dots = [places(line)[0] for line in axes.lines if line.get_marker() == "o"]
    assert dots == [21.314, 22.1]
    lines = [places(line) for line in axes.lines if line.get_marker() == "None"]
    assert lines == [[19.412, 21.314], [axes.get_xlim()[0], 22.1]]
    assert [line.get_marker() for line in axes.lines if line.get_marker() in ("|", "<")] == ["|", "<"]
    shown = texts(figure)
    assert shown.count("equal to the original") == 1
    assert shown.count("without a finite figure") == 2
    assert shown.count("96 modules") == 5
    assert "Arrow" in " ".join(shown)
    assert "attn (96 modules) 21.314 dB, lowest module 19.412 dB" in made.description
    assert "embed (96 modules) equal to the original" in made.description
    check_layout(made)
    check_layout(chart({WEIGHTS_NAME: weights(embed=(None, None, 1.0))}, "fidelity"))
    many = chart({WEIGHTS_NAME: weights(**{f"family{n}": (20.0 + n, 10.0 + n, 0.9) for n in range(30)})}, "fidelity")
    same = weights(attn=(20.0, 10.0, 0.9))
    same["fidelity"]["families"] *= 1000
    assert len(chart({WEIGHTS_NAME: same}, "fidelity").draw(LIGHT).axes[0].lines) == 14 * 3
    assert "16 more families not shown" in many.description
    assert "The 14 lowest of 30" in " ".join(texts(many.draw(LIGHT)))


def test_hostile_names_are_drawn_as_text() -> None:
    pair = FAMILIES["attn"]
    bench = metrics({HOSTILE: pair, "a$x_1$b": ({HOSTILE: 10**9}, {"$": 10**8})})
    stage = {"time_s": 1.0, "peak_allocated_gb": 1.0}
    for model in bench["models"].values():
        model["stages"] = {HOSTILE: stage, "a$x_1$b": stage}
    prompts = {HOSTILE: (1.0, None), "$a_1$": (2.0, 3.0), "": (1.0, 1.0), "\ud800": (1.0, 1.0), " " * 50: (1.0, 1.0)}
    evidence: Evidence = {
        METRICS_NAME: bench,
        MATRIX_NAME: matrix(prompts) | {"mode": HOSTILE},
        WEIGHTS_NAME: weights(**{HOSTILE: (20.0, 10.0, 0.9), "$x$": (20.0, 10.0, 0.9)}),
    }
    for made in prepare_charts(evidence):
        assert isinstance(made, Chart)
        figure = made.draw(LIGHT)
        shown = [text for text in written(figure) if "$" in text.get_text()]
        assert shown
        assert not any(text.get_parse_math() for text in shown)
        assert made.description.isprintable()
        assert len(made.description) < 1500
        check_layout(made)
        ElementTree.fromstring(render(made, LIGHT)["svg"])  # noqa: S314 - made a moment ago


def test_names_are_cut_to_what_the_font_and_the_width_allow() -> None:
    assert drawable("Типография") == "Типография"
    assert drawable("a\tb\x1b") == "a\\tb\\x1b"
    assert drawable("日") == "□"
    assert text_width(shorten("Ж" * 300, 200)) <= 200
    assert shorten("Ж" * 300, 200).endswith("Ж…")
    assert shorten("short", 200) == "short"
    assert len(drawable("e\u0301" * 300)) <= 40


@pytest.mark.parametrize(
    ("evidence", "name"),
    [
        ({MATRIX_NAME: matrix({"P01": (1e300, 1.0)})}, "time"),
        ({METRICS_NAME: metrics({"attn": ({"F32": 10**25}, {"U8": 1})})}, "footprint"),
        ({METRICS_NAME: metrics(None) | {"models": dict.fromkeys(("original", "quantized"), HUGE)}}, "memory"),
        ({WEIGHTS_NAME: weights(attn=(1e300, 1.0, 0.9))}, "fidelity"),
        ({WEIGHTS_NAME: weights(attn=(1.0, -1e300, 0.9))}, "fidelity"),
    ],
)
def test_figures_of_nothing_that_exists_are_refused(evidence: Evidence, name: str) -> None:
    with pytest.raises(EvidenceError, match="larger than anything"):
        chart(evidence, name)


def test_tiny_and_large_figures_can_be_drawn() -> None:
    check_layout(chart({MATRIX_NAME: matrix({"P1": (1e-300, 1e9), "P2": (1e9, 123456.789)})}, "time"))
    check_layout(chart({MATRIX_NAME: matrix({HOSTILE: (6.9e8, 6.8e8)})}, "time"))
    large = {f"P{n}": (123456.789 + n * 1e-7, 99999999.0 if n else None) for n in range(40)}
    check_layout(chart({MATRIX_NAME: matrix(large)}, "time"))
    check_layout(chart({MATRIX_NAME: matrix(large) | {"mode": "Ж" * 100}}, "time"))
    check_layout(chart({MATRIX_NAME: matrix({f"P{n}": (1e-300, 5e-324) for n in range(3)})}, "time"))
    check_layout(chart({WEIGHTS_NAME: weights(attn=(0.0, -1e-300, 0.9), norm=(-250.0, -300.5, 0.9))}, "fidelity"))
