"""Files of measurements: formats, figures that must agree, and statistics, against the published figures."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.errors import EvidenceError, MissingInput
from converter.measurement.evidence.files import FORMATS, read_evidence, read_evidence_folder, write_evidence
from converter.measurement.evidence.statistics import combine, percent_change, slowdown, spread, summarise_times
from converter.schemas import load_schema
from tests.conftest import Lensconv
from tests.published import (
    LABELS,
    PUBLISHED,
    image_fidelity,
    image_pair,
    published_matrix,
    published_metrics,
    published_offload,
    shown_figures,
    write_published,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The four published files."""
    return write_published(tmp_path)


def write(folder: Path, name: str, content: object) -> Path:
    file = folder / name
    file.write_text(json.dumps(content))
    return file


def test_the_published_figures(folder: Path, lensconv: Lensconv) -> None:
    outcome = lensconv("evidence", folder, "--json")
    assert outcome.code == 0
    result = outcome.result
    assert [file["name"] for file in result["files"]] == list(PUBLISHED)
    matrix = result["matrix"]
    assert [row["delta_percent"] for row in matrix["rows"]] == [23.5, 9.3, 28.6, 23.6, 24.7, 8.3, 6.5, 6.6, 9.5, 28.9]
    assert (matrix["original"]["mean"], matrix["quantized"]["mean"]) == (15.357, 17.937)
    assert (matrix["original"]["median"], matrix["quantized"]["median"]) == (14.346, 17.813)
    found = matrix["slowdown"]
    assert (found["ratio_of_means_percent"], found["mean_difference_s"], found["pairs"]) == (16.8, 2.58, 10)
    low, high = found["ratio_of_means_percent_interval"]
    assert low < 16.8 < high
    shown = lensconv("evidence", folder)
    assert "+16.8%" in shown.stderr
    assert f"{low:+.1f}% to {high:+.1f}%" in shown.stderr
    for label in LABELS:
        assert label in shown.stderr
    figures = [make() for name, make in PUBLISHED.items() if name != SUMMARY]
    assert {figure for figure in shown_figures(figures) if figure not in shown.stderr} == set()


def test_labels_are_shown_as_text(tmp_path: Path, lensconv: Lensconv) -> None:
    """Neither as markup of the terminal nor with control characters."""
    write(tmp_path, *edited(METRICS, "models", "original", "label", value="[bold]a[/bold]\x1b"))
    assert "[bold]a[/bold]\\x1b" in lensconv("evidence", tmp_path).stderr


def test_the_interval_is_that_of_a_plain_bootstrap() -> None:
    """Other draws than lensconv's own give nearly the same ends."""
    rows = published_matrix()["prompts"]
    original, quantized = ([row[name]["time_s"] for row in rows] for name in ("original", "quantized"))
    draws = np.random.default_rng(7).integers(0, 10, (40_000, 10))
    ratios = sorted(100 * (sum(quantized[i] for i in draw) / sum(original[i] for i in draw) - 1) for draw in draws)
    expected = ratios[1000], ratios[39_000]
    found = slowdown(original, quantized).ratio_of_means_percent_interval
    assert found is not None
    assert found == pytest.approx(expected, abs=0.3)
    assert slowdown(original, quantized) == slowdown(original, quantized)


@given(st.lists(st.floats(0.001, 1e5), min_size=1, max_size=30))
def test_a_spread_is_what_the_standard_library_says(values: list[float]) -> None:
    found = spread(values)
    assert found.mean == round(statistics.fmean(values), 3)
    assert found.median == round(statistics.median(values), 3)
    assert (found.min, found.max, found.count) == (round(min(values), 3), round(max(values), 3), len(values))
    assert ("stdev" in found.to_dict()) == (len(values) > 1)


@given(st.lists(st.tuples(st.floats(0.1, 100), st.floats(0.1, 100)), min_size=2, max_size=12))
def test_an_interval_holds_the_figure_and_turns_with_the_models(pairs: list[tuple[float, float]]) -> None:
    original, quantized = zip(*pairs, strict=True)
    found, turned = slowdown(original, quantized), slowdown(quantized, original)
    assert found.mean_difference_s == pytest.approx(-turned.mean_difference_s, abs=0.0011)
    assert found.mean_difference_s_interval is not None
    low, high = found.mean_difference_s_interval
    differences = [second - first for first, second in pairs]
    assert min(differences) - 0.001 <= low <= high <= max(differences) + 0.001


