"""``lensconv charts``: what is drawn is what was measured, the same bytes every time, and legible."""

from __future__ import annotations

import io
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image

from converter.cli.main import run
from converter.console import Console
from converter.errors import DependencyError, EvidenceError, MissingInput, OutputError
from converter.measurement.evidence.files import read_evidence_folder, write_evidence
from converter.measurement.evidence.names import (
    MATRIX_NAME,
    METRICS_NAME,
    OFFLOAD_NAME,
    SEQUENTIAL_NAME,
    WEIGHTS_NAME,
)
from converter.measurement.evidence.statistics import slowdown
from converter.presentation.charts.chart import Chart, LeftOut
from converter.presentation.charts.draw_charts import CHARTS_FOLDER, draw_charts, prepare_charts, render
from converter.presentation.charts.library import traceless_import
from converter.presentation.charts.style import DARK, LIGHT, TEXT_SIZE, THEMES, WIDTH, Theme
from converter.presentation.charts.text import drawable, shorten, text_width
from converter.schemas import load_schema
from tests.conftest import ROOT, names_in, snapshot

Evidence = dict[str, dict[str, Any]]
SUMMARY_NAME = "sdnq_quantization_summary.json"
NAMES = ("footprint", "time", "memory", "fidelity")
ENVIRONMENT = {"hardware": "some GPU", "torch": "2.8.0", "date": "2026-05-24"}
SETTINGS = {"num_inference_steps": 20, "guidance_scale": 5.0}
#: Bytes by family and dtype, of the original and of the quantized transformer.
FAMILIES: dict[str, tuple[dict[str, int], dict[str, int]]] = {
    "norm": ({"F32": 400_000}, {"BF16": 200_000}),
    "img_mod": ({"F32": 5_360_000_000}, {"BF16": 2_680_000_000}),
    "attn": ({"F32": 2_100_000_000}, {"U8": 262_500_000, "BF16": 32_000_000}),
    "embed": ({"F32": 50_000_000}, {"BF16": 25_000_000}),
}
HUGE = {"label": "", "transformer_storage_gb": 1e307, "load_peak_rss_gb": 10**400}
HOSTILE = "$\\frac{1}{0}$ <b>&\x07\u202e日本 " + "Ж" * 300


def metrics(
    families: dict[str, tuple[dict[str, int], dict[str, int]]] | None, kind: str = "allocated"
) -> dict[str, Any]:
    """Content of ``benchmark_metrics.json``; without families in the form of the first releases."""
    models = {}
    for index, model in enumerate(("original", "quantized")):
        shown: dict[str, Any] = {
            "label": model,
            "transformer_storage_gb": (16.417, 4.301)[index],
            f"load_peak_{kind}_gb": 22.342 - 4 * index,
            f"generation_peak_{kind}_gb": {"mean": 27.0 - 4 * index, "max": 27.467 - 4 * index},
        }
        if families is not None:
            totals: dict[str, int] = {}
            for pair in families.values():
                for dtype, size in pair[index].items():
                    totals[dtype] = totals.get(dtype, 0) + size
            size = sum(totals.values())
            shown["transformer_storage_gb"] = round(size / 1e9, 3)
            shown["transformer"] = {
                "bytes": size,
                "bytes_by_dtype": totals,
                "families": [
                    {"name": name, "bytes": sum(pair[index].values()), "bytes_by_dtype": pair[index]}
                    for name, pair in families.items()
                ],
            }
            shown["stages"] = {
                name: {"time_s": 1.0, f"peak_{kind}_gb": peak - 4 * index}
                for name, peak in (("vae", 27.467), ("transformer", 24.882), ("text_encoder", 18.1))
            }
        models[model] = shown
    return {"schema": "lensconv.benchmark/1", "environment": ENVIRONMENT, "settings": SETTINGS, "models": models}


def matrix(times: Mapping[str, tuple[float | None, float | None]]) -> dict[str, Any]:
    """Content of ``comparison_matrix.json``; None where the measurement failed."""
    rows = [
        {
            "id": name,
            "scenario": "some",
            "seed": number,
            "original": {"time_s": first} if first is not None else {"failed": "out of memory"},
            "quantized": {"time_s": second} if second is not None else {"failed": "out of memory"},
        }
        for number, (name, (first, second)) in enumerate(times.items())
    ]
    return {"schema": "lensconv.matrix/1", "prompts": rows}


