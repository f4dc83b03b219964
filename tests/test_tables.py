"""Tables of measurements as plain values; those of whole files are compared on cards."""

from __future__ import annotations

from typing import Any

from converter.measurement.evidence.names import MODEL_TITLES
from converter.presentation.card.table_markdown import to_markdown
from converter.presentation.tables import conditions
from converter.presentation.tables.fidelity import images_summary_table, images_table, text_table
from converter.presentation.tables.figures import reduction
from converter.presentation.tables.measurements import benchmark_table, matrix_table, slowdown_figures
from converter.presentation.tables.table import NOTHING, Code, Figure, Table
from tests.cases import check_cases
from tests.published import published_matrix, published_metrics, published_summary


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
    assert table.columns == ["ID", "Seed", "Original, s", "Quantized, s", "Delta", *peaks]
    assert table.align == "lrrrrrr"
    assert table.rows == [
        ["P01", 301, "19.518", f"failed: {'x' * 300}", NOTHING, "27.461", NOTHING],
        ["P02", 302, "16.986", f"failed: {'x' * 299}…", NOTHING, "27.461", NOTHING],
    ]


def test_a_slowdown_of_one_pair_has_no_interval() -> None:
    found = slowdown_figures({"pairs": 1, "ratio_of_means_percent": -3.25, "mean_difference_s": -0.5})
    expected = {"percent": "-3.2%", "seconds": "-0.500 s", "is_slower": False, "pairs": 1}
    assert found == {**expected, "compared": "3.2% less time than", "interval": None, "seconds_interval": None}
    assert slowdown_figures(None) is None
    same = slowdown_figures({"pairs": 1, "ratio_of_means_percent": 0.0, "mean_difference_s": 0.0}) or {}
    assert same["is_slower"] is False


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
