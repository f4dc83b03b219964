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
from scipy.stats import ttest_1samp

from converter.errors import EvidenceError, MissingInput
from converter.measurement.evidence.files import FORMATS, read_evidence, read_evidence_folder, write_evidence
from converter.measurement.evidence.folder_agreement import disagreements_between
from converter.measurement.evidence.names import IMAGES_NAME
from converter.measurement.evidence.origin import grid_text, is_drawn_from
from converter.measurement.evidence.pairs import read_pairs
from converter.measurement.evidence.statistics import (
    combine,
    compare_prompts,
    paired_slowdown,
    percent_change,
    spread,
    summarise_times,
)
from converter.schemas import load_schema
from tests import charts, published
from tests.benches import folded
from tests.cases import check_cases
from tests.conftest import Lensconv
from tests.expected import check_expected
from tests.forms import accepted
from tests.timed_pairs import matrix_over_pairs, over_prompts, pair


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The four published files."""
    return published.write_published(tmp_path)


def write(folder: Path, name: str, content: object) -> Path:
    file = folder / name
    file.write_text(json.dumps(content))
    return file


def test_the_published_figures(folder: Path, lensconv: Lensconv) -> None:
    result, shown = lensconv("evidence", folder, "--json").result, lensconv("evidence", folder)
    # And those of the files that are written today.
    for name, make in (FULL | {"weight_fidelity.json": lambda: charts.weights(attn=(21.314, 19.412, 0.99))}).items():
        write(folder, name, make())
    text = shown.stderr + lensconv("evidence", folder).stderr
    lines = [line.rstrip() for line in text.splitlines() if line[:3].strip()]
    check_expected("evidence.txt", "\n".join([folded(result), *lines]))


def test_labels_are_shown_as_text(tmp_path: Path, lensconv: Lensconv) -> None:
    """Neither as markup of the terminal nor with control characters."""
    write(tmp_path, *edited(METRICS, "models", "original", "label", value="[bold]a[/bold]\x1b"))
    assert "[bold]a[/bold]\\x1b" in lensconv("evidence", tmp_path).stderr
    files = [{"name": METRICS, "schema": "benchmark_metrics", "version": "lensconv.benchmark/1"}]
    assert lensconv("evidence", tmp_path / METRICS, "--json").result == {"files": files, "matrix": None}


@pytest.mark.parametrize("count", [3, 4, 7])
def test_the_interval_is_students(count: int) -> None:
    ratios = np.random.default_rng(count).normal(0.2, 0.05, count)
    found = paired_slowdown(ratios.tolist())
    assert found is not None
    ends = 100 * np.expm1(ttest_1samp(ratios, 0).confidence_interval(0.95))
    assert found.percent_interval == pytest.approx(ends, abs=0.001)
    assert found.percent == pytest.approx(100 * np.expm1(ratios.mean()), abs=0.001)


def test_statistics_are_those_by_hand() -> None:
    method = {"method": "Student's t over pairs of adjacent processes", "confidence": 0.95}
    # Three pairs: 4.3027 standard errors on either side. Equal ratios make an interval without width.
    found = paired_slowdown([math.log(ratio) for ratio in (1.0, 1.1, 1.21)])
    assert found is not None
    assert found.to_dict() == {"pairs": 3, "percent": 10.0, "percent_interval": [-13.19, 39.386], **method}
    same = paired_slowdown([math.log(0.5)] * 3)
    assert same is not None
    assert (same.percent, same.percent_interval) == (-50.0, [-50.0, -50.0])
    assert [paired_slowdown(ratios) for ratios in ([], [0.1], [0.1, 0.1])] == [None] * 3
    assert spread([4.0]).to_dict() == {"mean": 4.0, "median": 4.0, "min": 4.0, "max": 4.0, "count": 1}
    many = {"mean": 3.0, "median": 2.0, "stdev": 2.646, "min": 1.0, "max": 6.0, "count": 3}
    assert spread([2.0, 6.0, 1.00004]).to_dict() == many
    assert spread([1.0, 3.0]).stdev == 1.414
    spreads = summarise_times({"a": 1.0, "b": 3.0}, {"c": 9.0})
    assert spreads == {"original": spread([1.0, 3.0]).to_dict(), "quantized": spread([9.0]).to_dict()}
    over_two = {"pairs": 2, "ratio_of_means_percent": 50.0, "mean_difference_s": 1.0}
    assert compare_prompts({"a": 1.0, "b": 3.0, "c": 1.0}, {"b": 4.0, "a": 2.0}) == over_two
    assert [compare_prompts({"a": 1.0}, {"b": 1.0}), compare_prompts({"a": 0.0}, {"a": 1.0})] == [None, None]
    assert (percent_change(2, 1), percent_change(3, 4)) == (-50.0, 33.3)
    rows = [{"time_s": 1.0, "peak_rss_gb": 2.0}, {"time_s": 3.0, "peak_rss_gb": 1.0, "peak_allocated_gb": 5.0}]
    assert combine(rows) == {"time_s": 2.0, "peak_rss_gb": 2.0}


def edited(name: str, *path: str | int, value: Any) -> tuple[str, dict[str, Any]]:
    """A published file with one figure changed."""
    return name, replace_at(published.PUBLISHED[name](), path, value)


def replace_at(content: dict[str, Any], path: Sequence[str | int], value: Any) -> dict[str, Any]:
    """The content, with another value at this path."""
    target: Any = content
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return content


METRICS, MATRIX, OFFLOAD, SUMMARY = published.PUBLISHED
FILES = [{"name": "model.safetensors", "bytes": 1, "sha256": "a" * 64}]
SOURCES = {name: {"repo_id": "x/y", "transformer": FILES} for name in ("original", "quantized")}


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"schema": 1, "schema": 1}', b"\xff", b"[" * 100_000])
def test_files_that_are_no_json_object(content: bytes, tmp_path: Path, lensconv: Lensconv) -> None:
    (tmp_path / MATRIX).write_bytes(content)
    outcome = lensconv("evidence", tmp_path / MATRIX, "--json")
    assert (outcome.code, outcome.result["error"]["type"]) == (2, "EvidenceError")


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="contains no measurements"):
        read_evidence_folder(tmp_path)
    for read, reason in ((read_evidence_folder, "no such folder"), (read_evidence, "no such file")):
        with pytest.raises(MissingInput, match=reason):
            read(tmp_path / "nothing.json")


def test_failed_rows_are_left_out_of_statistics(folder: Path, lensconv: Lensconv) -> None:
    name, content = edited(MATRIX, "prompts", 2, "quantized", value={"failed": "killed by SIGKILL"})
    for model in ("original", "quantized"):
        content["prompts"][3][model] = {"failed": "no memory"}
    (folder / METRICS).unlink()
    write(folder, name, content)
    matrix = lensconv("evidence", folder, "--json").result["matrix"]
    assert (matrix["failed"], matrix["original"]["count"], matrix["quantized"]["count"]) == (3, 9, 8)
    assert matrix["over_prompts"]["prompts"] == len(matrix["rows"]) == 8
    assert "failed" in lensconv("evidence", folder).stderr


def full_offload() -> dict[str, Any]:
    """An offload benchmark with its times; those of the published rows."""
    content = published.published_offload()
    warm = []
    for name, model in content["models"].items():
        rows = {row["id"]: row[name]["time_s"] for row in published.published_matrix()["prompts"]}
        model["times_s"] = {key: [time] for key, time in rows.items()}
        model["cold"]["time_s"] = rows.pop("P01")
        model["warm"]["time_s"] = spread(list(rows.values())).to_dict()
        warm.append(rows)
    return {**content, "warm_slowdown": over_prompts(warm[0], warm[1], 10.1, 22.0, 1.538, 3.181)}


def images_of_matrix() -> dict[str, Any]:
    """Fidelity of the published prompts' images; a baseline has the figures of the next pair."""
    pairs = [published.image_pair(f"P{n:02}", 300 + n, 20.0 + n, 0.1 * n) for n in range(1, 12)]
    for first, other in pairwise(pairs):
        baseline = {name: other[name] for name in ("identical", "psnr_db", "ssim", "lpips")}
        grid = {"original": 0.1, "baseline": 0.2, "added": other["periodic_grid"]["added"]}
        first["baseline"] = {"seed": 1000 + first["seed"], **baseline, "periodic_grid": grid}

    def five(values: list[float]) -> dict[str, Any]:
        mean, median = statistics.fmean(values), statistics.median(values)
        return {"mean": mean, "median": median, "min": min(values), "max": max(values), "count": len(values)}

    def summary(numbers: range) -> dict[str, Any]:
        values = {"psnr_db": [20.0 + n for n in numbers], "ssim": [0.5] * len(numbers)}
        values["periodic_grid_added"] = [0.1 * n for n in numbers]
        return {"lpips": None, **{name: five(found) for name, found in values.items()}}

    return published.image_fidelity(pairs[:10], {**summary(range(1, 11)), "baseline": summary(range(2, 12))})


