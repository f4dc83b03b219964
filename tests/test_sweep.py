"""Several quantized models of one original: what is taken over, what the files say, and what a card shows of it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import converter
from converter.console import SILENT
from converter.errors import EvidenceError, UsageError
from converter.measurement.benchmark.image_files import BASELINE, image_name
from converter.measurement.benchmark.journal import LOAD_KEY, TAKEN_OVER, Cell, Journal
from converter.measurement.benchmark.measuring import Bench
from converter.measurement.benchmark.pairing import find_pairs
from converter.measurement.benchmark.sharing import count_taken_over, take_over
from converter.measurement.benchmark.sweep import name_members, sweep
from converter.measurement.benchmark.trace_files import FLAT_KEY, flat_name, trace_file, trace_key
from converter.measurement.evidence.files import read_evidence, write_evidence
from converter.measurement.evidence.names import IMAGES_NAME, MATRIX_NAME, METRICS_NAME, ORIGINAL, QUANTIZED, SWEEP_NAME
from converter.measurement.evidence.sweep import describe_sweep, read_sweep
from converter.presentation.card.make_card import CardReport, make_card
from converter.presentation.card.options import CardOptions
from converter.presentation.card.sweep import write_sweep_table
from converter.presentation.tables.measurements import matrix_table
from converter.presentation.tables.table import NOTHING
from converter.schemas import load_schema
from tests.benches import DRAWING, LIMIT
from tests.conftest import ROOT, Lensconv, call, command, names_in, snapshot, time_limit
from tests.expected import check_expected
from tests.test_bench_parts import Inputs

LOAD = {"time_s": 1.0, "peak_rss_gb": 1.0, "cache_warm": True, "components": {}}
MODES = "standard,offload"
STANDARD, OFFLOAD = (Cell(mode, 0, 0, ORIGINAL) for mode in MODES.split(","))


@pytest.fixture(scope="module")
def inputs(tiny_repo: Path, tiny_release: Path, suite: Path) -> Inputs:
    return Inputs.open(tiny_repo, tiny_release, suite)


def figures(number: int) -> dict[str, Any]:
    """Figures of an image that nothing disturbed."""
    return {"time_s": 1 + number / 8, "peak_rss_gb": 1 + number / 16, "pixels_sha256": f"{number % 10}" * 64}


def put(file: Path, content: bytes) -> str:
    """Write a file, and return its sha256."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def measure(bench: Bench, model: str) -> None:
    """Note all that is missing of a model, as workers would."""
    for cell in (cell for cell in bench.cells if cell.model == model):
        bench.journal.worker += 1
        if (cell, LOAD_KEY) not in bench.journal.measured:
            bench.journal.note(cell, LOAD_KEY, LOAD)
        for number, task in enumerate(bench.missing(cell), bench.journal.worker):
            found = figures(number)
            if task.image is not None:
                found["image_sha256"] = put(Path(task.image), f"{task.key} of {model}".encode())
            bench.journal.note(cell, task.key, found)
            if task.trace is not None:
                digest = put(Path(task.trace), f"trace of {task.key}".encode())
                bench.journal.note(cell, trace_key(Path(task.trace).stem), {"sha256": digest, "blocks": False})


@contextmanager
def measured(inputs: Inputs, folder: Path, **options: Any) -> Iterator[tuple[Bench, Bench]]:
    """A first benchmark whose original is measured, with its flat field, and a later one."""
    with ExitStack() as journals:
        first, later = (
            inputs.bench(journals.enter_context(Journal(folder / name, {}, restart=False)), MODES, **options)
            for name in ("first", "later")
        )
        measure(first, ORIGINAL)
        if (STANDARD, FLAT_KEY) not in first.journal.measured:
            digest = put(first.output / flat_name(ORIGINAL), b"flat")
            first.journal.note(STANDARD, FLAT_KEY, {**figures(9), "image_sha256": digest})
        yield first, later


def taken(bench: Bench) -> set[tuple[Cell, str]]:
    return {place for place, found in bench.journal.measured.items() if found["worker"] == TAKEN_OVER}


def keys(bench: Bench, cell: Cell) -> list[str]:
    return [task.key for task in bench.missing(cell)]


