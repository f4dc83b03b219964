"""Thresholds: what is refused, how figures are judged, and with which code commands exit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from PIL import Image

from converter.cli.thresholds import render_verdicts
from converter.errors import UsageError
from converter.measurement.benchmark.report import BenchReport
from converter.measurement.evidence.names import IMAGES_NAME, MATRIX_NAME, METRICS_NAME
from converter.measurement.evidence.thresholds import Threshold, exit_code, judge, parse_threshold
from converter.schemas import load_schema
from tests.cases import check_cases
from tests.conftest import Lensconv
from tests.pictures import noise


def test_what_a_threshold_may_be() -> None:
    def outcome(text: str) -> object:
        try:
            return [*vars(parse_threshold(text)).values()]
        except UsageError as error:
            return error.message

    check_cases("thresholds.jsonl", outcome)


def images(**changes: Any) -> dict[str, Any]:
    """Two pairs of images with two texts, and everything measured."""
    text = {"required": "A", "original_cer": 0.0, "quantized_cer": 0.25}
    pairs = [{"lpips": 0.1, "text": [text]}, {"lpips": 0.3, "text": [text]}]
    summary = {"lpips": {"mean": 0.2}, "psnr_db": {"mean": 30.0}, "text": {"quantized_cer_mean": 0.25}}
    content: dict[str, Any] = {"pairs": pairs, "summary": summary, "not_measured": {}}
    return {**content, "trajectory": {"mean_error": 0.05}, **changes}


INTERVAL = {"pairs": 4, "percent": 12.0, "percent_interval": [10.0, 14.0], "confidence": 0.95}
OLD = {"pairs": 4, "ratio_of_means_percent": 12.0, "ratio_of_means_percent_interval": [10.0, 14.0]}
NOTHING: dict[str, Any] = {"psnr_db": None, "lpips": None, "text": None}
UNREAD = {"required": "Б", "original_cer": 0.0, "quantized_cer": None}
HALF = [{"lpips": None, "text": [UNREAD]}, {"lpips": 0.2, "text": images()["pairs"][0]["text"]}]
WHY = {"lpips": "too small", "text": "tesseract is not installed", "trajectory": "the disk was full"}


@pytest.mark.parametrize(
    ("metric", "kept", "worse"),
    [("lpips", 0.2, 0.19), ("psnr", 30, 30.1), ("cer", 0.25, 0.2), ("trajectory", 0.05, 0.04), ("slowdown", 10, 9.9)],
)
def test_a_figure_at_its_threshold_keeps_it(metric: str, kept: float, worse: float) -> None:
    contents = {IMAGES_NAME: images(), METRICS_NAME: {"slowdown": INTERVAL}}
    found = judge([Threshold(metric, kept), Threshold(metric, worse)], contents)
    assert [(verdict.measured, verdict.ok, verdict.reason) for verdict in found] == [
        (float(kept), True, None),
        (float(kept), False, None),
    ]
    assert [exit_code(found[:1]), exit_code(found), exit_code(found[:1], ok=False), exit_code([])] == [0, 1, 1, 0]


@pytest.mark.parametrize(
    ("metric", "contents", "reason"),
    [
        ("lpips", {}, "no images were compared"),
        ("lpips", {IMAGES_NAME: images(summary=NOTHING)}, "nothing was measured"),
        ("lpips", {IMAGES_NAME: images(summary=NOTHING, not_measured=WHY)}, "too small"),
        ("lpips", {IMAGES_NAME: images(pairs=HALF)}, "not measured for 1 of 2 images"),
        ("cer", {IMAGES_NAME: images(summary=NOTHING, not_measured=WHY)}, "tesseract is not installed"),
        (
            "cer",
            {IMAGES_NAME: images(pairs=HALF, not_measured=WHY)},
            "not measured for 1 of 2 texts: tesseract is not installed",
        ),
        ("trajectory", {IMAGES_NAME: images(trajectory=None)}, "the trajectory was not measured"),
        ("trajectory", {IMAGES_NAME: images(trajectory=None, not_measured=WHY)}, "the disk was full"),
        ("slowdown", {}, "times were not compared over at least three pairs of processes"),
        (
            "slowdown",
            {METRICS_NAME: {"slowdown": OLD}, MATRIX_NAME: {"summary": {"slowdown": OLD}}},
            "times were not compared over at least three pairs of processes",
        ),
    ],
)
def test_what_was_not_measured_keeps_no_threshold(metric: str, contents: dict[str, Any], reason: str) -> None:
    """And exits with 3, unless what was measured is worse."""
    found = judge([Threshold(metric, 1)], contents)
    assert [(verdict.ok, verdict.reason, exit_code(found)) for verdict in found] == [(False, reason, 3)]
    found += judge([Threshold("psnr", 31)], {IMAGES_NAME: images()})
    assert exit_code(found) == 1
    if "1 of 2" in reason:
        assert exit_code(judge([Threshold(metric, 0)], contents)) == 1


def test_identical_images_keep_every_psnr_and_the_matrix_has_the_interval_where_the_metrics_do_not() -> None:
    identical = {IMAGES_NAME: images(summary=NOTHING)}
    (found,) = judge([Threshold("psnr", 1000)], identical)
    assert (found.measured, found.ok, found.reason) == (None, True, "all images are identical")
    (found,) = judge([Threshold("slowdown", 5)], {MATRIX_NAME: {"summary": {"slowdown": INTERVAL}}})
    assert (found.measured, found.is_worse) == (10.0, True)


def test_a_figure_looks_worse_than_its_threshold_where_it_is() -> None:
    close = images(summary={**images()["summary"], "psnr_db": {"mean": 24.999999}})
    (line,) = render_verdicts(judge([Threshold("psnr", 25.0)], {IMAGES_NAME: close}))
    assert str(line) == "  FAIL  mean PSNR of images that differ: 24.999999 dB, at least 25.0 dB allowed"


def test_bench_shows_the_slowdown_that_thresholds_judge() -> None:
    """Without standard mode, only the matrix has one."""
    models: dict[str, Any] = {METRICS_NAME: {"models": {"original": {}, "quantized": {}}}}
    report = BenchReport(Path("out"), {**models, MATRIX_NAME: {"summary": {"slowdown": INTERVAL}}}, 0, 0, (), 0.0)
    assert report.to_dict()["slowdown"] == INTERVAL


def test_compare_exits_with_what_its_thresholds_say(tmp_path: Path, lensconv: Lensconv) -> None:
    for number, folder in enumerate("ab"):
        (tmp_path / folder).mkdir()
        Image.fromarray(noise(0) // 2 + np.uint8(number * 16)).save(tmp_path / folder / "P01-1.png")
    line = ("compare", tmp_path / "a", tmp_path / "b", "--no-lpips", "--no-text")

    def code(*thresholds: str, extra: tuple[object, ...] = ()) -> int:
        return lensconv(*line, *(word for text in thresholds for word in ("--fail-over", text)), *extra).code

    assert [code("psnr=24"), code("psnr=25"), code("psnr=24", "cer=0.1"), code("psnr=25", "cer=0.1")] == [0, 1, 3, 1]
    # Before anything is read.
    assert lensconv("compare", "no", "folder", "--fail-over", "slowdown=1").code == 3
    assert lensconv("compare", "no", "folder", "--fail-over", "trajectory=1").code == 3
    assert lensconv("compare", "no", "folder", "--fail-over", "psnr=1", "--fail-over", "psnr=2").code == 2
    shown = lensconv(*line, "--fail-over", "psnr=25", "--fail-over", "lpips=0.1").stderr.splitlines()[-2:]
    assert [text.strip() for text in shown] == [
        "FAIL  mean PSNR of images that differ: 24.0484 dB, at least 25 dB allowed",
        "FAIL  mean LPIPS: not measured, at most 0.1 allowed (not requested)",
    ]
    content = lensconv(*line, "--fail-over", "psnr=24", "--json").result
    jsonschema.validate(content, load_schema("image_fidelity"))
    (verdict,) = content["thresholds"]
    assert verdict == {
        "metric": "psnr",
        "value": 24.0,
        "measured": pytest.approx(24.0484, abs=1e-4),
        "ok": True,
        "reason": None,
    }
    assert "thresholds" not in lensconv(*line, "--json").result


@pytest.mark.parametrize(
    ("metric", "options", "hint"),
    [("slowdown", ("--pairs", 2), "--pairs 3"), ("trajectory", ("--trajectory-prompts", 0), "--trajectory-prompts 1")],
)
def test_bench_refuses_a_threshold_for_what_it_will_not_measure(
    metric: str, options: tuple[object, ...], hint: str, tmp_path: Path, lensconv: Lensconv
) -> None:
    """Before it looks at the models, which are missing here."""
    done = lensconv("bench", "no", "folder", "--out", tmp_path / "out", "--fail-over", f"{metric}=1", *options)
    assert (done.code, hint in done.stderr, (tmp_path / "out").exists()) == (3, True, False)