#: The date in the text encoder's system prompt, which images depend on.
DATE = "2026-05-23"


def full_metrics() -> dict[str, Any]:
    """Metrics with footprints, parameters and stages; those of the published release where they are known."""
    content = published.published_metrics()
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
        rows = {row["id"]: row[name]["time_s"] for row in published.published_matrix()["prompts"]}
        content["models"][name]["stages"] = {"vae": {"time_s": statistics.median(rows.values())}}
    content["settings"]["date"] = DATE
    return {**content, "transformer_storage_reduction_vs_bf16_percent": 47.6, "sources": copy.deepcopy(SOURCES)}


def matrix_with_stages() -> dict[str, Any]:
    """A matrix with the statistics of its rows, whose time is all spent in one stage."""
    matrix = published.published_matrix()
    times = [{row["id"]: row[model]["time_s"] for row in matrix["prompts"]} for model in ("original", "quantized")]
    matrix["summary"] = {
        **summarise_times(*times),
        "slowdown": over_prompts(times[0], times[1], 11.4, 22.3, 1.75, 3.433),
    }
    for row in matrix["prompts"]:
        for model in ("original", "quantized"):
            row[model]["stages"] = {"vae": {"time_s": row[model]["time_s"]}}
    settings = {"num_inference_steps": 20, "guidance_scale": 5.0, "date": DATE}
    return {**matrix, "settings": settings, "sources": copy.deepcopy(SOURCES)}