def some_times(number: int) -> dict[str, tuple[float | None, float | None]]:
    """Times of so many prompts."""
    return {
        f"P{index + 1:02d}": (round(14 + 5 * math.sin(index) ** 2, 3), round(17 + 5 * math.cos(index) ** 2, 3))
        for index in range(number)
    }


def offload(kind: str = "allocated") -> dict[str, Any]:
    """Content of ``model_cpu_offload_benchmark.json``; one part failed."""
    key = f"peak_{kind}_gb"
    models = {
        model: {
            "label": model,
            "setup": {"time_s": 15.5, key: 12.582},
            "cold": {"time_s": 26.2, key: 19.274} if model == "original" else {"failed": "out of memory"},
            "warm": {"time_s": {"mean": 18.1}, key: {"mean": 19.271, "max": 19.276}},
        }
        for model in ("original", "quantized")
    }
    return {
        "schema": "lensconv.offload/1",
        "method": "enable_model_cpu_offload",
        "cold_prompt": "P01",
        "warm_prompts": [f"P{number:02}" for number in range(2, 11)],
        "models": models,
    }


def weights(**families: tuple[float | None, float | None, float | None]) -> dict[str, Any]:
    """Content of ``weight_fidelity.json``: ratios of families and of their worst modules, and cosines."""
    return {
        "schema": "lensconv.weights/1",
        "fidelity": {
            "sqnr_db": {"min": None, "median": None},
            "max_abs_error": None,
            "max_error_steps": None,
            "cosine_min": None,
            "families": [
                {"name": name, "modules": 96, "sqnr_db": whole, "sqnr_db_min": least, "cosine_min": cosine}
                for name, (whole, least, cosine) in families.items()
            ],
            "worst": [],
        },
    }


def full_evidence() -> Evidence:
    """Every file that charts read, with all fields."""
    times = some_times(10) | {"P03": (13.9, None), "P05": (None, 17.8), "P07": (None, None)}
    return {
        METRICS_NAME: metrics(FAMILIES),
        MATRIX_NAME: matrix(times),
        OFFLOAD_NAME: offload(),
        WEIGHTS_NAME: weights(attn=(21.314, 19.412, 0.99), img_mlp=(22.1, None, None), embed=(None, None, 1.0)),
    }


def published_evidence() -> Evidence:
    """With the fields that the first releases have."""
    summary = {
        "method": "SDNQ uint4 static",
        "weights_dtype": "uint4",
        "base_transformer_tensor_storage_gb": 16.417,
        "quant_transformer_tensor_storage_gb": 4.301,
        "transformer_storage_reduction_percent": 73.8,
        "base_transformer_dtypes": {"FLOAT32": 16_416_900_608},
        "quant_transformer_dtypes": {"BFLOAT16": 2_942_501_632, "UINT8": 1_358_954_496},
        "base_transformer_tensors": 1264,
        "quant_transformer_tensors": 2224,
    }
    return {METRICS_NAME: metrics(None), MATRIX_NAME: matrix(some_times(10)), SUMMARY_NAME: summary}


def write(folder: Path, evidence: Evidence) -> Path:
    """Files of a folder of measurements, if they are valid."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in evidence.items():
        write_evidence(folder, name, content)
    return folder


def chart(evidence: Evidence, name: str) -> Chart:
    found = {made.name: made for made in prepare_charts(evidence)}[name]
    assert isinstance(found, Chart), found
    return found


def reason(evidence: Evidence, name: str) -> str:
    found = {made.name: made for made in prepare_charts(evidence)}[name]
    assert isinstance(found, LeftOut)
    return found.reason


def bars(figure: Figure, theme: Theme = LIGHT) -> dict[str, list[float]]:
    """Lengths of horizontal bars by model, from the top down; parts in the order in which they are stacked."""
    lengths: dict[str, list[float]] = {"original": [], "quantized": []}
    for patch in figure.axes[0].patches:
        assert isinstance(patch, Rectangle)
        model = "original" if to_hex(patch.get_facecolor()) in theme.original else "quantized"
        lengths[model].append(patch.get_width())
    return lengths


def written(figure: Figure) -> list[Text]:
    """All text that can be seen; an axis also has some that cannot."""
    return [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]


def places(line: Any) -> list[float]:
    """Horizontal places of the points of a line."""
    return [float(place) for place in line.get_xdata()]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in written(figure)]


def check_layout(chart: Chart, theme: Theme = LIGHT) -> None:
    """Draw a chart: all text lies on the page, and none on other text."""
    figure = chart.draw(theme)
    FigureCanvasAgg(figure).draw()
    boxes = [(text.get_text(), Text.get_window_extent(text)) for text in written(figure)]
    width, height = figure.bbox.width, figure.bbox.height
    for index, (words, box) in enumerate(boxes):
        assert 0 <= box.x0 < box.x1 <= width, words
        assert 0 <= box.y0 < box.y1 <= height, words
        for other, other_box in boxes[:index]:
            overlap = min(box.y1, other_box.y1) - max(box.y0, other_box.y0)
            apart = box.x1 <= other_box.x0 or other_box.x1 <= box.x0 or overlap <= 6
            assert apart, f"{words!r} and {other!r}"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with full evidence and its charts, and the report."""
    folder = write(tmp_path_factory.mktemp("charts") / "evidence", full_evidence())
    return folder, draw_charts(folder).to_dict()


