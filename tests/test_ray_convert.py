"""Conversions on a cluster of Ray with three nodes, whose releases are those of one machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from converter.cluster.processes import Process
from scripts.ray_nodes import VARIABLES, nodes
from tests.clusters import descendants
from tests.conftest import ROOT, TIME_LIMIT, Serve, command, names_in, run_process, run_python, snapshot
from tests.faulty_hub import FaultyHub
from tests.hubs import run_client
from tests.loopback import PLACE, TOKEN, Handler, LoopbackHub
from tests.pipelines import NAMES
from tests.streams import asked, slow_down

pytestmark = pytest.mark.long

#: Seconds in which processes on nodes end after the one that they work for.
ENDING = 30


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Three nodes that stay alive."""
    with nodes(3) as running:
        yield running


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of a command that leaves its temporary folders where the test looks for them."""
    (tmp_path / "temporary").mkdir()
    return {**os.environ, **VARIABLES, "TMPDIR": str(tmp_path / "temporary"), "NO_PROXY": "*", "HF_TOKEN": TOKEN}


@pytest.fixture
def slow(serve: Serve, sharded: Path, environment: dict[str, str]) -> LoopbackHub:
    """A Hub from which a conversion takes seconds."""
    hub = serve(sharded)
    slow_down(hub, 0.1)
    environment["HF_ENDPOINT"] = hub.url
    return hub


def converted(source: Path | str, output: Path, *options: object, **settings: Any) -> dict[str, Any]:
    """What a conversion reports."""
    done = run_process("convert", source, output, *options, "--json", **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def begin(*arguments: object, environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("convert", *arguments, "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
    )


def wait_until(condition: Callable[[], bool], limit: float = TIME_LIMIT) -> None:
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def noted(output: Path) -> int:
    """Lines in the journal of a conversion."""
    journal = output.parent / f".{output.name}.lensconv" / "journal"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def hosts() -> list[Process]:
    """Processes that hold objects on nodes of clusters of this process, and of commands that it runs."""
    return [process for process in descendants() if text_of(process, "comm").startswith("ray::Host")]


def text_of(process: Process, name: str) -> str:
    """What the system says about a process; empty if it has ended."""
    with suppress(OSError):
        return Path("/proc", str(process.number), name).read_text(errors="replace")
    return ""


def is_alive(process: Process) -> bool:
    return process.started in text_of(process, "stat").split()


@pytest.mark.parametrize("options", [(), ("--recipe", "sdnq-int8", "--max-shard-size", "300KB")])
def test_files_of_this_machine(
    options: tuple[str, ...], cluster: Any, sharded: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    report = converted(sharded, tmp_path / "out", *options, "--ray", cluster.address, env=environment)
    local = converted(sharded, tmp_path / "local", *options)
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "local")
    assert {**report, **varying(local)} == local
    assert names_in(tmp_path) == ["local", "out", "temporary"]
    assert names_in(tmp_path / "temporary") == []


def varying(report: dict[str, Any]) -> dict[str, Any]:
    return {name: report[name] for name in ("output", "elapsed_s", "bytes_read_per_s", "peak_rss_bytes")}


def test_several_components_by_a_relative_path(
    cluster: Any, several: Path, several_release: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    shutil.copytree(several, tmp_path / "source")
    found = {**environment, "PYTHONPATH": str(ROOT)}
    names = [word for name in NAMES for word in ("--component", name)]
    converted("source", tmp_path / "out", *names, "--ray", cluster.address, cwd=tmp_path, env=found)
    assert snapshot(tmp_path / "out") == snapshot(several_release)


@pytest.mark.parametrize("transport", ["lfs", "xet"])
def test_from_the_hub(transport: str, cluster: Any, hub: FaultyHub, sharded: Path, tmp_path: Path) -> None:
    """The token is in a file that nodes do not look for, and the repo is private."""
    xet = transport == "xet"
    program = """