def test_a_figure_that_only_some_measurements_have_is_left_out() -> None:
    rows = [{"time_s": 1.0, "peak_rss_gb": 2.0}, {"time_s": 3.0, "peak_rss_gb": 1.0, "peak_allocated_gb": 5.0}]
    assert combine(rows) == {"time_s": 2.0, "peak_rss_gb": 2.0}


def test_one_pair_has_no_interval_and_none_no_slowdown() -> None:
    assert slowdown([1.0], [2.0]).to_dict()["mean_difference_s_interval"] is None
    assert slowdown([1.0], [2.0]).ratio_of_means_percent == 100.0
    with pytest.raises(ValueError, match="0 and 0"):
        slowdown([], [])
    with pytest.raises(ValueError, match="cannot be paired"):
        slowdown([1.0, 2.0], [1.0])
    assert percent_change(2, 1) == -50


def edited(name: str, *path: str | int, value: Any) -> tuple[str, dict[str, Any]]:
    """A published file with one figure changed."""
    return name, replace_at(PUBLISHED[name](), path, value)


def replace_at(content: dict[str, Any], path: Sequence[str | int], value: Any) -> dict[str, Any]:
    """The content, with another value at this path."""
    target: Any = content
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return content


METRICS, MATRIX, OFFLOAD, SUMMARY = PUBLISHED
FOOTPRINT: dict[str, Any] = {
    "bytes": 4_301_456_128,
    "bytes_by_dtype": {"BF16": 2_942_501_632, "U8": 1_358_954_496},
    "families": [
        {"name": "img_mod", "bytes": 3_000_000_000, "bytes_by_dtype": {"BF16": 2_942_501_632, "U8": 57_498_368}},
        {"name": "attn", "bytes": 1_301_456_128, "bytes_by_dtype": {"U8": 1_301_456_128}},
    ],
}


def test_a_footprint_that_is_its_headers_sum(tmp_path: Path) -> None:
    name, content = edited(METRICS, "models", "quantized", "transformer", value=FOOTPRINT)
    read_evidence(write(tmp_path, name, content))


PEAK, HEADERS = ("models", "original", "generation_peak_allocated_gb"), ("models", "quantized", "transformer")
ATTENTION = "attn: bytes is 1, and its dtypes add up to 1301456128"


def footprint(*path: str | int, value: Any) -> dict[str, Any]:
    return replace_at(copy.deepcopy(FOOTPRINT), path, value)


@pytest.mark.parametrize(
    ("name", "path", "value", "message"),
    [
        (METRICS, ("schema",), "lensconv.benchmark/2", "has schema lensconv.benchmark/2"),
        (METRICS, ("schema",), "lensconv.matrix/1", "reads lensconv.benchmark/1"),
        (MATRIX, ("schema",), 1, "has schema 1"),
        (MATRIX, ("schema",), None, "has no schema"),
        (MATRIX, ("prompts",), [], "prompts: "),
        (MATRIX, ("prompts", 3, "seed"), "304", "prompts.3.seed: '304' is not of type 'integer'"),
        (MATRIX, ("prompts", 3, "original"), {"time_s": -1}, "prompts.3.original"),
        (MATRIX, ("prompts", 3, "original", "time_s"), math.nan, "prompts.3.original.time_s is not a finite number"),
        (MATRIX, ("prompts", 3, "id"), "P03", "prompt P03 is listed 2 times"),
        (MATRIX, ("prompts", 0, "delta_percent"), 13.5, "P01.delta_percent is 13.5"),
        (MATRIX, ("prompts", 0, "original", "times_s"), [1, 2, 3], "P01.original.time_s is 19.518"),
        (MATRIX, ("summary",), {"original": {"mean": 15.0}}, "summary.original.mean is 15.0"),
        (METRICS, ("models", "original", "transformer_storage_gb"), 8.208, "of 8.208 GB remain"),
        (METRICS, ("models", "quantized", "generation_time_s", "mean"), 15.0, "generation_time_s.mean is 15.0"),
        (METRICS, ("models", "quantized", "load_peak_allocated_gb"), 19.0, "more than the 18.516 that were reserved"),
        (METRICS, (*PEAK, "mean"), 28, "mean is 28, outside of 28 to 27.467"),
        (METRICS, HEADERS, footprint("bytes", value=4_301_456_000), "add up to"),
        (METRICS, HEADERS, footprint("families", 1, "bytes", value=1), ATTENTION),
        (METRICS, HEADERS, footprint("families", value=FOOTPRINT["families"][:1]), "its families add up to 3000000000"),
        (METRICS, ("models", "original", "transformer"), FOOTPRINT, "its headers say 4301456128 bytes"),
        (OFFLOAD, ("warm_prompts",), ["P02", "P02"], "prompt P02 is listed 2 times"),
        (OFFLOAD, ("models", "original", "cold", "peak_reserved_gb"), 1.0, "models.original.cold.peak_allocated_gb"),
        (OFFLOAD, ("method",), "magic", "method: "),
        (SUMMARY, ("quant_transformer_dtypes",), {"UINT8": 1}, "its dtypes add up to 1 bytes"),
        (SUMMARY, ("transformer_storage_reduction_percent",), 47.6, "is 47.6"),
    ],
)
def test_what_is_refused(
    name: str, path: tuple[str | int, ...], value: Any, message: str, folder: Path, lensconv: Lensconv
) -> None:
    file = write(folder, *edited(name, *path, value=value))
    outcome = lensconv("evidence", folder, "--json")
    assert outcome.code == 2, outcome.stdout
    error = outcome.result["error"]
    assert error["type"] == "EvidenceError"
    assert message in error["message"]
    assert error["message"].startswith(str(file))
    assert len(lensconv("evidence", folder).stderr.splitlines()) == 1