FULL = {MATRIX: matrix_with_stages, OFFLOAD: full_offload, METRICS: full_metrics, SUMMARY: published.PUBLISHED[SUMMARY]}
FULL["image_fidelity.json"] = images_of_matrix


def matrix_of_pairs() -> dict[str, Any]:
    """A matrix with four pairs, of which the third was disturbed, and measured once more."""
    matrix = published.published_matrix()
    sums = {"original": 0.0, "quantized": 0.0}
    for row in matrix["prompts"][:3]:
        for model in sums:
            time = row[model]["time_s"]
            row[model]["times_s"] = [round(time * factor, 3) for factor in (1, 0.95, 1.05, 1)]
            sums[model] += time
    matrix["summary"] = {}
    seconds = [
        [round(sums[model] * factor, 3) for model, factor in zip(sums, factors, strict=True)]
        for factors in ((1, 1), (1.05, 1), (7, 1), (1, 1.05), (0.95, 1))
    ]
    busy = {"attempt": 0, "used": False, "disturbed": {"original": ["other programs used 0.81 CPUs"]}}
    changes: list[dict[str, Any]] = [{}, {}, busy, {}, {"attempt": 1}]
    pairs = [pair(number, *seconds[at], **changes[at]) for at, number in enumerate((0, 1, 2, 3, 2))]
    return matrix_over_pairs(matrix, pairs, ["P01", "P02", "P03"])


def test_what_is_refused_and_what_is_just_accepted(tmp_path: Path, lensconv: Lensconv) -> None:
    """Published files, and full ones, with some values replaced; what can be computed is computed again."""

    def outcome(base: str, name: str, changes: dict[str, Any]) -> str:
        makers = {"full": FULL, "pairs": {MATRIX: matrix_of_pairs}, "published": published.PUBLISHED}[base]
        for file in tmp_path.iterdir():
            file.unlink()
        contents = {other: make() for other, make in makers.items()}
        for path, value in changes.items():
            replace_at(contents[name], [int(key) if key.isdigit() else key for key in path.split(".")], value)
        for other, content in contents.items():
            write(tmp_path, other, content)
        done = lensconv("evidence", tmp_path, "--json")
        error = done.result.get("error", {"message": "", "type": ""})
        assert (done.code, error["type"]) == ((2, "EvidenceError") if error["message"] else (0, ""))
        return str(error["message"]).replace(f"{tmp_path}/{name}: ", "").replace(f"{tmp_path}/", "")

    check_cases("evidence_cases.jsonl", outcome)


def test_pairs_with_equal_ratios_are_accepted(tmp_path: Path) -> None:
    """Of times with three digits, that is possible."""
    matrix = charts.matrix({"P01": (2.0, 3.0)})
    write_evidence(tmp_path, MATRIX, matrix_over_pairs(matrix, [pair(n, 2.0, 3.0) for n in range(3)], ["P01"]))
    slowdown = read_evidence(tmp_path / MATRIX)[1]["summary"]["slowdown"]
    assert (slowdown["percent"], slowdown["percent_interval"]) == (50.0, [50.0, 50.0])


def test_integers_with_a_point_are_accepted(tmp_path: Path) -> None:
    """JSON Schema counts 1.0 as an integer."""
    matrix = charts.matrix({"P01": (2.0, 3.0)})
    content = matrix_over_pairs(matrix, [pair(n, 2.0, 3.0 + n) for n in range(3)], ["P01"])
    content["timed_pairs"] = [{**row, "pair": float(row["pair"]), "attempt": 0.0} for row in content["timed_pairs"]]
    (tmp_path / MATRIX).write_text(json.dumps(content))
    assert [str(row.pair) for row in read_pairs(read_evidence(tmp_path / MATRIX)[1])] == ["0", "1", "2"]


