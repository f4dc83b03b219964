"""Measurements for tests of charts, and what a drawn chart shows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from converter.conversion.release.manifest import SUMMARY_NAME
from converter.measurement.evidence.files import write_evidence
from converter.measurement.evidence.names import (
    ABLATION_NAME,
    IMAGES_NAME,
    MATRIX_NAME,
    METRICS_NAME,
    MODELS,
    OFFLOAD_NAME,
    WEIGHTS_NAME,
)
from converter.measurement.evidence.trajectory import summarise_errors
from converter.presentation.charts.chart import Chart, LeftOut
from converter.presentation.charts.draw_charts import prepare_charts
from converter.presentation.charts.style import DARK, LIGHT, LINE, TEXT_SIZE, Theme
from tests import ablations
from tests.expected import check_expected
from tests.published import published_summary

Evidence = dict[str, dict[str, Any]]
NAMES = ("footprint", "time", "memory", "fidelity", "trajectory", "ablation")
ENVIRONMENT = {"hardware": "some GPU", "torch": "2.8.0", "date": "2026-05-24"}
SETTINGS = {"num_inference_steps": 20, "guidance_scale": 5.0}
#: Bytes by family and dtype, of the original and of the quantized transformer.
Families = dict[str, tuple[dict[str, int], dict[str, int]]]
FAMILIES: Families = {
    "norm": ({"F32": 400_000}, {"BF16": 200_000}),
    "img_mod": ({"F32": 5_360_000_000}, {"BF16": 2_680_000_000}),
    "attn": ({"F32": 2_100_000_000}, {"U8": 262_500_000, "BF16": 32_000_000}),
    "embed": ({"F32": 50_000_000}, {"BF16": 25_000_000}),
}
HUGE = {"label": "", "transformer_storage_gb": 1e307, "load_peak_rss_gb": 10**400}
HOSTILE = "$\\frac{1}{0}$ <b>&\x07\u202e日本 " + "Ж" * 300


def metrics(families: Families | None, kind: str = "allocated", stored: float = 16.417) -> dict[str, Any]:
    """Content of ``benchmark_metrics.json``; without families in the form of the first releases."""
    models: dict[str, Any] = {}
    for index, model in enumerate(MODELS):
        less, sizes = 4 * index, [(name, pair[index]) for name, pair in (families or {}).items()]
        models[model] = {"label": model, "transformer_storage_gb": (stored, 4.301)[index]}
        models[model][f"load_peak_{kind}_gb"] = 22.342 - less
        models[model][f"generation_peak_{kind}_gb"] = {"mean": 27.0 - less, "max": 27.467 - less}
        if families is not None:
            totals = dict(sum((Counter(found) for _, found in sizes), Counter()))
            listed = [{"name": name, "bytes": sum(found.values()), "bytes_by_dtype": found} for name, found in sizes]
            footprint: dict[str, Any] = {"bytes": sum(totals.values()), "bytes_by_dtype": totals, "families": listed}
            stages = (("vae", 27.467), ("transformer", 24.882), ("text_encoder", 18.1))
            models[model] |= {"transformer_storage_gb": round(footprint["bytes"] / 1e9, 3), "transformer": footprint}
            models[model]["stages"] = {name: {"time_s": 1.0, f"peak_{kind}_gb": peak - less} for name, peak in stages}
    return {"schema": "lensconv.benchmark/1", "environment": ENVIRONMENT, "settings": SETTINGS, "models": models}


def matrix(times: Mapping[str, tuple[float | None, float | None]]) -> dict[str, Any]:
    """Content of ``comparison_matrix.json``; None where the measurement failed."""
    rows = [
        {"id": name, "scenario": "some", "seed": number}
        | {"original": {"time_s": first} if first is not None else {"failed": "out of memory"}}
        | {"quantized": {"time_s": second} if second is not None else {"failed": "out of memory"}}
        for number, (name, (first, second)) in enumerate(times.items())
    ]
    return {"schema": "lensconv.matrix/1", "prompts": rows}


def some_times(number: int) -> dict[str, tuple[float | None, float | None]]:
    """Times of so many prompts."""
    return {
        f"P{index + 1:02d}": (round(14 + 5 * math.sin(index) ** 2, 3), round(17 + 5 * math.cos(index) ** 2, 3))
        for index in range(number)
    }


def offload(kind: str = "allocated", most: float = 12.582) -> dict[str, Any]:
    """Content of ``model_cpu_offload_benchmark.json``; one part failed."""
    key = f"peak_{kind}_gb"
    models = {
        model: {
            "label": model,
            "setup": {"time_s": 15.5, key: most},
            "cold": {"time_s": 26.2, key: 19.274} if model == "original" else {"failed": "out of memory"},
            "warm": {"time_s": {"mean": 18.1}, key: {"mean": 19.271, "max": 19.276}},
        }
        for model in MODELS
    }
    prompts = {"cold_prompt": "P01", "warm_prompts": [f"P{number:02}" for number in range(2, 11)]}
    return {"schema": "lensconv.offload/1", "method": "enable_model_cpu_offload", **prompts, "models": models}


def weights(**families: tuple[float | None, float | None, float | None]) -> dict[str, Any]:
    """Content of ``weight_fidelity.json``: ratios of families and of their worst modules, and cosines."""
    fidelity: dict[str, Any] = {"sqnr_db": {"min": None, "median": None}, "worst": []}
    fidelity |= dict.fromkeys(("max_abs_error", "max_error_steps", "cosine_min"))
    fidelity["families"] = [
        {"name": name, "modules": 96, "sqnr_db": whole, "sqnr_db_min": least, "cosine_min": cosine}
        for name, (whole, least, cosine) in families.items()
    ]
    return {"schema": "lensconv.weights/1", "fidelity": fidelity}


def images(**errors: Sequence[float]) -> dict[str, Any]:
    """Content of ``image_fidelity.json``: the error of each step, by prompt."""
    grid = {"original": 0.0, "quantized": 0.0, "added": 0.0}
    figures: dict[str, Any] = {"identical": False, "psnr_db": 30.0, "ssim": 0.9, "lpips": None, "periodic_grid": grid}
    head = {"id": "P01", "seed": 0, "width": 64, "height": 64, "num_inference_steps": None}
    means = {"psnr_db": 30.0, "ssim": 0.9, "periodic_grid_added": 0.0}
    summary: dict[str, Any] = {
        name: {**dict.fromkeys(("mean", "median", "min", "max"), value), "count": 1} for name, value in means.items()
    }
    prompts = [
        {
            "id": name,
            "seed": 1000,
            "steps": [{"step": step, "sigma": 1.0, "error": error} for step, error in enumerate(steps)],
        }
        for name, steps in errors.items()
    ]
    return {
        "schema": "lensconv.fidelity/1",
        "num_inference_steps": None,
        "pairs": [{**head, **figures, "baseline": None, "text": []}],
        "summary": {**summary, **dict.fromkeys(("lpips", "baseline", "text"))},
        "methods": dict.fromkeys(("psnr_db", "ssim", "periodic_grid", "trajectory"), "as defined"),
        "not_measured": {},
        "trajectory": {"prompts": prompts, **summarise_errors(prompts)},
    }


def full_evidence() -> Evidence:
    """Every file that charts read, with all fields."""
    times = some_times(10) | {"P03": (13.9, None), "P05": (None, 17.8), "P07": (None, None)}
    return {
        METRICS_NAME: metrics(FAMILIES),
        MATRIX_NAME: matrix(times),
        OFFLOAD_NAME: offload(),
        WEIGHTS_NAME: weights(attn=(21.314, 19.412, 0.99), img_mlp=(22.1, None, None), embed=(None, None, 1.0)),
        IMAGES_NAME: images(P01=(0.06, 0.09, 0.12, 0.1), P02=(0.05, 0.1, 0.14, 0.13)),
        ABLATION_NAME: ablations.builtin(),
    }


def published_evidence() -> Evidence:
    """With the fields that the first releases have."""
    return {METRICS_NAME: metrics(None), MATRIX_NAME: matrix(some_times(10)), SUMMARY_NAME: published_summary()}


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


def written(figure: Figure) -> list[Text]:
    """All text that can be seen; an axis also has some that cannot."""
    return [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]


def picture(chart: Chart, theme: Theme = LIGHT) -> str:
    """A drawn chart in words: its rows from the top down, with pixels from the left and top of the page.

    Colors have names, ``o`` and ``q`` for the models and a number for the shade; behind them is what lies on what.
    """
    figure = chart.draw(theme)
    FigureCanvasAgg(figure).draw()
    colors = {getattr(theme, name): name for name in ("background", "ink", "muted", "grid")}
    for name in MODELS:
        colors |= {color: f"{name[0]}{shade}" for shade, color in enumerate(getattr(theme, name))}
    height = figure.bbox.height
    items: list[tuple[float, int, str]] = []
    across: list[tuple[float, int, str]] = []

    def place(corners: Any, words: str, color: Any, order: float) -> tuple[float, int, str]:
        (left, right), (top, bottom) = (sorted(map(round, side)) for side in (corners[:, 0], height - corners[:, 1]))
        return (top + bottom) / 2, left, f"{words}{colors[to_hex(color)]} {left}-{right} {top}-{bottom} {order:g}"

    for text in written(figure):
        size = f"{text.get_fontsize():g}{'b' * ('Bold' in str(text.get_fontproperties().get_file()))} "
        words = f"{text.get_text()!r} {size.removeprefix(f'{TEXT_SIZE} ')}"
        items.append(place(Text.get_window_extent(text).get_points(), words, text.get_color(), text.get_zorder()))
    for patch in [*figure.artists, *(patch for axes in figure.axes for patch in axes.patches)]:
        assert isinstance(patch, Rectangle)
        items.append(place(patch.get_window_extent().get_points(), "", patch.get_facecolor(), patch.get_zorder()))
    for line in [line for axes in figure.axes for line in [*axes.get_xgridlines(), *axes.get_lines()]]:
        points = np.asarray(line.get_transform().transform(line.get_xydata()))
        is_long = points[:, 1].max() - points[:, 1].min() > LINE
        is_line = is_long or line.get_marker() == "None"
        words = f"line{line.get_linewidth():g} " if is_line else f"{line.get_marker()}{line.get_markersize():g} "
        corners = np.stack([points.min(0), points.max(0)])
        (across if is_long else items).append(place(corners, words, line.get_color(), line.get_zorder()))
    rows: list[list[tuple[float, int, str]]] = []
    for item in sorted(items):
        if not rows or item[0] - rows[-1][-1][0] > LINE / 2:
            rows.append([])
        rows[-1].append(item)
    found = [" | ".join(words for *_, words in sorted(row, key=lambda item: item[1])) for row in [*rows, across]]
    return "⏎".join([f"{chart.name} {figure.bbox.width:g}x{height:g}: {chart.description}", *found])


def check_pictures(name: str, evidence: Evidence) -> None:
    """Compare the charts of this evidence, which have the same lines in both themes, with the kept ones."""
    found = []
    for made in prepare_charts(evidence):
        if isinstance(made, LeftOut):
            found.append(f"no {made.name}: {made.reason}\n")
        else:
            found.append(f"{picture(made)}\n")
            assert picture(made, DARK) == found[-1][:-1]
            check_layout(made)
    check_expected(f"charts/{name}.txt", "".join(found))


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