def test_files_that_speak_of_other_weights_or_settings(folder: Path) -> None:
    def source(digit: str) -> dict[str, Any]:
        files = [{"name": "model.safetensors", "bytes": 1, "sha256": digit * 64}]
        return {name: {"repo_id": "x/y", "transformer": files} for name in ("original", "quantized")}

    write(folder, *edited(METRICS, "sources", value=source("a")))
    write(folder, *edited(MATRIX, "sources", value=source("b")))
    with pytest.raises(EvidenceError, match=r"sources\.original\.transformer differs"):
        read_evidence_folder(folder)
    write(folder, *edited(MATRIX, "sources", value=source("a")))
    read_evidence_folder(folder)
    write(folder, *edited(MATRIX, "settings", value={"num_inference_steps": 4, "guidance_scale": 5.0}))
    with pytest.raises(EvidenceError, match=r"settings\.num_inference_steps is 20, not 4"):
        read_evidence_folder(folder)
    name, content = edited(SUMMARY, "quant_transformer_dtypes", value={"UINT8": 2_000_000_000})
    content |= {"quant_transformer_tensor_storage_gb": 2.0, "transformer_storage_reduction_percent": 87.8}
    write(folder, MATRIX, published_matrix())
    write(folder, name, content)
    message = r"quantized\.transformer_storage_gb is 4\.301, but the other figures give 2\.0"
    with pytest.raises(EvidenceError, match=message):
        read_evidence_folder(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"schema": 1, "schema": 1}', b"\xff", b"[" * 100_000])
def test_files_that_are_no_json_object(content: bytes, tmp_path: Path, lensconv: Lensconv) -> None:
    (tmp_path / MATRIX).write_bytes(content)
    outcome = lensconv("evidence", tmp_path / MATRIX, "--json")
    assert outcome.code == 2
    assert outcome.result["error"]["type"] == "EvidenceError"


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="contains no measurements"):
        read_evidence_folder(tmp_path)
    with pytest.raises(MissingInput, match="no such folder"):
        read_evidence_folder(tmp_path / "nowhere")
    with pytest.raises(MissingInput, match="no such file"):
        read_evidence(tmp_path / "nothing.json")


def test_failed_rows_are_left_out_of_statistics(folder: Path, lensconv: Lensconv) -> None:
    name, content = edited(MATRIX, "prompts", 2, "quantized", value={"failed": "killed by SIGKILL"})
    (folder / METRICS).unlink()
    write(folder, name, content)
    matrix = lensconv("evidence", folder, "--json").result["matrix"]
    assert matrix["failed"] == 1
    assert matrix["original"]["count"] == 10
    assert matrix["quantized"]["count"] == matrix["slowdown"]["pairs"] == len(matrix["rows"]) == 9
    assert "failed" in lensconv("evidence", folder).stderr