def test_what_only_one_file_has_is_not_compared() -> None:
    for matrix in (published.published_matrix(), matrix_with_stages()):
        files = {METRICS: published.published_metrics(), MATRIX: matrix, IMAGES_NAME: images_of_matrix()}
        assert list(disagreements_between(files)) == []
    # A variable that is not set is known, too.
    files[METRICS]["environment"]["sdnq_environment"] = {}
    files[MATRIX]["environment"] = {"sdnq_environment": {"SDNQ_A": "1"}}
    (found,) = disagreements_between(files)
    assert found == (METRICS, f"environment.sdnq_environment is not the same in {MATRIX}")


def test_the_origin_of_a_grid_is_its_images_and_their_labels() -> None:
    row, measured = {"id": "P01", "scenario": "x", "seed": 1}, {"image": "a.png", "image_sha256": "b"}
    rows = [
        {**row, "original": measured, "quantized": {"failed": "c"}},
        {**row, "original": {}, "quantized": {"image": "d"}},
    ]
    assert json.loads(grid_text({"prompts": rows})) == [["P01", "x", 1, "b", "c"], ["P01", "x", 1, "", "d"]]
    assert not is_drawn_from(b"no picture", "")


@pytest.mark.parametrize(
    ("name", "key", "value", "hint"),
    [
        (METRICS, "schema", "lensconv.benchmark/3", "Update lensconv, or measure again with this version."),
        (METRICS, "schema", "lensconv.benchmark/0", "Measure again with `lensconv bench`; do not edit the file."),
        (METRICS, "schema", "lensconv.matrix/1", "Measure again with `lensconv bench`; do not edit the file."),
        (METRICS, "schema", "other/2", "Measure again with `lensconv bench`; do not edit the file."),
        (SUMMARY, "quant_transformer_dtypes", {"UINT8": 1}, "Convert again, or remove the file."),
    ],
)
def test_what_to_do_about_a_file(folder: Path, name: str, key: str, value: object, hint: str) -> None:
    file = write(folder, *edited(name, key, value=value))
    with pytest.raises(EvidenceError) as caught:
        read_evidence(file)
    assert caught.value.hint == hint


def test_images_are_those_that_were_measured(folder: Path) -> None:
    matrix = published.published_matrix()
    row, *rest = matrix["prompts"]
    named = {"image": "images/a.png", "image_sha256": hashlib.sha256(b"an image").hexdigest()}
    image = folder / "images" / "a.png"
    image.parent.mkdir()
    (folder / "link").symlink_to(folder)
    for part in ("original", "quantized", "baseline"):
        write(folder, MATRIX, {**matrix, "prompts": [{**row, part: {**row.get(part, {"seed": 1}), **named}}, *rest]})
        # A folder without its images is still evidence.
        read_evidence_folder(folder)
        image.write_bytes(b"an image")
        for place in (folder, folder / "link", folder / "images" / ".."):
            read_evidence_folder(place)
        image.write_bytes(b"another image")
        with pytest.raises(EvidenceError, match=r"images/a\.png is not the image that was measured"):
            read_evidence_folder(folder)
        image.unlink()
    row["original"] |= {**named, "image": "../a.png"}
    write(folder, MATRIX, matrix)
    with pytest.raises(EvidenceError, match="is outside of the folder"):
        read_evidence_folder(folder)


def test_what_contradicts_itself_is_not_written(tmp_path: Path) -> None:
    name, content = edited(MATRIX, "prompts", 3, "id", value="P03")
    with pytest.raises(EvidenceError):
        write_evidence(tmp_path, name, content)
    assert not list(tmp_path.iterdir())
    write_evidence(tmp_path, MATRIX, published.published_matrix())
    assert read_evidence(write(tmp_path, "a.json", published.published_summary()))[0].versions == ()
    assert (tmp_path / MATRIX).read_text("utf-8") == json.dumps(published.published_matrix(), indent=2) + "\n"
    assert read_evidence((tmp_path / MATRIX).rename(tmp_path / "other.json"))[1] == published.published_matrix()


def test_what_schemas_accept_although_it_is_missing_or_below_zero(folder: Path, lensconv: Lensconv) -> None:
    found = {name.removesuffix(".json"): make() for name, make in FULL.items()}
    found["evidence"] = lensconv("evidence", folder, "--json").result
    text = "".join(f"{name}: {', '.join(accepted(content, name))}\n" for name, content in found.items())
    check_expected("evidence_schemas.txt", text)


def test_what_several_schemas_define_they_define_alike() -> None:
    definitions: dict[str, Any] = {}
    for name in {form.schema for form in FORMATS.values()} | {"bench", "evidence"}:
        for key, definition in load_schema(name).get("$defs", {}).items():
            if key not in ("model", "matrix"):
                assert definitions.setdefault(key, definition) == definition, (name, key)
