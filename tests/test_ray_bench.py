"""The benchmark on a cluster of three real nodes: the figures of one machine, and what happens to nodes that die."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from converter.errors import ClusterError, DeviceError
from converter.measurement.evidence.files import read_evidence_folder
from scripts.ray_nodes import VARIABLES, differences, nodes, processes_with
from tests.benches import DRAWING
from tests.conftest import Lensconv, command, run_process

pytestmark = pytest.mark.long
#: Seconds that nothing may take.
LIMIT = 480
#: Three pairs, of which each has one timed prompt; five images and three baselines are not timed.
OPTIONS = ("--pairs", 3, "--timing-prompts", 1, "--mode", "standard", "--device", "cpu", *DRAWING)


@pytest.fixture(scope="module", autouse=True)
def _variables() -> Iterator[None]:
    with mock.patch.dict(os.environ, VARIABLES):
        yield


@pytest.fixture
def cluster() -> Iterator[Any]:
    with nodes(3) as started:
        yield started


@pytest.fixture(scope="module")
def plain(
    tiny_repo: Path, tiny_release: Path, suite: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """The evidence of the benchmark on one machine."""
    output = tmp_path_factory.mktemp("plain") / "evidence"
    arguments = ("bench", tiny_repo, tiny_release, "--out", output, "--prompts", suite, *OPTIONS, "--pairs", 1)
    done = run_process(*arguments, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    return read_evidence_folder(output)


def journal_lines(output: Path) -> list[dict[str, Any]]:
    file = output / "measurements.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def wait_for(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_figures_are_those_of_one_machine_though_nodes_die(
    cluster: Any,
    plain: dict[str, dict[str, Any]],
    tiny_repo: Path,
    tiny_release: Path,
    suite: Path,
    tmp_path: Path,
) -> None:
    output = tmp_path / "evidence"
    arguments = ("bench", tiny_repo, tiny_release, "--out", output, "--prompts", suite, *OPTIONS, "--json")
    removed = []

    def kill() -> None:
        for node, lines in zip(cluster.list_all_nodes()[1:], (2, 9), strict=True):
            wait_for(lambda lines=lines: len(journal_lines(output)) > lines)  # type: ignore[misc]
            cluster.remove_node(node)
            removed.append(len(journal_lines(output)))

    killer = threading.Thread(target=kill)
    killer.start()
    done = run_process(*arguments, "--ray", cluster.address, timeout=LIMIT)
    killer.join()
    assert done.returncode == 0, done.stderr
    assert len(removed) == 2
    result = json.loads(done.stdout)
    assert (result["ok"], result["failed"]) == (True, [])
    found = read_evidence_folder(output)
    assert list(differences(plain, found)) == []
    # Only images of the timed prompt were generated alone.
    for row in found["comparison_matrix.json"]["prompts"]:
        for model in ("original", "quantized"):
            assert ("time_s" in row[model]) == (row["id"] == "A1")
    # A pair that lost its node is measured once more on another one, and does not count as it was.
    used = [pair for pair in found["comparison_matrix.json"]["timed_pairs"] if pair["used"]]
    assert [pair["pair"] for pair in used] == [0, 1, 2]
    assert not any(pair["interrupted"] for pair in used)


def test_nothing_runs_after_an_interrupt(tiny_repo: Path, tiny_release: Path, suite: Path, tmp_path: Path) -> None:
    output, mark = tmp_path / "evidence", f"mark-{time.time_ns()}"
    arguments = ("bench", tiny_repo, tiny_release, "--out", output, "--prompts", suite, *OPTIONS, "--ray", "local")
    environment = {**os.environ, "LENSCONV_TEST_MARK": mark, "HOME": str(tmp_path), "TMPDIR": "/tmp"}  # noqa: S108
    del environment["RAY_AUTH_MODE"]
    process = subprocess.Popen(
        command(*arguments), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: len(journal_lines(output)) > 2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    wait_for(lambda: not processes_with(mark))
    # Ray writes a token there by default.
    assert not (tmp_path / ".ray").exists()


def test_a_cluster_that_ends_is_an_error(
    cluster: Any, tiny_repo: Path, tiny_release: Path, suite: Path, tmp_path: Path
) -> None:
    output = tmp_path / "evidence"
    arguments = ("bench", tiny_repo, tiny_release, "--out", output, "--prompts", suite, *OPTIONS, "--json")
    process = subprocess.Popen(
        command(*arguments, "--ray", cluster.address), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    wait_for(lambda: len(journal_lines(output)) > 2)
    cluster.head_node.kill_gcs_server(check_alive=False)
    result, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == ClusterError.exit_code
    assert json.loads(result)["error"]["message"].startswith("the head of the cluster of Ray")


def test_clusters_that_cannot_be_used_are_refused(
    cluster: Any,
    tiny_repo: Path,
    tiny_release: Path,
    suite: Path,
    tmp_path: Path,
    lensconv: Lensconv,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(*options: object) -> tuple[int, str]:
        output = tmp_path / "evidence"
        arguments = ("bench", tiny_repo, tiny_release, "--out", output, "--prompts", suite, *OPTIONS, *options)
        done = lensconv(*arguments, "--json")
        assert not output.exists()
        return done.code, done.result["error"]["message"]

    assert refused("--ray", "nonsense") == (2, "--ray nonsense: is not an address of Ray")
    code, message = refused("--ray", "127.0.0.1:1")
    assert code == ClusterError.exit_code
    assert message.startswith("--ray 127.0.0.1:1: ")
    assert refused("--ray", cluster.address, "--device", "cuda") == (
        DeviceError.exit_code,
        "--device cuda: no node of the cluster has a GPU",
    )
    code, message = refused("--ray", cluster.address, "--device", "cuda:1")
    assert (code, message) == (2, "--device cuda:1: with --ray, Ray chooses the GPU")
    # What takes a whole node would be alone on the smaller one only.
    larger = cluster.add_node(num_cpus=2, include_dashboard=False)
    cluster.wait_for_nodes()
    code, message = refused("--ray", cluster.address)
    assert code == ClusterError.exit_code
    assert re.search(r"^node \S+ \(\w+\): Ray has \d CPUs and 0 GPUs there, and \d and 0 on node", message)
    cluster.remove_node(larger)
    # Nodes with another version of a package are named.
    monkeypatch.setattr("converter.cluster.environment.package_versions", lambda: {"sdnq": "9.9"})
    code, message = refused("--ray", cluster.address)
    assert code == ClusterError.exit_code
    assert re.search(r"^node \S+ \(\w+\): sdnq is \S+, and 9.9 here$", message)