def full_matrix() -> dict[str, Any]:
    """A matrix with the statistics of its rows."""
    matrix = published_matrix()
    times = ({row["id"]: row[model]["time_s"] for row in matrix["prompts"]} for model in ("original", "quantized"))
    return {**matrix, "summary": summarise_times(*times)}


def full_offload() -> dict[str, Any]:
    """An offload benchmark with its times; those of the published rows."""
    content = published_offload()
    warm = []
    for name, model in content["models"].items():
        rows = {row["id"]: row[name]["time_s"] for row in published_matrix()["prompts"]}
        model["times_s"] = {key: [time] for key, time in rows.items()}
        model["cold"]["time_s"] = rows.pop("P01")
        model["warm"]["time_s"] = spread(list(rows.values())).to_dict()
        warm.append(rows)
    return {**content, "warm_slowdown": summarise_times(*warm)["slowdown"]}


def images_of_matrix() -> dict[str, Any]:
    """Fidelity of the published prompts' images; a baseline has the figures of the next pair."""
    pairs = [image_pair(f"P{number:02}", 300 + number, 20.0 + number, 0.1 * number) for number in range(1, 12)]
    for pair, other in pairwise(pairs):
        baseline = {name: other[name] for name in ("identical", "psnr_db", "ssim", "lpips")}
        grid = {"original": 0.1, "baseline": 0.2, "added": other["periodic_grid"]["added"]}
        pair["baseline"] = {"seed": 1000 + pair["seed"], **baseline, "periodic_grid": grid}

    def five(values: list[float]) -> dict[str, Any]:
        mean, median = statistics.fmean(values), statistics.median(values)
        return {"mean": mean, "median": median, "min": min(values), "max": max(values), "count": len(values)}

    def summary(numbers: range) -> dict[str, Any]:
        return {
            "psnr_db": five([20.0 + number for number in numbers]),
            "ssim": five([0.5 for _ in numbers]),
            "lpips": None,
            "periodic_grid_added": five([0.1 * number for number in numbers]),
        }

    return image_fidelity(pairs[:10], {**summary(range(1, 11)), "baseline": summary(range(2, 12))})


def full_metrics() -> dict[str, Any]:
    """Metrics with footprints, parameters and stages; those of the published release where they are known."""
    content = published_metrics()
    footprints = {
        "original": [("img_mod", 1000, {"F32": 10_000_000_000}), ("attn", 264, {"F32": 6_416_900_608})],
        "quantized": [("img_mod", 1000, {"BF16": 2_942_501_632}), ("attn", 1224, {"U8": 1_358_954_496})],
    }
    for name, families in footprints.items():
        totals = dict(sum((Counter(sizes) for _, _, sizes in families), Counter()))
        content["models"][name]["transformer"] = {
            "tensors": sum(tensors for _, tensors, _ in families),
            "parameters": 4_104_225_152,
            "bytes": sum(totals.values()),
            "bytes_by_dtype": totals,
            "families": [
                {"name": family, "tensors": tensors, "bytes": sum(sizes.values()), "bytes_by_dtype": sizes}
                for family, tensors, sizes in families
            ],
        }
        rows = {row["id"]: row[name]["time_s"] for row in published_matrix()["prompts"]}
        content["models"][name]["stages"] = {"vae": {"time_s": statistics.median(rows.values())}}
    return {**content, "transformer_storage_reduction_vs_bf16_percent": 47.6}


def matrix_with_stages() -> dict[str, Any]:
    """A matrix whose time is all spent in one stage."""
    matrix = full_matrix()
    for row in matrix["prompts"]:
        for model in ("original", "quantized"):
            row[model]["stages"] = {"vae": {"time_s": row[model]["time_s"]}}
    return {**matrix, "settings": {"num_inference_steps": 20, "guidance_scale": 5.0}}


