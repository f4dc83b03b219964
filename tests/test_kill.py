"""Real processes, really killed. ``scripts/kill_test`` does the same at fifty moments."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from converter import open_checkpoint
from converter.synthesis.synthesize import synthesize
from tests.conftest import ROOT, TIME_LIMIT, call, command, names_in, run_process, run_program, run_python, snapshot
from tests.lora_files import write
from tests.tiny_models import save_model


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two blocks of the real width: 0.8 GB, a second's work."""
    folder = tmp_path_factory.mktemp("kill") / "source"
    synthesize(folder, layers=2)
    return folder


@pytest.fixture(scope="module")
def undisturbed(source: Path) -> dict[str, str]:
    """Checksums of what a run that nobody kills writes."""
    done = run_process("convert", source, source.parent / "undisturbed", "--json")
    assert done.returncode == 0, done.stderr
    return checksums(done.stdout)


def checksums(stdout: str) -> dict[str, str]:
    return {file["name"]: file["sha256"] for file in json.loads(stdout)["files"]}


def start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        preexec_fn=listen,
    )


def listen() -> None:
    """Undo what nohup does to its program and all that this starts."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def finished_tensors(output: Path, component: str = "") -> int:
    """Tensors of a component that the journal of a conversion says are finished; -1 before there is a journal."""
    try:
        journal = (output.parent / f".{output.name}.lensconv" / "journal").read_bytes()
    except FileNotFoundError:
        return -1
    return journal.count(f'\n{{"component": "{component}", '.encode())


def stop_conversion(
    source: Path, output: Path, sent: signal.Signals, lines: int, options: Sequence[str] = (), component: str = ""
) -> tuple[int, str, str, int]:
    """Send a signal to a conversion once so many tensors of a component are finished.

    Returns:
        Its exit code, what it printed on stdout and on stderr, and how many tensors were finished.
    """
    for _ in range(5):
        process = start("convert", source, output, *options, "--json")
        finished = -1
        while finished < lines and process.poll() is None:
            finished = max(finished, finished_tensors(output, component))
            time.sleep(0.002)
        process.send_signal(sent)
        stdout, stderr = process.communicate(timeout=TIME_LIMIT)
        if process.returncode != 0:
            return process.returncode, stdout, stderr, finished
        # The signal came too late.
        shutil.rmtree(output)
    raise AssertionError("every conversion was done before it could be stopped")


@pytest.mark.parametrize("lines", [9, 41])
def test_a_killed_run_goes_on(lines: int, source: Path, undisturbed: dict[str, str], tmp_path: Path) -> None:
    output = tmp_path / "out"
    code, _, stderr, finished = stop_conversion(source, output, signal.SIGKILL, lines)
    assert code == -signal.SIGKILL, stderr
    # Alone, it would plan on for seconds.
    wait_until_no_planner_is_left(1)
    assert not output.exists()
    done = run_process("convert", source, output, "--json")
    assert done.returncode == 0, done.stderr
    assert checksums(done.stdout) == undisturbed
    # A finished source tensor stands for at least one of the output.
    assert json.loads(done.stdout)["resumed_tensors"] >= finished
    assert names_in(tmp_path) == ["out"]
    assert set(snapshot(output)) == undisturbed.keys()


@pytest.mark.long
def test_a_killed_run_goes_on_inside_its_second_component(source: Path, tmp_path: Path) -> None:
    """Both have tensors of the same names; the first is finished at once, the second is large."""
    repo = tmp_path / "repo"
    save_model(repo / "transformer", "LensTransformer2DModel")
    # Hard links, which are files of the repo and take no space.
    shutil.copytree(source, repo / "transformer_2", copy_function=os.link)
    kind = ["diffusers", "LensTransformer2DModel"]
    (repo / "model_index.json").write_text(json.dumps({"transformer": kind, "transformer_2": kind}))
    names = ("--component", "transformer_2", "--component", "transformer")
    code, _, stderr, _ = stop_conversion(repo, tmp_path / "out", signal.SIGKILL, 9, names, component="transformer_2")
    assert code == -signal.SIGKILL, stderr
    finished = Counter(
        json.loads(line)["component"] for line in (tmp_path / ".out.lensconv/journal").read_text().splitlines()[1:-1]
    )
    counts = [len(open_checkpoint(repo, component=name).tensors) for name in finished]
    assert [*finished] == ["transformer", "transformer_2"]
    assert finished["transformer"] == counts[0]
    assert 8 <= finished["transformer_2"] < counts[1]
    assert not (tmp_path / "out").exists()
    done = run_process("convert", repo, tmp_path / "out", *names, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["components"][0]["tensors"] < report["resumed_tensors"] < report["tensors"]
    assert call("convert", repo, tmp_path / "undisturbed", *names).code == 0
    assert run_program("diff", "-r", tmp_path / "out", tmp_path / "undisturbed").returncode == 0
    assert names_in(tmp_path) == ["out", "repo", "undisturbed"]


def test_a_run_that_is_told_to_stop(source: Path, undisturbed: dict[str, str], tmp_path: Path) -> None:
    """By each signal, and the last of them goes on."""
    for sent, lines in ((signal.SIGTERM, 0), (signal.SIGINT, 10), (signal.SIGHUP, 30)):
        output = tmp_path / sent.name / "out"
        code, stdout, stderr, _ = stop_conversion(source, output, sent, lines)
        assert code == 130, stderr
        assert json.loads(stdout)["error"]["type"] == "Interrupted"
        assert "Run the same command again to continue." in stdout or lines == 0
        assert "Traceback" not in stderr
        assert not output.exists()
        wait_until_no_planner_is_left()
    done = run_process("convert", source, output, "--json")
    assert checksums(done.stdout) == undisturbed
    assert names_in(output.parent) == ["out"]


@pytest.mark.long
def test_ctrl_c_while_adapters_are_added(source: Path, undisturbed: dict[str, str], tmp_path: Path) -> None:
    """What was made of them is in a file by then, which the next run makes again."""
    shapes = {name.removesuffix(".weight"): shape for name, shape in open_checkpoint(source).shapes.items()}
    tensors = {}
    for path in (f"transformer_blocks.{block}.attn.{part}" for block in (0, 1) for part in ("img_qkv", "txt_qkv")):
        rows, columns = shapes[path]
        tensors[f"{path}.lora_A.weight"], tensors[f"{path}.lora_B.weight"] = torch.ones(4, columns), torch.ones(rows, 4)
        tensors[f"{path}.alpha"] = torch.tensor(0.1)
    options = ("--lora", f"{write(tmp_path / 'x.safetensors', tensors)}=0.3")
    code, stdout, stderr, finished = stop_conversion(source, tmp_path / "out", signal.SIGINT, 9, options)
    assert (code, json.loads(stdout)["error"]["type"]) == (130, "Interrupted")
    assert "Traceback" not in stderr
    assert names_in(tmp_path / ".out.lensconv" / "adapters") == ["adapter-0"]
    done = run_process("convert", source, tmp_path / "out", *options, "--json")
    assert json.loads(done.stdout)["resumed_tensors"] >= finished
    again = run_process("convert", source, tmp_path / "again", *options, "--json")
    assert undisturbed != checksums(done.stdout) == checksums(again.stdout)
    assert names_in(tmp_path) == ["again", "out", "x.safetensors"]


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.3, 0.6])
def test_a_command_that_is_stopped_early(delay: float, source: Path, tmp_path: Path) -> None:
    """Whenever the signal comes, it gives the exit code, or ends a process that does not listen yet."""
    process = start("convert", source, tmp_path / "out", "--json")
    time.sleep(delay)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=TIME_LIMIT)
    assert process.returncode in (-signal.SIGTERM, 130), stderr
    assert "Traceback" not in stderr
    assert not (tmp_path / "out").exists()
    if process.returncode == 130:
        assert json.loads(stdout)["error"]["type"] == "Interrupted"


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("exec('import os, signal; os.kill(os.getpid(), signal.SIGTERM)')", id="in-compiled-text"),
        pytest.param("import imported, time; time.sleep(60); print(imported)", id="in-an-import"),
        pytest.param("import finalized, time; finalized.Finalized(); time.sleep(60); print()", id="in-a-finalizer"),
    ],
)
def test_the_exit_code_holds_wherever_the_signal_comes(body: str, tmp_path: Path) -> None:
    """``python -m`` has an exit code of its own for the first case; numpy and torch do the like of the second."""
    (tmp_path / "imported.py").write_text(
        "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGTERM)\nexcept BaseException:\n    pass\n"
    )
    (tmp_path / "finalized.py").write_text(
        "import os, signal\nclass Finalized:\n    def __del__(self):\n        os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    (tmp_path / "stopped.py").write_text(
        "import click\nfrom converter.cli import main\n"
        f"def body():\n    {body}\n"
        "main.LazyGroup.get_command = lambda *_: click.Command('stopped', callback=body)\n"
        "main.main(['stopped'])\n"
    )
    done = run_program(
        sys.executable, "-m", "stopped", cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=TIME_LIMIT
    )
    assert (done.returncode, done.stdout) == (130, ""), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_a_signal_that_is_ignored_from_the_start_stays_so(handler: signal.Handlers) -> None:
    """As under nohup."""
    program = (
        "import signal\nfrom converter.cli import main\n"
        "main.run = lambda *_: print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN) or 0\nmain.main([])"
    )
    done = run_python(program, preexec_fn=lambda: signal.signal(signal.SIGHUP, handler))
    assert (done.returncode, done.stdout) == (0, f"{handler is signal.SIG_IGN}\n"), done.stderr


def test_ctrl_c_while_the_command_is_imported_shows_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    process = start("plan", "source", PYTHONPATH=str(tmp_path))
    stdout, stderr = process.communicate(timeout=TIME_LIMIT)
    assert (process.returncode, stdout, stderr) == (-signal.SIGINT, "", "")


def wait_until_no_planner_is_left(limit: float = TIME_LIMIT) -> None:
    deadline = time.monotonic() + limit
    while planners():
        assert time.monotonic() < deadline, "the planning process was left behind"
        time.sleep(0.05)


def planners() -> list[str]:
    """Command lines of planning processes whose parent is gone."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if "planner_process import main" in line and parent == "1":
            found.append(line)
    return found


def test_a_synthesis_that_is_told_to_stop_leaves_nothing(tmp_path: Path) -> None:
    process = start("synth", tmp_path / "out", "--layers", "8")
    while not (tmp_path / ".out.lensconv").exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=TIME_LIMIT)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert names_in(tmp_path) == []
