"""Tables of measurements as plain values, and as the card's Markdown."""

from __future__ import annotations

from typing import Any

from converter.measurement.evidence.names import MODEL_TITLES
from converter.presentation.card.table_markdown import to_markdown
from converter.presentation.tables.fidelity import images_table, text_table
from converter.presentation.tables.measurements import (
    benchmark_table,
    matrix_table,
    offload_table,
    slowdown_figures,
    storage_table,
)
from converter.presentation.tables.table import NOTHING, Code, Figure, Table, keep_measured
from tests.published import published_matrix, published_metrics, published_offload, published_summary


def cells(table: Table) -> dict[object, list[object]]:
    """Cells of each row by its label."""
    return {str(row[0]): list(row[1:]) for row in table.rows}


def test_rows_without_a_measurement_are_left_out() -> None:
    assert keep_measured([["a", NOTHING, NOTHING], ["b", NOTHING, "1"]]) == [["b", NOTHING, "1"]]
    found = cells(benchmark_table(published_metrics()))
    assert not [label for label in found if "of the process" in str(label) or "of the device" in str(label)]
    assert found["Load peak allocated VRAM, GB"] == ["22.342", "18.446"]


def test_what_metrics_do_not_say_of_bfloat16_comes_from_the_summary() -> None:
    label = "Transformer against the original in bfloat16"
    metrics = published_metrics()
    assert label not in cells(benchmark_table(metrics))
    assert cells(benchmark_table(metrics, published_summary()))[label] == [NOTHING, "47.6% smaller"]
    metrics["transformer_storage_reduction_vs_bf16_percent"] = 47.5
    assert cells(benchmark_table(metrics, published_summary()))[label] == [NOTHING, "47.5% smaller"]
    unknown = {**published_summary(), "base_transformer_dtypes": {"INT8": 1}}
    assert label not in cells(benchmark_table(published_metrics(), unknown))


def test_a_failure_is_in_the_column_of_its_model() -> None:
    metrics = published_metrics()
    metrics["models"]["quantized"]["failed"] = [
        {"repeat": 0, "reason": "x" * 400},
        {"prompt": "P01", "repeat": 2, "reason": "timeout"},
    ]
    found = cells(benchmark_table(metrics))
    assert found["P01, run 3"] == [NOTHING, "failed: timeout"]
    assert found["load, run 1"] == [NOTHING, f"failed: {'x' * 299}…"]
    offload = published_offload()
    offload["models"]["original"]["cold"] = {"failed": "out of memory"}
    found = cells(offload_table(offload))
    assert found["Cold image"] == ["failed: out of memory", NOTHING]
    assert found["Cold image, time, seconds"][0] == NOTHING
    assert "Set-up and load" not in found


def test_a_matrix_has_the_first_peak_that_was_measured_and_no_delta_of_a_failure() -> None:
    matrix = published_matrix()
    matrix["prompts"][1]["quantized"] = {"failed": "timeout"}
    table = matrix_table(matrix, MODEL_TITLES)
    assert table.columns[3:6] == ["Original, s", "Quantized, s", "Delta"]
    assert table.columns[6] == "Original, peak allocated VRAM, GB"
    assert table.align == "llrrrrrr"
    row = cells(table)["P02"]
    assert row == ["Desert Observatory Treaty Room", 302, "16.986", "failed: timeout", NOTHING, "27.461", NOTHING]
    narrow = matrix_table(matrix, MODEL_TITLES, with_scenarios=False)
    assert cells(narrow)["P02"] == row[1:]
    assert narrow.align == "lrrrrrr"


def test_a_summary_may_have_figures_of_the_quantization() -> None:
    summary = {**published_summary(), "quantization_time_s": 12.5, "transformer_load_peak_reserved_gb": 7.25}
    found = cells(storage_table(summary))
    assert found["Quantization, seconds"] == [NOTHING, "12.500"]
    assert found["Load of the transformer, peak reserved VRAM, GB"] == [NOTHING, "7.250"]
    assert found["BFLOAT16 bytes"] == [NOTHING, "2,942,501,632"]
    assert found["Smaller than the source in bfloat16"] == [NOTHING, "47.6%"]


def test_a_slowdown_of_one_pair_has_no_interval() -> None:
    found = slowdown_figures({"pairs": 1, "ratio_of_means_percent": -3.25, "mean_difference_s": -0.5})
    assert found is not None
    assert (found["percent"], found["seconds"], found["is_slower"]) == ("-3.2%", "-0.500 s", False)
    assert found["interval"] is None
    assert found["seconds_interval"] is None
    assert slowdown_figures(None) is None


def test_images_have_the_columns_that_were_measured() -> None:
    pair: dict[str, Any] = {"id": "P01", "seed": None, "width": 64, "height": 32, "identical": True}
    pair |= {"psnr_db": None, "ssim": 1.0, "lpips": None, "periodic_grid": {"added": 0.125}}
    summary: dict[str, Any] = {"psnr_db": None, "ssim": {}, "lpips": None, "periodic_grid_added": {}, "text": None}
    images = {"pairs": [pair], "summary": summary}
    table = images_table(images)
    assert table.columns == ["ID", "Seed", "Pixels", "SSIM", "Added periodic grid, grey levels"]
    assert table.rows == [["P01", NOTHING, "64×32", "1.0000", "0.12"]]  # noqa: RUF001 - a cross
    summary["psnr_db"] = {}
    assert images_table(images).rows[0][3] == "identical"
    assert text_table(images) is None


def test_markdown_escapes_text_and_keeps_figures() -> None:
    table = Table(["*a*", "b"], [[Code("x|y"), Figure("+1.5%")], ["[c](d)", 7]])
    assert to_markdown(table).splitlines() == [
        r"| \*a\* | b |",
        "| --- | ---: |",
        r"| <code>x\|y</code> | +1.5% |",
        r"| \[c\](d) | 7 |",
    ]
    assert to_markdown(Table(["a"], [[Code("plain")]])).splitlines()[2] == "| `plain` |"