FIDELITY = "image_fidelity.json"
FULL = {MATRIX: matrix_with_stages, OFFLOAD: full_offload, FIDELITY: images_of_matrix, METRICS: full_metrics}


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        (MATRIX, ("summary", "slowdown", "ratio_of_means_percent"), 12.0),
        (MATRIX, ("summary", "slowdown", "pairs"), 99),
        (MATRIX, ("summary", "original", "stdev"), 0.1),
        (MATRIX, ("summary", "quantized", "count"), 9),
        (OFFLOAD, ("models", "original", "cold", "time_s"), 1.0),
        (OFFLOAD, ("models", "original", "warm", "time_s", "mean"), 15.0),
        (OFFLOAD, ("models", "quantized", "times_s", "P11"), [1.0]),
        (OFFLOAD, ("warm_slowdown", "mean_difference_s"), 0.0),
        (OFFLOAD, ("warm_prompts",), [f"P{number:02}" for number in range(10, 1, -1)]),
        (FIDELITY, ("summary", "psnr_db", "mean"), 30.0),
        (FIDELITY, ("summary", "lpips"), {"mean": 1, "median": 1, "min": 1, "max": 1, "count": 1}),
        (FIDELITY, ("pairs", 0, "psnr_db"), 35.0),
        (FIDELITY, ("pairs", 0, "id"), "P99"),
        (FIDELITY, ("pairs", 0, "seed"), 1),
        (METRICS, ("slowdown",), {"pairs": 10, "ratio_of_means_percent": 1.0, "mean_difference_s": 2.58}),
        (METRICS, ("models", "original", "generation_time_s", "count"), 9),
        (METRICS, ("models", "original", "load_times_s"), [1.0, 2.0]),
        (METRICS, ("models", "original", "generation_time_s", "mean"), 15.4),
        (METRICS, ("models", "original", "transformer", "parameters"), 4_104_225_151),
        (METRICS, ("models", "quantized", "transformer", "parameters"), 2_830_205_312),
        (METRICS, ("models", "quantized", "transformer", "tensors"), 2223),
        (METRICS, ("models", "quantized", "stages", "vae", "time_s"), 1.0),
        (METRICS, ("transformer_storage_reduction_vs_bf16_percent",), 73.8),
        (FIDELITY, ("num_inference_steps",), 4),
        (FIDELITY, ("summary", "baseline", "psnr_db", "mean"), 26.0),
        (METRICS, PEAK, {"mean": 20.0, "max": 27.467}),
    ],
)
def test_what_can_be_computed_is_computed_again(
    name: str, path: tuple[str | int, ...], value: Any, folder: Path
) -> None:
    for file, make in FULL.items():
        write(folder, file, make())
    read_evidence_folder(folder)
    write(folder, name, replace_at(FULL[name](), path, value))
    with pytest.raises(EvidenceError):
        read_evidence_folder(folder)


def test_files_of_different_days_agree(folder: Path) -> None:
    for name, date in ((METRICS, "2026-05-24"), (MATRIX, "2026-05-25")):
        content = FULL[name]()
        write(folder, name, {**content, "environment": {"hardware": "x", "torch": "2.8.0", "date": date}})
    read_evidence_folder(folder)


def test_images_are_those_that_were_measured(folder: Path) -> None:
    matrix = published_matrix()
    digest = hashlib.sha256(b"an image").hexdigest()
    matrix["prompts"][0]["original"] |= {"image": "images/a.png", "image_sha256": digest}
    write(folder, MATRIX, matrix)
    # A folder without its images is still evidence.
    read_evidence_folder(folder)
    image = folder / "images" / "a.png"
    image.parent.mkdir()
    image.write_bytes(b"an image")
    read_evidence_folder(folder)
    image.write_bytes(b"another image")
    with pytest.raises(EvidenceError, match=r"images/a\.png is not the image that was measured"):
        read_evidence_folder(folder)
    matrix["prompts"][0]["original"]["image"] = "../a.png"
    write(folder, MATRIX, matrix)
    with pytest.raises(EvidenceError, match="is outside of the folder"):
        read_evidence_folder(folder)


def test_what_contradicts_itself_is_not_written(tmp_path: Path) -> None:
    name, content = edited(MATRIX, "prompts", 3, "id", value="P03")
    with pytest.raises(EvidenceError):
        write_evidence(tmp_path, name, content)
    assert not list(tmp_path.iterdir())
    write_evidence(tmp_path, MATRIX, published_matrix())
    assert read_evidence(tmp_path / MATRIX)[1] == published_matrix()


def test_what_several_schemas_define_they_define_alike() -> None:
    definitions: dict[str, Any] = {}
    for name in {form.schema for form in FORMATS.values()} | {"bench", "evidence"}:
        for key, definition in load_schema(name).get("$defs", {}).items():
            if key not in ("model", "matrix"):
                assert definitions.setdefault(key, definition) == definition, (name, key)
