"""Tables of measurements as plain values; those of whole files are compared on cards."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from converter.measurement.evidence.names import MODEL_TITLES
from converter.measurement.evidence.pairs import TimedPair
from converter.measurement.evidence.time_comparison import compare_matrix
from converter.presentation.card.table_markdown import to_markdown
from converter.presentation.tables import conditions
from converter.presentation.tables.fidelity import images_summary_table, images_table, text_table
from converter.presentation.tables.figures import reduction
from converter.presentation.tables.measurements import benchmark_table, matrix_table
from converter.presentation.tables.table import NOTHING, Code, Figure, Table
from converter.presentation.tables.times import TimeWords, describe_times, pairs_table
from tests.cases import check_cases
from tests.published import published_matrix, published_metrics, published_summary
from tests.timed_pairs import matrix_over_pairs, over_prompts, pair


def test_what_metrics_do_not_say_of_bfloat16_comes_from_the_summary() -> None:
    def shown(dtypes: dict[str, int], own: float | None) -> list[str]:
        more = {} if own is None else {"transformer_storage_reduction_vs_bf16_percent": own}
        summary = {**published_summary(), "base_transformer_dtypes": dtypes}
        rows = benchmark_table(published_metrics() | more, summary).rows
        return [str(row[2]) for row in rows if row[0] == "Transformer against the original in bfloat16"]

    assert "bfloat16" not in str(benchmark_table(published_metrics()))
    check_cases("bfloat16.jsonl", shown)
    assert reduction(0, 1) is None


def test_what_is_off_is_said_and_what_is_unknown_is_not() -> None:
    found = conditions.environment({"sdnq_compiles": False, "cuda": None, "sdnq_environment": {}})
    assert found == [("SDNQ compiles", "no")]


def test_a_narrow_matrix_has_no_scenarios_and_cuts_long_reasons() -> None:
    matrix = published_matrix()
    for row, length in zip(matrix["prompts"], (300, 301), strict=False):
        row["quantized"] = {"failed": "x" * length}
    del matrix["prompts"][2:]
    table = matrix_table(matrix, MODEL_TITLES, with_scenarios=False)
    peaks = [f"{title}, peak allocated VRAM, GB" for title in MODEL_TITLES]
    assert table.columns == ["ID", "Seed", "Original, s", "Quantized, s", "Quantized / original", *peaks]
    assert table.align == "lrrrrrr"
    assert table.rows == [
        ["P01", 301, "19.518", f"failed: {'x' * 300}", NOTHING, "27.461", NOTHING],
        ["P02", 302, "16.986", f"failed: {'x' * 299}…", NOTHING, "27.461", NOTHING],
    ]


MATRIX = published_matrix()


def times_of(*pairs: TimedPair, matrix: Mapping[str, Any] = MATRIX) -> TimeWords:
    return describe_times(compare_matrix(matrix_over_pairs(matrix, pairs, ["P01", "P02"])))


@pytest.mark.parametrize(
    ("seconds", "finding"),
    [
        ((1.42, 1.45, 1.43), "an image takes between 39.6 and 47.2% more time"),
        ((0.5, 0.51, 0.5), "an image takes between 48.2 and 51.1% less time"),
        ((1.001, 1.0011, 1.0012), "an image takes between 0.085 and 0.135% more time"),
        ((2.0, 2.0, 2.0), "an image takes between 100.0 and 100.0% more time"),
    ],
)
def test_a_difference_is_claimed_where_the_interval_excludes_zero(seconds: Sequence[float], finding: str) -> None:
    words = times_of(*(pair(number, 10, round(10 * ratio, 4)) for number, ratio in enumerate(seconds)))
    over = "than with the original (95% interval over 3 pairs of processes and 2 prompts)"
    assert words.finding == f"With the quantized model, {finding} {over}."
    assert (words.costs_time, words.disturbance) == ("more" in finding, "")


def test_no_difference_is_claimed_where_the_interval_contains_zero() -> None:
    over = "(95% interval over 3 pairs of processes and 2 prompts)."
    for ratios, ends in (((1, 1.1, 0.9), "-22.3% to +27.9%"), ((1, 1, 1), "+0.000% to +0.000%")):
        words = times_of(*(pair(number, 10, 10 * ratio) for number, ratio in enumerate(ratios)))
        assert words.finding == f"No difference in time was found at this precision: {ends} for an image {over}"
        assert words.costs_time is False


def test_ratios_of_fewer_than_three_pairs_are_listed() -> None:
    words = times_of(pair(0, 10, 14.2), pair(1, 10, 14.5))
    said = "1.420, 1.450, over 2 pairs of processes and 2 prompts. Fewer than 3 pairs are too few for a comparison."
    assert words.finding == f"Time of an image, quantized / original: {said}"
    assert not re.search("%|more|less time|slow|fast", words.finding)
    assert (times_of(pair(0, None, None, used=False)).finding, times_of().finding) == ("", "")


def test_what_was_disturbed_is_said() -> None:
    busy = {"disturbed": {"original": ["other programs used 0.8 CPUs", "swap"], "quantized": ["swap"]}}
    pairs = [
        pair(0, 10, 11),
        pair(1, 10, 11, used=False, interrupted=True),
        pair(2, 10, 11, used=False, **busy),
        pair(3, None, None, used=False),
        pair(1, 10, 12, attempt=1),
        pair(2, 10, 12, attempt=1, **busy),
    ]
    assert times_of(*pairs).disturbance == "2 pairs were measured once more; 1 of 3 pairs stayed disturbed."
    assert times_of(pair(0, 10, 11, **busy)).disturbance == "1 of 1 pair was disturbed."
    table = pairs_table(compare_matrix(matrix_over_pairs(MATRIX, pairs, ["P01"])))
    assert table is not None
    reasons = "original: other programs used 0.8 CPUs, swap; quantized: swap"
    assert table.rows == [
        ["1", "original", "10.000", "11.000", "1.100", NOTHING],
        ["2", "quantized", "10.000", "11.000", "1.100", "not counted; interrupted"],
        ["3", "original", "10.000", "11.000", "1.100", f"not counted; {reasons}"],
        ["4", "quantized", NOTHING, NOTHING, NOTHING, "not counted"],
        ["2, once more", "quantized", "10.000", "12.000", "1.200", NOTHING],
        ["3, once more", "original", "10.000", "12.000", "1.200", reasons],
    ]
    assert pairs_table(compare_matrix(MATRIX)) is None


def test_intervals_of_earlier_versions_are_labelled() -> None:
    times = [{row["id"]: row[model]["time_s"] for row in MATRIX["prompts"]} for model in ("original", "quantized")]
    old = {**MATRIX, "summary": {"slowdown": over_prompts(times[0], times[1], 11.4, 22.3, 1.75, 3.433)}}
    start = "Time of an image, quantized / original: 1.168, over 10 prompts of"
    label = "The interval over these prompts is 1.114 to 1.223; differences between runs are not in it."
    runs = {"settings": {"repeats": 3}}
    for matrix, said in (
        (MATRIX, "one run of each model. No interval was measured."),
        (old, f"one run of each model. {label}"),
        (old | runs, f"3 runs of each model. {label}"),
    ):
        words = describe_times(compare_matrix(matrix))
        assert (words.finding, words.costs_time) == (f"{start} {said}", False)


def test_images_have_the_columns_that_were_measured() -> None:
    pair: dict[str, Any] = {"id": "P01", "seed": None, "width": 64, "height": 32, "identical": True}
    pair |= {"psnr_db": None, "ssim": 1.0, "lpips": None, "periodic_grid": {"added": None}}
    nothing: dict[str, Any] = {"psnr_db": None, "lpips": None, "periodic_grid_added": None, "text": None}
    summary = nothing | {"ssim": dict.fromkeys(("mean", "median", "min", "max"), 1.0), "baseline": None}
    images = {"pairs": [pair], "summary": summary}
    assert images_table(images) == Table(["ID", "Seed", "Pixels", "SSIM"], [["P01", NOTHING, "64×32", "1.0000"]])  # noqa: RUF001 - a cross
    assert images_summary_table(images).rows == [["SSIM", *["1.0000"] * 4, NOTHING]]
    assert text_table(images) is None


def test_markdown_escapes_text_and_keeps_figures() -> None:
    table = Table(["*a*", "b"], [[Code("x|y"), Figure("+1.5%")], [Code(""), 7]], "rl")
    shown = [r"| \*a\* | b |", "| ---: | --- |", r"| <code>x\|y</code> | +1.5% |", "|  | 7 |"]
    assert to_markdown(table).splitlines() == shown