api.create_repo(sys.argv[2], private=True)
api.upload_folder(repo_id=sys.argv[2], folder_path=sys.argv[1])
"""
    repo = f"alice/ray-{transport}"
    run_client(hub, tmp_path / "home", program, sharded, repo, xet=xet)
    environment = {**hub.environment(os.environ, tmp_path / "home", xet=xet), **VARIABLES}
    (tmp_path / "home").mkdir(exist_ok=True)
    (tmp_path / "home" / "token").write_text(environment.pop("HF_TOKEN"))
    report = converted(f"hf://{repo}", tmp_path / "out", "--ray", cluster.address, env=environment)
    local = converted(f"hf://{repo}", tmp_path / "local", env=environment)
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "local")
    assert report["hub"] == local["hub"]


def test_a_process_and_a_node_that_die(
    sharded: Path, slow: LoopbackHub, tmp_path: Path, environment: dict[str, str]
) -> None:
    with nodes(3) as cluster:
        process = begin(PLACE, tmp_path / "out", "--ray", cluster.address, environment=environment)
        wait_until(lambda: noted(tmp_path / "out") > 12)
        first, *_ = found = hosts()
        assert len(found) == 3
        os.kill(first.number, signal.SIGKILL)
        wait_until(lambda: len({*hosts()} - {first}) == 3)
        cluster.remove_node(cluster.list_all_nodes()[-1])
        stdout, stderr = process.communicate(timeout=TIME_LIMIT)
        assert process.returncode == 0, stdout + stderr
        assert json.loads(stdout)["resumed_tensors"] == 0
    # The command reads each header, each node one of them, and only the files on their way are asked for again.
    counts = [asked(slow, file.name) for file in sharded.glob("*.safetensors")]
    assert sum(counts) <= 2 * len(counts) + 3 + 2
    slow.faults.clear()
    converted(PLACE, tmp_path / "local", env=environment)
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "local")


def test_processes_that_die_again_and_again(
    cluster: Any, slow: LoopbackHub, tmp_path: Path, environment: dict[str, str]
) -> None:
    """As where the memory of nodes is too small; what was finished before stays."""
    process = begin(PLACE, tmp_path / "out", "--ray", cluster.address, environment=environment)
    wait_until(lambda: noted(tmp_path / "out") > 12)
    slow_down(slow, 60)
    while process.poll() is None:
        for host in hosts():
            with suppress(ProcessLookupError):
                os.kill(host.number, signal.SIGKILL)
        time.sleep(0.1)
    stdout, stderr = process.communicate()
    assert process.returncode == 3, stdout + stderr
    assert "Ray lost 4 processes in a row" in json.loads(stdout)["error"]["message"]
    slow.faults.clear()
    assert converted(PLACE, tmp_path / "out", env=environment)["resumed_tensors"] > 0


@pytest.mark.parametrize("continues_on_nodes", [False, True])
def test_the_command_is_killed_and_goes_on(
    continues_on_nodes: bool,
    cluster: Any,
    slow: LoopbackHub,
    tmp_path: Path,
    environment: dict[str, str],
) -> None:
    """With and without a cluster the journal is the same."""
    on_nodes = ("--ray", cluster.address)
    first, second = (on_nodes, on_nodes) if continues_on_nodes else (on_nodes, ())
    process = begin(PLACE, tmp_path / "out", *first, environment=environment)
    wait_until(lambda: noted(tmp_path / "out") > 12)
    process.kill()
    process.communicate()
    wait_until(lambda: not hosts(), ENDING)
    lines = noted(tmp_path / "out")
    slow.faults.clear()
    report = converted(PLACE, tmp_path / "out", *second, env=environment)
    assert report["resumed_tensors"] >= lines - 10
    converted(PLACE, tmp_path / "local", env=environment)
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "local")


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("address", ["local", "cluster"])
def test_ctrl_c_leaves_no_process(address: str, cluster: Any, tmp_path: Path, environment: dict[str, str]) -> None:
    where = cluster.address
    if address == "local":
        # Paths of Ray's sockets must be short.
        where, environment = address, {name: environment[name] for name in environment if name != "TMPDIR"}
    before = set(descendants())
    process = begin(PLACE, tmp_path / "out", "--ray", where, environment=environment)
    wait_until(lambda: noted(tmp_path / "out") > 6)
    # Nodes that stay keep processes for other commands.
    started = hosts() if address == "cluster" else list({*descendants()} - before)
    assert {*hosts()} & {*started}
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=TIME_LIMIT)
    assert process.returncode == 130, stdout + stderr
    assert "Traceback" not in stderr
    wait_until(lambda: not any(map(is_alive, started)), 5)
    assert names_in(tmp_path) == [".out.lensconv", "temporary"]
    assert names_in(tmp_path / "temporary") == []


def test_a_source_that_nodes_do_not_see(
    cluster: Any, sharded: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    """Such a path is in the current folder of each process."""
    shutil.copytree(sharded, tmp_path / "source")
    options = ("--ray", cluster.address)
    done = run_process(
        "convert",
        "/proc/self/cwd/source",
        tmp_path / "out",
        *options,
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 2
    text = " ".join(done.stderr.split())
    assert "error: node " in text
    assert "no such file. Share the source with all nodes" in text
    assert names_in(tmp_path) == ["source", "temporary"]


def test_other_bytes_than_the_hub_has_recorded(
    cluster: Any, serve: Serve, sharded: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    folder = shutil.copytree(sharded, tmp_path / "repo")
    environment["HF_ENDPOINT"] = serve(folder).url
    file = sorted(folder.glob("*.safetensors"))[1]
    content = bytearray(file.read_bytes())
    content[-1000] ^= 1
    file.write_bytes(content)
    done = run_process("convert", PLACE, tmp_path / "out", "--ray", cluster.address, env=environment)
    assert done.returncode == 4
    text = " ".join(done.stderr.split())
    assert file.name in text
    assert "in the Hub's record" in text
    assert names_in(tmp_path) == ["repo", "temporary"]


def test_a_hub_that_nodes_cannot_read(
    cluster: Any, serve: Serve, sharded: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    """What the machine of the command reads, nodes may not; here, they ask for a file once more."""
    hub = serve(sharded)
    environment["HF_ENDPOINT"] = hub.url
    first = min(file.name for file in sharded.glob("*.safetensors"))
    count = [0]

    def refuse(handler: Handler) -> None:
        count[0] += 1
        if count[0] > 1:
            handler.reply(b"", 403)
        else:
            handler.piece(sharded / first)

    hub.faults[f"/lfs/{first}"] = refuse
    done = run_process("convert", PLACE, tmp_path / "out", "--ray", cluster.address, env=environment)
    assert done.returncode == 4
    assert "error: node " in done.stderr
    assert names_in(tmp_path) == ["temporary"]


def test_from_python(cluster: Any, sharded: Path, tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from converter import convert
for number, address in enumerate([sys.argv[3], "local", None]):
    convert(Path(sys.argv[1]), Path(sys.argv[2]) / str(number), ray=address)
"""
    done = run_python(program, sharded, tmp_path, cluster.address)
    assert done.returncode == 0, done.stderr
    assert snapshot(tmp_path / "0") == snapshot(tmp_path / "1") == snapshot(tmp_path / "2")