def test_what_a_later_benchmark_takes_over(inputs: Inputs, tmp_path: Path) -> None:
    """Everything but the timed prompts: figures, images, trajectories and the flat field."""
    with measured(inputs, tmp_path, pairs=3, timing_prompts=2, trajectory_prompts=2) as (first, later):
        take_over(first, later)
        baselines = [f"{key}+1000" for key in ("A1", "B2", "C3")]
        standard = {"C3", *baselines, FLAT_KEY, trace_key("A1"), trace_key("B2")}
        assert taken(later) == {*((STANDARD, key) for key in standard), (OFFLOAD, "C3")}
        assert (keys(later, STANDARD), keys(later, OFFLOAD)) == (["A1", "B2"], ["A1", "B2"])
        assert count_taken_over(later) == 5
        for place in taken(later):
            assert later.journal.measured[place] == {**first.journal.measured[place], "worker": TAKEN_OVER}
        images = [image_name(BASELINE, prompt) for prompt in inputs.suite.prompts]
        images += [image_name(ORIGINAL, inputs.suite.prompts[2]), flat_name(ORIGINAL)]
        for name in (*images, *(str(trace_file(Path(), key)) for key in ("A1", "B2"))):
            assert (later.output / name).samefile(first.output / name)
        assert not (later.output / image_name(ORIGINAL, inputs.suite.prompts[0])).exists()
        before = (later.journal.file.read_bytes(), snapshot(later.output))
        take_over(first, later)
        assert (later.journal.file.read_bytes(), snapshot(later.output)) == before


def test_the_timed_pair_is_not_interrupted_by_what_is_taken_over(inputs: Inputs, tmp_path: Path) -> None:
    with measured(inputs, tmp_path, pairs=3, timing_prompts=2) as (first, later):
        take_over(first, later)
        for model in (ORIGINAL, QUANTIZED):
            later.journal.worker += 1
            for number, key in enumerate(("A1", "B2")):
                later.journal.note(Cell("standard", 0, 0, model), key, figures(number))
        (pair,) = find_pairs(later.journal, later.suite, later.options, "standard").pairs
        assert (pair.interrupted, pair.used, pair.original_s) == (False, True, 2.125)
        later.journal.worker += 1
        later.journal.note(Cell("offload", 0, 0, ORIGINAL), "A1", figures(1))
        assert TAKEN_OVER not in later.journal.cell_of


def test_with_too_few_pairs_for_a_comparison_the_whole_session_is_taken_over(inputs: Inputs, tmp_path: Path) -> None:
    """And its times are not compared; with more pairs in a later run, that pair is measured as a whole."""
    with measured(inputs, tmp_path, pairs=1) as (first, later):
        take_over(first, later)
        assert (keys(later, STANDARD), keys(later, OFFLOAD)) == ([], [])
        assert {(cell, LOAD_KEY) for cell in (STANDARD, OFFLOAD)} <= taken(later)
        measure(later, QUANTIZED)
        found = find_pairs(later.journal, later.suite, later.options, "standard")
        (pair,) = found.pairs
        assert (found.prompts, pair.interrupted, pair.original_s, pair.used) == ((), False, None, False)
        assert [*pair.conditions] == []
        matrix = inputs.write_files(later.journal)[MATRIX_NAME]
        assert [row[ORIGINAL].get("taken_over") for row in matrix["prompts"]] == [True] * 3
        assert [row[QUANTIZED].get("taken_over") for row in matrix["prompts"]] == [None] * 3
        ratios = [[row[5] for row in matrix_table(found, ("", "")).rows] for found in (matrix, without_marks(matrix))]
        assert (set(ratios[0]), NOTHING in ratios[1]) == ({NOTHING}, False)
        more = inputs.bench(later.journal, "standard", pairs=3)
        assert [cell for cell in more.cells if cell.attempt] == [
            Cell("standard", 0, 1, model) for model in (ORIGINAL, QUANTIZED)
        ]


def without_marks(matrix: dict[str, Any]) -> dict[str, Any]:
    """The same matrix, as if its figures were all its own."""
    rows = [{**row, ORIGINAL: {**row[ORIGINAL], "taken_over": False}} for row in matrix["prompts"]]
    return {**matrix, "prompts": rows}


def test_images_are_copied_where_links_are_impossible(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), source, None, target)

    monkeypatch.setattr(os, "link", refuse)
    with measured(inputs, tmp_path, pairs=3, timing_prompts=2) as (first, later):
        take_over(first, later)
        image = image_name(ORIGINAL, inputs.suite.prompts[2])
        files = [bench.output / image for bench in (first, later)]
        assert files[0].read_bytes() == files[1].read_bytes()
        assert not files[0].samefile(files[1])
        assert names_in(files[1].parent) == [files[1].name]