def test_every_chart_is_drawn_in_two_formats_and_two_themes(drawn: tuple[Path, dict[str, Any]]) -> None:
    folder, report = drawn
    jsonschema.validate(report, load_schema("charts"))
    assert [entry["name"] for entry in report["charts"]] == list(NAMES)
    assert report["left_out"] == []
    listed = sorted(file for entry in report["charts"] for file in entry["files"])
    assert listed == sorted(
        f"assets/charts/{name}-{theme}.{kind}"
        for name in NAMES
        for theme in ("light", "dark")
        for kind in ("svg", "png")
    )
    assert names_in(folder / CHARTS_FOLDER) == sorted(Path(file).name for file in listed)
    for file in listed:
        content = (folder / file).read_bytes()
        if file.endswith(".svg"):
            assert len(content) < 200_000, file
            ElementTree.fromstring(content)  # noqa: S314 - made a moment ago
            assert b"<text" not in content
            assert b"Matplotlib" not in content
            assert not re.search(rb"\d\d:\d\d:\d\d", content)
        else:
            assert len(content) < 60_000, file
            with Image.open(io.BytesIO(content)) as image:
                theme = LIGHT if "-light" in file else DARK
                assert image.width == WIDTH
                assert set(image.info) == {"exif"}
                pixels = image.convert("RGB")
                expected = tuple(int(theme.background[place : place + 2], 16) for place in (1, 3, 5))
                assert pixels.getpixel((0, 0)) == pixels.getpixel((WIDTH - 1, image.height - 1)) == expected


def test_two_processes_write_the_same_bytes_and_leave_nothing_else(
    drawn: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """Whatever the user's own settings of matplotlib."""
    folder, _ = drawn
    (tmp_path / "work").mkdir()
    (tmp_path / "temporary").mkdir()
    (tmp_path / "home").mkdir()
    (tmp_path / "work" / "matplotlibrc").write_text("savefig.dpi: 300\nsvg.fonttype: none\ntext.antialiased: False\n")
    code = "import sys; from pathlib import Path; from converter.presentation.charts.draw_charts import draw_charts; "
    code += "draw_charts(Path(sys.argv[1]), output=Path(sys.argv[2]))"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(tmp_path / "home")}
    environment["TMPDIR"] = str(tmp_path / "temporary")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(folder), str(tmp_path / "output")],
        env=environment,
        cwd=tmp_path / "work",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert snapshot(tmp_path / "output") == {
        name: content for name, content in snapshot(folder).items() if name.startswith("assets/")
    }
    assert names_in(tmp_path / "temporary") == names_in(tmp_path / "home") == []
    assert names_in(tmp_path / "work") == ["matplotlibrc"]


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


def test_bars_of_the_footprint_are_the_bytes(drawn: tuple[Path, dict[str, Any]]) -> None:
    figure = chart(full_evidence(), "footprint").draw(LIGHT)
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
    assert "attn: original 2.1 GB F32, quantized 32 MB BF16 and 262.5 MB U8" in drawn[1]["charts"][0]["description"]


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
        (
            {METRICS_NAME: metrics({"attn": ({"F32": 10**25}, {"U8": 1})})},
            "footprint",
        ),
        ({METRICS_NAME: metrics(None) | {"models": dict.fromkeys(("original", "quantized"), HUGE)}}, "memory"),
        ({WEIGHTS_NAME: weights(attn=(1e300, 1.0, 0.9))}, "fidelity"),
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


