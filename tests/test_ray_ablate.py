"""Ablations on the nodes of a cluster: the figures and images of one machine, also if a node or the command ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from converter import AblateOptions, ablate
from converter.cluster.losses import Losses, Lost
from converter.errors import DeviceError, UsageError
from converter.measurement.ablation.journal import JOURNAL_NAME
from converter.synthesis.synthesize import synthesize
from scripts import ray_nodes
from tests import clusters
from tests.conftest import command, snapshot
from tests.test_ablate import SMALL, SUITE, VARIANTS

pytestmark = pytest.mark.long
#: Images take so long that a node can end while it draws one.
SLOW = replace(SMALL, steps=8)


@pytest.fixture(scope="module")
def signs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ray") / "Lens"
    synthesize(folder, preset="signs")
    return folder


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> AblateOptions:
    file = tmp_path_factory.mktemp("variants") / "variants.toml"
    file.write_text(VARIANTS)
    return AblateOptions(level="images", variants=file, velocity_prompts=3, calls=2)


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which nodes, and commands as processes of their own, make temporary ones."""
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def cluster(temporary: Path) -> Iterator[Any]:
    # Ray's own folder has to have a short path.
    variables = {"TMPDIR": str(temporary), "RAY_TMPDIR": "/tmp"}  # noqa: S108
    with mock.patch.dict(os.environ, variables), ray_nodes.nodes(3) as found:
        yield found


def wait_for(condition: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


def kinds(output: Path) -> list[str]:
    """What the lines of a journal are."""
    file = output / JOURNAL_NAME
    lines = file.read_bytes().splitlines()[1:] if file.exists() else []
    # The last line may be half written.
    return [json.loads(line)["kind"] for line in lines[:-1]]


def processes(title: str) -> dict[int, int]:
    """Processes on the nodes of this test that Ray gave a title, and their parents."""
    found = {}
    for process in clusters.descendants():
        folder = Path("/proc") / str(process.number)
        with suppress(OSError):
            if (folder / "cmdline").read_text().startswith(title):
                found[process.number] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    return found


def working_node(cluster: Any) -> Any:
    """A node on which something is computed now."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        parents = processes("ray::Host.call").values()
        for node in cluster.list_all_nodes():
            if node.all_processes["raylet"][0].process.pid in parents:
                return node
    raise AssertionError("nothing is computed on a node")


def figures(output: Path) -> dict[str, bytes]:
    """What was measured, apart from the order in which it was, and the date."""
    found = snapshot(output)
    lines = found.pop(JOURNAL_NAME).splitlines()
    content = json.loads(found.pop("ablation.json"))
    del content["environment"]["date"]
    return {**found, "journal": b"\n".join(sorted(lines)), "content": json.dumps(content).encode()}


def test_figures_images_and_inputs_are_those_of_one_machine(
    signs: Path, options: AblateOptions, cluster: Any, tmp_path: Path
) -> None:
    for name, address in (("here", None), ("nodes", cluster.address)):
        made = replace(options, calibration=tmp_path / f"{name}.safetensors")
        assert ablate(signs, tmp_path / name, None, SUITE, made, SMALL, ray=address).ok
    assert figures(tmp_path / "nodes") == figures(tmp_path / "here")
    assert (tmp_path / "nodes.safetensors").read_bytes() == (tmp_path / "here.safetensors").read_bytes()
    # Nothing is left to measure here: both have the same journal.
    again = ablate(signs, tmp_path / "nodes", None, SUITE, options, SMALL)
    assert again.resumed == len(kinds(tmp_path / "nodes")) - 1


def test_a_node_that_dies_costs_a_retry(
    signs: Path, options: AblateOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(options, skip_baseline=True)
    ablate(signs, tmp_path / "here", None, SUITE, options, SLOW)
    lost, note = [], Losses.note

    def count(losses: Losses, loss: Lost) -> None:
        lost.append(loss)
        note(losses, loss)

    monkeypatch.setattr(Losses, "note", count)
    # The first node, which cannot be removed, computes nothing.
    with ray_nodes.nodes(1, cpus=0) as cluster:
        for _ in range(2):
            cluster.add_node(num_cpus=1, include_dashboard=False)
        cluster.wait_for_nodes()

        def end_node() -> None:
            wait_for(lambda: "image" in kinds(tmp_path / "nodes"))
            cluster.remove_node(working_node(cluster), allow_graceful=False)

        thread = threading.Thread(target=end_node)
        thread.start()
        try:
            ablate(signs, tmp_path / "nodes", None, SUITE, options, SLOW, ray=cluster.address)
        finally:
            thread.join()
    assert lost
    assert figures(tmp_path / "nodes") == figures(tmp_path / "here")


def test_ctrl_c_leaves_nothing_behind_and_the_run_continues(
    signs: Path, options: AblateOptions, cluster: Any, temporary: Path, tmp_path: Path
) -> None:
    suite, output = tmp_path / "three.toml", tmp_path / "evidence"
    suite.write_text(SUITE.to_toml())
    line = command(
        *("ablate", signs, "--out", output, "--variants", options.variants, "--level", "images", "--prompts", suite),
        *("--calls", 2, "--steps", 8, "--guidance", 1, "--height", 64, "--width", 64, "--device", "cpu"),
        *("--ray", cluster.address),
    )
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: "image" in kinds(output) or process.poll() is not None)
        assert processes("ray::Host")
        assert list(temporary.glob("lensconv-*"))
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    wait_for(lambda: not processes("ray::Host"), 20)
    assert not list(temporary.glob("lensconv-*"))
    report = ablate(signs, output, None, SUITE, options, SLOW)
    assert report.ok
    assert report.resumed > 100


def test_what_is_refused_before_work(signs: Path, options: AblateOptions, cluster: Any, tmp_path: Path) -> None:
    def attempt(**changes: Any) -> None:
        drawing = replace(SMALL, **changes.pop("drawing", {}))
        ablate(signs, tmp_path / "evidence", None, SUITE, options, drawing, **{"ray": cluster.address, **changes})

    with pytest.raises(UsageError, match="is not an address of Ray"):
        attempt(ray="nowhere")
    with pytest.raises(DeviceError, match="no node of the cluster has a GPU"):
        attempt(drawing={"device": "cuda"})
    with pytest.raises(UsageError, match="Ray chooses the GPU"):
        attempt(drawing={"device": "cuda:1"})