@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_an_image_that_is_not_as_it_was_measured_is_not_taken_over(damage: str, inputs: Inputs, tmp_path: Path) -> None:
    with measured(inputs, tmp_path, pairs=3, timing_prompts=2) as (first, later):
        image = first.output / image_name(BASELINE, inputs.suite.prompts[1])
        trace = trace_file(first.output, "A1")
        for file in (image, trace):
            file.unlink()
            if damage == "changed":
                file.write_bytes(b"another")
        take_over(first, later)
        assert keys(later, STANDARD) == ["A1", "B2", "B2+1000"]
        assert not (later.output / image.relative_to(first.output)).exists()
        assert (STANDARD, trace_key("A1")) not in taken(later)
        # Its own image that was changed is replaced by the one that is as it was measured.
        other = later.output / image_name(BASELINE, inputs.suite.prompts[0])
        other.unlink()
        other.write_bytes(b"another")
        take_over(first, later)
        assert other.samefile(first.output / other.relative_to(later.output))


def test_a_run_that_is_killed_anywhere_continues(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process ends before each line, after the file that belongs to it; the next one takes over the rest."""
    with measured(inputs, tmp_path / "whole", pairs=3, timing_prompts=2) as (first, later):
        take_over(first, later)
        whole = {name: content for name, content in snapshot(later.output).items() if name != later.journal.file.name}
        lines = taken(later)
    original = Journal.take_over
    for survived in range(len(lines)):
        folder = tmp_path / str(survived)
        with measured(inputs, folder, pairs=3, timing_prompts=2) as (first, later):
            left = iter([True] * survived)

            def end_process(self: Journal, cell: Cell, key: str, found: Any, left: Any = left) -> None:
                if not next(left, False):
                    os._exit(9)
                original(self, cell, key, found)

            monkeypatch.setattr(Journal, "take_over", end_process)
            process = os.fork()
            if process == 0:
                take_over(first, later)
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9
            monkeypatch.undo()
        with measured(inputs, folder, pairs=3, timing_prompts=2) as (first, later):
            assert len(taken(later)) == survived
            take_over(first, later)
            assert taken(later) == lines
            found = snapshot(later.output)
            rows = found.pop(later.journal.file.name).decode().splitlines()[1:]
            assert (found, len(rows)) == (whole, len(lines))


def test_what_failed_in_this_run_fails_for_all(inputs: Inputs, tmp_path: Path) -> None:
    with measured(inputs, tmp_path, pairs=3, timing_prompts=2) as (first, later):
        for bench in (first, later):
            bench.journal.measured.pop((STANDARD, "C3"), None)
        first.failed[STANDARD, "C3"] = "out of memory"
        first.failed[STANDARD, "A1"] = "hung"
        take_over(first, later)
        assert later.failed == {(STANDARD, "C3"): "out of memory"}
        assert later.journal.failures == {(STANDARD, "C3"): ["out of memory"]}
        assert keys(later, STANDARD) == ["A1", "B2"]
    with Journal(tmp_path / "later", {}, restart=False) as journal:
        again = inputs.bench(journal, MODES, pairs=3, timing_prompts=2)
        assert keys(again, STANDARD) == ["A1", "B2", "C3"]


@pytest.mark.parametrize(
    ("places", "said"),
    [
        ([], "no quantized model is named"),
        (["a/x", "b/x"], "a/x and b/x have the same name, x"),
        (["a/x", "a/x/"], "a/x and a/x have the same name, x"),
        (["hf://owner/x", "b/x"], "hf://owner/x and b/x have the same name, x"),
        (["hf://owner/x", "hf://owner/x@v1"], "have the same name, x"),
        (["a", "/"], "/: its measurements cannot be in a folder called ''"),
        (["a", "b/sweep.json"], "b/sweep.json: its measurements cannot be in a folder called 'sweep.json'"),
        (["a", "b\udcff"], "its measurements cannot be in a folder called"),
    ],
)
def test_names_that_folders_cannot_have(places: Sequence[str], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        name_members([place if place.startswith("hf:") else Path(place) for place in places])
    assert said in caught.value.message


def test_names_of_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert name_members([Path("a/b"), "hf://owner/c@v1", Path()]) == ["b", "c", tmp_path.name]


def test_all_models_are_checked_before_anything_is_written(
    tiny_repo: Path, tiny_release: Path, tmp_path: Path, lensconv: Lensconv
) -> None:
    """The last of three models cannot be used, or is the first one under another name."""
    link, broken, output = tmp_path / "link", tmp_path / "broken", tmp_path / "evidence"
    link.symlink_to(tiny_release)
    shutil.copytree(tiny_release, broken)
    (broken / "transformer" / "config.json").write_text("{")
    for last, said in ((link, "are the same folder"), (broken, "config.json"), (tmp_path / "none", "no such folder")):
        outcome = lensconv("bench", tiny_repo, tiny_release, last, "--out", output, *DRAWING, "--json")
        assert (outcome.code, said in outcome.result["error"]["message"]) == (2, True), outcome.stdout
        assert not output.exists()


def write_folder(inputs: Inputs, folder: Path, lpips: float) -> None:
    """Write the measurements of a benchmark of four pairs, and of its images."""
    with Journal(folder, {}, restart=False) as journal:
        bench = inputs.bench(journal, "standard", pairs=4, timing_prompts=2)
        for model in (ORIGINAL, QUANTIZED):
            measure(bench, model)
        matrix = inputs.write_files(journal)[MATRIX_NAME]
    content = json.loads((ROOT / "tests" / "measured.json").read_text("utf-8"))[IMAGES_NAME]
    for pair, row in zip(content["pairs"], matrix["prompts"], strict=False):
        pair |= {"id": row["id"], "seed": row["seed"]}
    content["pairs"][1]["lpips"] = lpips
    mean = lpips / 2
    content["summary"]["lpips"] |= {"mean": mean, "median": mean, "max": lpips}
    content["num_inference_steps"] = matrix["settings"]["num_inference_steps"]
    content["not_measured"] = {"trajectory": "the disk was full"}
    write_evidence(folder, IMAGES_NAME, {**content, "sources": matrix["sources"]})


@pytest.fixture
def folder(inputs: Inputs, tmp_path: Path) -> Path:
    """A sweep of two models, with its file."""
    for name, lpips in (("uint4|x", 0.5), ("int8", 0.25)):
        write_folder(inputs, tmp_path / "sweep" / name, lpips)
    write_evidence(tmp_path / "sweep", SWEEP_NAME, describe_sweep(tmp_path / "sweep", ["uint4|x", "int8"]))
    return tmp_path / "sweep"


def test_every_figure_is_from_a_file_with_its_sha256(folder: Path, lensconv: Lensconv) -> None:
    content = read_sweep(folder)
    assert [row["lpips"] for row in content["models"]] == [0.25, 0.125]
    metrics, matrix, images = (
        read_evidence(folder / "int8" / name)[1] for name in (METRICS_NAME, MATRIX_NAME, IMAGES_NAME)
    )
    row = content["models"][1]
    assert row["denoiser_bytes"] == metrics["models"][QUANTIZED]["transformer"]["bytes"]
    assert (row["slowdown"], row["time_s"]) == (matrix["summary"]["slowdown"], matrix["summary"][QUANTIZED]["mean"])
    assert (row["cer"], row["psnr_db"]) == (0.25, images["summary"]["psnr_db"]["mean"])
    assert row["not_measured"] == {"trajectory": "the disk was full"}
    assert row["weights"]["transformer"] == metrics["sources"][QUANTIZED]["transformer"]
    for model in (content["original"], *content["models"]):
        for name, digest in model["files"].items():
            assert hashlib.sha256((folder / model["folder"] / name).read_bytes()).hexdigest() == digest
    shown = [lensconv("evidence", place, "--json") for place in (folder, folder / SWEEP_NAME)]
    assert [outcome.result["files"][0]["schema"] for outcome in shown] == ["sweep", "sweep"]
    outcome = lensconv("charts", folder, "--json")
    assert outcome.result["error"]["hint"] == "Name one of the folders in sweep.json."
    outcome = lensconv("evidence", folder)
    assert (outcome.code, "int8" in outcome.stderr, "the disk was full" in outcome.stderr) == (0, True, True)


def test_a_figure_that_was_edited_or_is_stale_is_refused(folder: Path, inputs: Inputs, lensconv: Lensconv) -> None:
    kept = (folder / SWEEP_NAME).read_text()

    def refused(text: str) -> str:
        (folder / SWEEP_NAME).write_text(text)
        outcome = lensconv("evidence", folder, "--json")
        assert outcome.code == 2
        message: str = outcome.result["error"]["message"]
        return message

    assert "models.1.lpips is 0.124, and the folders have 0.125" in refused(
        kept.replace('"lpips": 0.125', '"lpips": 0.124')
    )
    assert "additional" in refused(kept.replace('"mode"', '"mood"', 1)).lower()
    assert "does not match" in refused(kept.replace('"folder": "int8"', '"folder": "../int8"'))
    (folder / "int8").rename(folder / "moved")
    assert "int8: no such folder" in refused(kept)
    write_folder(inputs, folder / "int8", 0.75)
    assert "models.1" in refused(kept)


def test_a_sweep_is_of_one_original_and_of_this_version(folder: Path) -> None:
    file = folder / "int8" / MATRIX_NAME
    content = json.loads(file.read_text())
    for key, said in (("settings", "the settings are not those of uint4"), ("mode", "earlier version")):
        others = [folder / "int8" / name for name in (METRICS_NAME, IMAGES_NAME)]
        kept = {other: other.read_bytes() for other in (file, *others)}
        changed = {**content, "settings": {**content["settings"], "num_inference_steps": 3}}
        if key == "mode":
            changed = {name: value for name, value in content.items() if name != "mode"}
        file.write_text(json.dumps(changed))
        metrics = json.loads(others[0].read_text())
        others[0].write_text(json.dumps({**metrics, "settings": changed["settings"]}))
        others[1].write_text(
            json.dumps(
                {**json.loads(kept[others[1]]), "num_inference_steps": changed["settings"]["num_inference_steps"]}
            )
        )
        with pytest.raises(EvidenceError, match=said):
            describe_sweep(folder, ["uint4|x", "int8"])
        for other, before in kept.items():
            other.write_bytes(before)


def card(release: Path, evidence: Path | None) -> tuple[CardReport, str]:
    report = make_card(release, evidence, CardOptions(repo="owner/Tiny", license="mit"))
    text = (release / "README.md").read_text()
    found = text.partition("\n## Beside other models\n")[2].partition("\n## ")[0]
    return report, found


def test_a_card_shows_the_sweep_and_marks_the_release(folder: Path, release: Path) -> None:
    report, section = card(release, folder / "uint4|x")
    assert "sweep" in report.sections
    assert SWEEP_NAME in [file.name for file in report.files]
    table = write_sweep_table(folder).read_text()
    check_expected("sweep.md", f"{section}\n{table}")
    # The release has all that its card needs, and no measurements of others.
    assert card(release, None)[1] == section
    assert "int8" not in names_in(release)


def test_a_card_leaves_out_a_sweep_that_is_stale(folder: Path, release: Path, inputs: Inputs) -> None:
    write_folder(inputs, folder / "again", 0.5)
    (folder / "again" / "measurements.jsonl").unlink()
    evidence = shutil.copytree(folder / "int8", folder / "other")
    edited = json.loads((evidence / METRICS_NAME).read_text())
    edited["environment"]["date"] = "2001-01-01"
    (evidence / METRICS_NAME).write_text(json.dumps(edited))
    report, section = card(release, evidence)
    assert (section, "sweep" in report.sections) == ("", False)
    assert any("the sweep is left out" in warning for warning in report.warnings)
    (folder / SWEEP_NAME).unlink()
    report, section = card(release, folder / "int8")
    assert (section, [warning for warning in report.warnings if "sweep" in warning]) == ("", [])


def rows_of(output: Path) -> list[dict[str, Any]]:
    file = output / "measurements.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()[1:]] if file.exists() else []


def drawn(output: Path) -> list[tuple[str, int, str]]:
    """Mode, pair and key of all that the original generated in a benchmark, without what was taken over."""
    return [
        (row["mode"], row["pair"], row["key"])
        for row in rows_of(output)
        if row["model"] == ORIGINAL and row["worker"] != TAKEN_OVER and row["key"] != LOAD_KEY
    ]


@pytest.fixture(scope="module")
def recipes(tiny_repo: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four releases of the tiny pipeline."""
    folder = tmp_path_factory.mktemp("recipes")
    for name, recipe in (("lens", "lens-uint4-static"), ("int8", "sdnq-int8"), ("uint4", "sdnq-uint4")):
        converter.convert(tiny_repo, folder / name, recipe)
    kept = converter.ConvertOptions(quantize_from="float32")
    converter.convert(tiny_repo, folder / "float32", "lens-uint4-static", kept)
    return [folder / name for name in ("lens", "int8", "uint4", "float32")]


@pytest.mark.long
def test_four_recipes_after_a_kill(tiny_repo: Path, recipes: list[Path], suite: Path, tmp_path: Path) -> None:
    """The original draws each image once, whatever is killed; and every folder is a complete one."""
    output = tmp_path / "sweep"
    arguments = ("bench", tiny_repo, *recipes, "--prompts", suite, "--out", output, *DRAWING, "--mode", "standard")
    arguments = (*arguments, "--pairs", 1, "--trajectory-prompts", 1, "--json")
    process = subprocess.Popen(command(*arguments), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + LIMIT
    while not any(row["worker"] == TAKEN_OVER for row in rows_of(output / "int8")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with time_limit(LIMIT):
        done = call(*arguments, "--fail-over", "psnr=1")
    assert done.code == 0, done.stderr
    jsonschema.validate(done.result, load_schema("bench"))
    first, *others = done.result["models"]
    assert (first["resumed"], first["taken_over"]) == (9, 0)
    assert [(model["images"], model["taken_over"]) for model in others] == [(9, 6)] * 3
    keys = ["A1", "B2", "C3", "A1+1000", "(trace) A1", "B2+1000", "C3+1000", FLAT_KEY]
    assert [key for _, _, key in drawn(output / "lens")] == keys
    assert [drawn(output / name) for name in ("int8", "uint4", "float32")] == [[], [], []]
    for name in ("lens", "int8", "uint4", "float32"):
        images = read_evidence(output / name / IMAGES_NAME)[1]
        assert (len(images["pairs"]), images["trajectory"]["prompts"][0]["id"]) == (3, "A1")
        assert not (output / name / ".trajectory").exists()
        baselines = [row["baseline"]["image"] for row in read_evidence(output / name / MATRIX_NAME)[1]["prompts"]]
        assert all((output / name / file).samefile(output / "lens" / file) for file in baselines)
    content = read_sweep(output)
    assert [row["folder"] for row in content["models"]] == [path.name for path in recipes]
    assert not any("slowdown" in row for row in content["models"])
    assert [call(tool, output / "int8").code for tool in ("grid", "charts", "report", "evidence")] == [0] * 4
    outcome = call(*arguments, "--fail-over", "psnr=35")
    assert (outcome.code, drawn(output / "uint4")) == (1, [])
    verdicts = {model["name"]: model["thresholds"][0]["ok"] for model in outcome.result["models"]}
    assert (verdicts["int8"], verdicts["lens"]) == (True, False)


@pytest.mark.long
def test_times_are_compared_within_own_pairs(tiny_repo: Path, recipes: list[Path], suite: Path, tmp_path: Path) -> None:
    prompts, output = converter.read_suite(suite), tmp_path / "sweep"
    options = converter.BenchOptions(mode="standard", pairs=3, timing_prompts=1, trajectory_prompts=0)
    drawing = converter.GenerateOptions(steps=2, height=64, width=96)
    with time_limit(LIMIT):
        report = sweep(tiny_repo, recipes[:2], output, prompts, options, drawing, reporter=SILENT)
    assert report.ok
    assert all("slowdown" in row for row in report.content["models"])
    timed = {("standard", pair, "A1") for pair in range(3)}
    assert set(drawn(output / "int8")) == timed
    assert set(drawn(output / "lens")) == timed | {
        ("standard", 0, key) for key in ("B2", "C3", "A1+1000", "B2+1000", "C3+1000")
    }
    for name in report.models:
        matrix = read_evidence(output / name / MATRIX_NAME)[1]
        assert {row[ORIGINAL]["images_agree"] for row in matrix["prompts"]} == {True}
        assert not any(pair["interrupted"] for pair in matrix["timed_pairs"])
    marks = [row[ORIGINAL].get("taken_over", False) for row in matrix["prompts"]]
    assert marks == [False, True, True]


def test_measurements_of_one_model_and_of_several_do_not_share_a_folder(
    tiny_repo: Path, tiny_release: Path, tmp_path: Path, lensconv: Lensconv
) -> None:
    (tmp_path / "several").mkdir()
    (tmp_path / "several" / "sweep.json").write_text("{}")
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "measurements.jsonl").write_text("")
    other = shutil.copytree(tiny_release, tmp_path / "other")
    for output, models, reason in (
        ("several", [tiny_release], "contains the measurements of several quantized models"),
        ("one", [tiny_release, other], "contains the measurements of one quantized model"),
        ("other/transformer", [tiny_release, other], f"is inside {other}"),
    ):
        done = lensconv("bench", tiny_repo, *models, "--out", tmp_path / output, "--device", "cpu", "--json")
        assert done.code == 2
        assert done.result["error"]["message"] == f"{tmp_path / output}: {reason}"