def test_the_command(tmp_path: Path) -> None:
    folder = write(tmp_path / "evidence", {WEIGHTS_NAME: weights(attn=(21.0, 20.0, 0.9))})
    call = run_command(folder, "--out", tmp_path / "other" / "place")
    result = json.loads(call[0])
    jsonschema.validate(result, load_schema("charts"))
    assert [entry["name"] for entry in result["charts"]] == ["fidelity"]
    assert {entry["name"]: entry["reason"] for entry in result["left_out"]} == {
        "footprint": "benchmark_metrics.json and sdnq_quantization_summary.json are missing",
        "time": "comparison_matrix.json is missing",
        "memory": "benchmark_metrics.json and model_cpu_offload_benchmark.json are missing",
    }
    assert "left out time: comparison_matrix.json is missing" in call[1]
    assert names_in(folder) == [WEIGHTS_NAME]
    assert len(names_in(tmp_path / "other" / "place" / CHARTS_FOLDER)) == 4
    assert "MPLCONFIGDIR" not in os.environ or os.environ["MPLCONFIGDIR"]
    assert matplotlib.rcParams["svg.hashsalt"] is None


def test_a_chart_whose_measurements_are_gone_does_not_stay(tmp_path: Path) -> None:
    folder = write(tmp_path, {WEIGHTS_NAME: weights(attn=(21.0, 20.0, 0.9))})
    stale, foreign = (folder / CHARTS_FOLDER / name for name in ("time-dark.svg", "time.svg"))
    stale.parent.mkdir(parents=True)
    for file in (stale, foreign):
        file.write_text("")
    run_command(folder)
    assert not stale.exists()
    assert foreign.exists()


def run_command(*arguments: object) -> tuple[str, str]:
    """What the command writes to stdout with ``--json``, and to stderr."""
    stdout, stderr = io.StringIO(), io.StringIO()
    console = Console(as_json=True, stdout=stdout, stderr=stderr)
    assert run(["charts", *map(str, arguments), "--json"], console) == 0, stdout.getvalue()
    return stdout.getvalue(), stderr.getvalue()


def test_what_cannot_be_used_has_its_exit_code(tmp_path: Path) -> None:
    failed = matrix({"P01": (None, None)})
    cases: dict[str, tuple[Callable[[], object], type[Exception]]] = {
        "missing": (lambda: draw_charts(tmp_path / "missing"), MissingInput),
        "failed": (lambda: draw_charts(write(tmp_path / "failed", {MATRIX_NAME: failed})), MissingInput),
    }
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / MATRIX_NAME).write_text("{}")
    cases["broken"] = (lambda: draw_charts(tmp_path / "broken"), EvidenceError)
    for attempt, kind in cases.values():
        with pytest.raises(kind) as caught:
            attempt()
        assert caught.value.exit_code == 2  # type: ignore[attr-defined]
    assert names_in(tmp_path / "failed") == [MATRIX_NAME]
    assert read_evidence_folder(tmp_path / "failed")


def test_a_missing_library_is_named() -> None:
    with pytest.raises(DependencyError, match="cannot be imported: no such thing") as caught, traceless_import():
        raise ImportError("no such thing")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("link", ["assets", "assets/charts"])
def test_links_out_of_the_folder_are_refused(tmp_path: Path, link: str) -> None:
    folder = write(tmp_path / "evidence", {WEIGHTS_NAME: weights(attn=(21.0, 20.0, 0.9))})
    (tmp_path / "elsewhere").mkdir()
    (folder / link).parent.mkdir(exist_ok=True)
    (folder / link).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="leads out of the folder"):
        draw_charts(folder)
    assert names_in(tmp_path / "elsewhere") == []


def test_a_link_in_place_of_a_chart_is_replaced_and_a_file_in_place_of_the_folder_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "evidence", {WEIGHTS_NAME: weights(attn=(21.0, 20.0, 0.9))})
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (folder / CHARTS_FOLDER).mkdir(parents=True)
    (folder / CHARTS_FOLDER / "fidelity-light.svg").symlink_to(victim)
    draw_charts(folder)
    assert victim.read_text() == "untouched"
    assert not (folder / CHARTS_FOLDER / "fidelity-light.svg").is_symlink()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "assets").write_text("a file")
    with pytest.raises(OutputError) as caught:
        draw_charts(folder, output=tmp_path / "taken")
    assert caught.value.exit_code == 2
