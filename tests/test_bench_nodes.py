"""What a benchmark on a cluster adds, without a cluster: numbers of workers, a queue, paths, rows without times."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from converter.cluster.connection import check_address
from converter.cluster.environment import adopt_environment, shared_environment
from converter.cluster.losses import MOST_LOSSES, Losses, Lost
from converter.console import Progress
from converter.errors import ClusterError, MalformedCheckpoint, MissingInput, UsageError
from converter.measurement.benchmark.assembly import Assembly
from converter.measurement.benchmark.events import WorkerEvents
from converter.measurement.benchmark.job import Job, Task
from converter.measurement.benchmark.journal import LOAD_KEY, Cell, Journal
from converter.measurement.benchmark.machine import describe_machine
from converter.measurement.benchmark.node_measuring import _give_up_with, _others
from converter.measurement.benchmark.node_places import _Place
from converter.measurement.benchmark.node_repos import FoundRepo, SharedRepo
from converter.measurement.benchmark.node_worker import FILES, _Tasks
from converter.measurement.benchmark.options import BenchOptions
from converter.measurement.benchmark.pairing import find_pairs
from converter.measurement.evidence.files import read_evidence_folder, write_evidence
from converter.measurement.evidence.sweep import _times
from converter.presentation.tables.figures import number
from converter.presentation.tables.measurements import matrix_table
from tests.conftest import Lensconv
from tests.test_bench_parts import Inputs, measured

OPTIONS = BenchOptions(mode="standard", pairs=3, timing_prompts=1, trajectory_prompts=0)


@pytest.fixture
def inputs(tiny_repo: Path, tiny_release: Path, suite: Path) -> Inputs:
    return Inputs.open(tiny_repo, tiny_release, suite)


def place() -> _Place:
    nodes: Any = None
    need: Any = None
    return _Place(nodes, need, "run", is_timed=True)


def timed(journal: Journal, cell: Cell, worker: int) -> None:
    conditions = {"seconds": 1.0, "cpus": 2, "other_cpu_s": 0.0, "cpu_probe_ms": 20.0}
    journal.note(cell, LOAD_KEY, {"time_s": 1.0, "cache_warm": True, "components": {}}, worker)
    journal.note(cell, "A1", {**measured(1), "conditions": conditions}, worker)


def test_a_pair_on_two_nodes_counts_as_interrupted(inputs: Inputs, tmp_path: Path) -> None:
    with Journal(tmp_path, {}, restart=False) as journal:
        places = [place(), place()]
        # Sessions of two pairs are noted in the order in which they end.
        numbers: list[int] = []
        for found in places:
            numbers.append(found.number(journal))
            found._hosted = object()  # type: ignore[assignment]
        for pair, model in product((0, 1), ("original", "quantized")):
            first = (pair == 0) == (model == "original")
            worker = numbers[pair] if first else places[pair].number(journal)
            if (pair, first) == (1, False):
                # The process was lost, so the second session runs in another one.
                places[pair]._hosted = None
                worker = places[pair].number(journal)
            timed(journal, Cell("standard", pair, 0, model), worker)
        found_pairs = find_pairs(journal, inputs.suite, OPTIONS, "standard")
    assert [(pair.pair, pair.interrupted) for pair in found_pairs.pairs] == [(0, False), (1, True)]
    assert found_pairs.to_repeat == (1,)


def test_too_many_losses_in_a_row_are_an_error() -> None:
    losses = Losses()
    for _ in range(2):
        losses.reset()
        for _ in range(MOST_LOSSES):
            losses.note(Lost("the node died"))
    with pytest.raises(ClusterError, match="Ray lost 4 processes in a row: the node died"):
        losses.note(Lost("the node died"))


def test_images_whose_pipeline_does_not_load_are_given_up(inputs: Inputs, tmp_path: Path) -> None:
    with Journal(tmp_path, {}, restart=False) as journal:
        bench = replace(inputs.bench(journal, "standard"), options=OPTIONS)
        others = _others(bench, bench.planned("standard"))
        # Of both models B2 and C3, and three baselines of the original; A1 is timed.
        assert others.size == 7
        taken = others.take(None)
        assert taken is not None
        _, (cell, task) = taken
        assert (cell.model, task.key) == ("original", "B2")
        shown = Progress()
        _give_up_with(bench, cell, task, others, shown)
        assert others.size == 6
        bench.fail(cell, [task], "while loading: no memory", shown)
        _give_up_with(bench, cell, task, others, shown)
        assert {key for _, key in bench.failed} == {"B2", "C3", "A1+1000", "B2+1000", "C3+1000"}
        left = [item for _, item in iter(others.take, None)]
        assert [(cell.model, task.key) for cell, task in left] == [("quantized", "B2"), ("quantized", "C3")]


def test_files_of_a_node_come_back_and_its_paths_do_not(tmp_path: Path) -> None:
    folder = tmp_path / "node"
    folder.mkdir()
    task = Task("A1", {}, "/here/images/A1.png", trace="/here/.trajectory/A1.trace")
    job = Job("/here/repo", {}, "none", "cpu", "float32", [task, Task("B2", {}, None, replay="/here/B2.trace")])
    tasks = _Tasks(job, FoundRepo("/there/repo", {"/there/repo/x": [1, 2, 3, 4]}), folder, {"/here/B2.trace": b"trace"})
    own, other = tasks.job.tasks
    assert (tasks.job.repo, tasks.job.states) == ("/there/repo", {"/there/repo/x": [1, 2, 3, 4]})
    assert own.image is not None
    assert own.trace is not None
    assert other.replay is not None
    assert Path(other.replay).read_bytes() == b"trace"
    Path(own.image).write_bytes(b"image")
    Path(own.trace).write_bytes(b"long")
    event = tasks.with_files({"event": "generated", "key": "A1", "time_s": 1.0})
    assert event[FILES] == {"/here/images/A1.png": b"image", "/here/.trajectory/A1.trace": b"long"}
    assert not Path(own.image).exists()
    failed = {"event": "failed", "reason": f"/there/repo/vae: no; {own.image}: no"}
    assert tasks.with_files(failed)["reason"] == "/here/repo/vae: no; /here/images/A1.png: no"


def test_repos_on_a_node_have_the_same_content(tiny_release: Path, inputs: Inputs, release: Path) -> None:
    shared = SharedRepo.of(inputs.subjects["quantized"])
    found = shared.find()
    assert found.folder == str(tiny_release.absolute())
    # A copy, as on a node without a shared file system, has other times, but the same content.
    copied = replace(shared, folder=str(release))
    assert copied.find().states.keys() == {str(release / file.path) for file in shared.files}
    config = release / "transformer" / "config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(MalformedCheckpoint, match=r"config\.json: has another content than where the command runs"):
        copied.find()
    config.unlink()
    with pytest.raises(MissingInput, match=r"config\.json: no such file"):
        copied.find()


def test_images_that_were_not_generated_alone_have_no_times(inputs: Inputs, tmp_path: Path, lensconv: Lensconv) -> None:
    with Journal(tmp_path, {}, restart=False) as journal:
        bench = replace(inputs.bench(journal, "standard"), options=OPTIONS)
        for cell in bench.planned("standard"):
            for task in bench.missing(cell):
                if task.image is not None and task.key != "A1":
                    events = WorkerEvents(bench, cell, journal.new_worker(), [task], Progress(), is_timed=False)
                    events.take({"event": "loaded", "time_s": 9.0, "cache_warm": True, "components": {}})
                    events.take({"event": "generated", "key": task.key, **measured(5), "conditions": {}})
            # The load before such an image does not count either.
            assert (cell, LOAD_KEY) not in journal.measured
            timed(journal, cell, journal.new_worker())
        files = Assembly(
            journal, inputs.suite, inputs.settings, inputs.subjects, describe_machine("cpu"), OPTIONS
        ).files()
    for name, content in files.items():
        write_evidence(tmp_path, name, content)
    read_evidence_folder(tmp_path)
    matrix, metrics = files["comparison_matrix.json"], files["benchmark_metrics.json"]
    for row in matrix["prompts"]:
        for model in ("original", "quantized"):
            side = row[model]
            assert ("time_s" in side, "times_s" in side, "stages" in side) == (row["id"] == "A1",) * 3
            assert side["peak_rss_gb"] > 0
    assert _times(matrix, "original")["time_prompts"] == 1
    assert metrics["models"]["original"]["load_times_s"] == [1.0] * 3
    assert metrics["models"]["original"]["generation_time_s"]["count"] == 1
    shown = [lensconv(command, tmp_path) for command in ("evidence", "charts")]
    assert [outcome.code for outcome in shown] == [0, 0]
    assert "failed" not in shown[0].stdout
    table = matrix_table(matrix, ["Original", "Quantized"])
    times = {row[0]: [str(cell) for cell in row[3:6]] for row in table.rows}
    assert times["B2"] == [str(number(None))] * 3
    assert str(number(None)) not in times["A1"]


@pytest.mark.parametrize(
    "address", ["nonsense", "ray://10.0.0.1:10001", "http://10.0.0.1:1", "10.0.0.1:", ":6379", "", "a:0", "a:65536"]
)
def test_what_is_not_an_address_of_ray_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="is not an address of Ray"):
        check_address(address)


def test_addresses_of_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("local", "auto", "10.0.0.1:6379", "head.example.org:6379"):
        check_address(address)
    monkeypatch.setenv("RAY_ADDRESS", "ray://10.0.0.1:10001")
    with pytest.raises(UsageError, match="RAY_ADDRESS is an address for clients"):
        check_address("auto")


def test_processes_on_nodes_have_the_variables_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDNQ_ALLOW_FP8_MM", "1")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    shared = json.loads(json.dumps(shared_environment()))
    monkeypatch.setenv("SDNQ_ALLOW_FP8_MM", "0")
    monkeypatch.setenv("SDNQ_OTHER", "1")
    # Ray sets it to the number of processors that a process asked for.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    adopt_environment(shared)
    assert shared_environment() == shared
    assert "OMP_NUM_THREADS" not in shared
