"""Compare what commands do on a cluster of Ray with what they do without it.

Three real nodes of Ray run on this machine. A benchmark, an ablation, a search and a conversion run once without Ray,
once on three nodes of which one is killed in the middle, and once until they are interrupted. Bytes and figures, times
and memory apart, have to be the same, and after an interrupt nothing may be left. Then an image is generated again and
again on a node, to see what it takes beyond its own time; and a sweep of four recipes is measured on the cluster.

Nodes that share a machine disturb each other, so nothing is said here about how much time a cluster saves.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from converter.cluster.connection import opened_cluster
from converter.cluster.resources import Need
from converter.measurement.benchmark.job import Job, Task
from converter.measurement.benchmark.node_repos import find_on_nodes
from converter.measurement.benchmark.node_worker import NodeWorker
from scripts.benchmark import ROOT, describe_machine
from scripts.ray_nodes import VARIABLES, differences, nodes, processes_with

RESULTS = ROOT / "benchmarks" / "ray.json"
#: Environment variable by which the processes of a command are found.
_MARK = "LENSCONV_RAY_CLUSTER"
#: Seconds after which processes of an interrupted command must have ended.
_ENDING = 10.0


@dataclass(frozen=True)
class Case:
    """A command whose results are compared."""

    name: str
    arguments: tuple[object, ...]
    """Without the output and the address."""
    output: str
    """The option for the output; empty if it is the last argument."""
    progress: Callable[[Path], int]
    """How much of an unfinished output is done, in any unit."""


def main() -> None:
    """Run everything, and write the figures."""
    parser = argparse.ArgumentParser(prog="scripts/ray_cluster", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="Folder for models and results.")
    parser.add_argument("--steps", type=int, default=20, help="Denoising steps.")
    parser.add_argument("--layers", type=int, default=12, help="Blocks of the converted model.")
    parser.add_argument("--only", default="bench,ablate,search,convert,overhead,sweep", help="What to run.")
    parser.add_argument("--out", type=Path, default=RESULTS, help="Where figures go.")
    arguments = parser.parse_args()
    os.environ.update(VARIABLES)
    # A shell lets programs in the background ignore it, and those that they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    wanted = arguments.only.split(",")
    work = arguments.work
    make_models(work, arguments.layers)
    found = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    found |= {"machine": describe_machine(), "steps": arguments.steps}
    for case in make_cases(work, arguments.steps):
        if case.name in wanted:
            found[case.name] = compare(case, work)
            print(json.dumps({case.name: found[case.name]}, indent=2), flush=True)
    if "overhead" in wanted:
        found["overhead"] = measure_overhead(work / "signs", work / "overhead")
    if "sweep" in wanted:
        found["sweep"] = run_sweep(work, arguments.steps)
    arguments.out.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps({name: found[name] for name in ("overhead", "sweep") if name in found}, indent=2))


def make_models(work: Path, layers: int) -> None:
    """Make the models that are missing: ``signs``, four conversions of it, and a transformer in several files."""
    signs, lens = work / "signs", work / "lens"
    if not signs.exists():
        lensconv("synth", signs, "--preset", "signs")
    if not lens.exists():
        # About 340 MB a block; three nodes get a file each.
        lensconv("synth", lens, "--layers", layers, "--max-shard-size", f"{340 * layers // 3 + 100}MB")
    for name, options in RECIPES.items():
        if not (work / name).exists():
            lensconv("convert", signs, work / name, *options)


RECIPES: dict[str, tuple[str, ...]] = {
    "signs-uint4": (),
    "signs-int8": ("--recipe", "sdnq-int8"),
    "signs-uint4-scale": ("--rounding", "scale"),
    "signs-attention-int8": ("--set", "*.attn.*=int8"),
}


def make_cases(work: Path, steps: int) -> list[Case]:
    """The commands."""
    drawing = ("--device", "cpu", "--dtype", "float32", "--steps", steps, "--prompts", "signs")
    signs = work / "signs"
    return [
        Case(
            "bench",
            ("bench", signs, work / "signs-uint4", "--mode", "standard", "--pairs", 3, "--timing-prompts", 1, *drawing),
            "--out",
            lambda output: lines_in(output / "measurements.jsonl"),
        ),
        Case(
            "ablate",
            ("ablate", signs, "--level", "images", *drawing),
            "--out",
            lambda output: lines_in(output / "ablation.jsonl", holding='"kind": "image"'),
        ),
        Case(
            "search",
            ("search", signs, "--budget", "3MB", *drawing),
            "--out",
            lambda output: lines_in(output.with_name(f"{output.stem}-evidence") / "search.jsonl"),
        ),
        Case("convert", ("convert", work / "lens"), "", lambda output: bytes_beside(output) // 10_000_000),
    ]


def compare(case: Case, work: Path) -> dict[str, Any]:
    """Run a command without Ray, on nodes of which one is killed, and until it is interrupted.

    Raises:
        SystemExit: results differ, or something was left.
    """
    plain, clustered, stopped = (place_of(case, work / f"{case.name}-{kind}") for kind in ("plain", "ray", "stopped"))
    started, most = time.monotonic(), [0]
    with watching(lambda: most.append(case.progress(plain))):
        lensconv(*with_output(case, plain))
    alone = time.monotonic() - started
    half = max(most) // 2
    with nodes(3) as cluster:
        started = time.monotonic()
        killed = kill_at(cluster, lambda: case.progress(clustered) >= half)
        lensconv(*with_output(case, clustered), "--ray", cluster.address)
        on_nodes = time.monotonic() - started
        if not killed:
            raise SystemExit(f"{case.name}: no node was killed")
    different = list(compare_folders(plain.parent, clustered.parent))
    if different:
        raise SystemExit(f"{case.name}: differs on a cluster:\n" + "\n".join(different[:20]))
    left = interrupt(case, stopped, half)
    if left:
        raise SystemExit(f"{case.name}: left after Ctrl-C: {left}")
    return {
        "files_compared": len(files_in(plain.parent)),
        "seconds_alone": round(alone, 1),
        "seconds_on_three_nodes": round(on_nodes, 1),
        "killed_at": f"{half} of {max(most)}",
    }


def place_of(case: Case, folder: Path) -> Path:
    """The output of a command, in a folder that is empty before."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder / ("recipe.toml" if case.name == "search" else "result")


def with_output(case: Case, output: Path) -> list[object]:
    """The arguments of a command with its output."""
    return [*case.arguments, *([case.output] if case.output else []), output]


def interrupt(case: Case, output: Path, when: int) -> list[str]:
    """Interrupt a command on a cluster of its own; return the processes that it leaves."""
    mark = f"{case.name}-{time.time_ns()}"
    command = [sys.executable, "-m", "converter", *map(str, with_output(case, output)), "--ray", "local", "--quiet"]
    process = subprocess.Popen(command, env={**os.environ, _MARK: mark})
    while case.progress(output) < max(1, when // 2) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    code = process.wait(timeout=120)
    if code != 130:
        raise SystemExit(f"{case.name}: exit code {code} after Ctrl-C")
    deadline = time.monotonic() + _ENDING
    while (left := processes_with(mark)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


def kill_at(cluster: Any, is_time: Callable[[], bool]) -> list[Any]:
    """Kill a node once it is time, from a thread; returns the list in which it will be."""
    killed: list[Any] = []

    def watch() -> None:
        while not is_time():
            time.sleep(0.02)
        node = cluster.list_all_nodes()[1]
        killed.append(node)
        cluster.remove_node(node)

    threading.Thread(target=watch, daemon=True).start()
    return killed


@contextmanager
def watching(look: Callable[[], object]) -> Iterator[None]:
    """Call a function several times a second while the block runs."""
    stopping = threading.Event()

    def watch() -> None:
        while not stopping.wait(0.02):
            look()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def lines_in(file: Path, holding: str = "") -> int:
    """How many lines of a file contain a text."""
    return sum(holding in line for line in file.read_text().splitlines()) if file.exists() else 0


def bytes_beside(output: Path) -> int:
    """Bytes on the disk below the folder in which an output is being made."""
    total = 0
    for file in output.parent.rglob("*"):
        try:
            total += file.lstat().st_blocks * 512
        except OSError:
            continue
    return total


def files_in(folder: Path) -> dict[str, Path]:
    """The files that a command made, by their paths; journals have the order in which things came."""
    found = {str(file.relative_to(folder)): file for file in sorted(folder.rglob("*")) if file.is_file()}
    return {name: file for name, file in found.items() if file.suffix != ".jsonl"}


def compare_folders(first: Path, second: Path) -> Iterator[str]:
    """Yield what differs between two results, times and memory apart."""
    ours, theirs = files_in(first), files_in(second)
    yield from (f"only in one: {name}" for name in sorted(ours.keys() ^ theirs.keys()))
    for name in sorted(ours.keys() & theirs.keys()):
        if name.endswith(".json"):
            yield from differences(json.loads(ours[name].read_text()), json.loads(theirs[name].read_text()), name)
        elif digest(ours[name]) != digest(theirs[name]):
            yield f"{name}: other bytes"


def digest(file: Path) -> str:
    """The sha256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def measure_overhead(repo: Path, folder: Path, images: int = 8) -> dict[str, Any]:
    """What an image on a node takes beyond its own time, once the pipeline is loaded.

    Args:
        repo: a pipeline repo.
        folder: for images.
        images: how many, after a first one.
    """
    from converter.console import SILENT
    from converter.measurement.benchmark.node_repos import SharedRepo
    from converter.measurement.benchmark.repos import choose_image_settings, open_measured
    from converter.measurement.benchmark.subjects import open_subjects
    from converter.measurement.generation.options import GenerateOptions

    original, _ = open_subjects(repo, repo.with_name("signs-uint4"), SILENT)
    options = GenerateOptions(device="cpu", dtype="float32", steps=4, seed=1)
    settings = asdict(choose_image_settings(open_measured(repo), "a sign", options))
    folder.mkdir(parents=True, exist_ok=True)
    beyond = []
    with nodes(1) as started, opened_cluster(started.address) as cluster:
        repos = find_on_nodes(cluster, [SharedRepo.of(original)])
        with cluster.host(Need(1), NodeWorker, repos, 600.0) as hosted:
            for number in range(images + 1):
                task = Task(f"A{number}", settings, str(folder / f"{number}.png"))
                job = Job(str(repo.absolute()), {}, "none", "cpu", "float32", [task])
                began = time.monotonic()
                events = list(hosted.stream("draw", job))
                taken = time.monotonic() - began
                (drawn,) = [event for event in events if "time_s" in event and "pixels_sha256" in event]
                beyond.append(taken - drawn["time_s"])
    return {
        "images": images,
        "first_s": round(beyond[0], 3),
        "median_s": round(statistics.median(beyond[1:]), 3),
        "most_s": round(max(beyond[1:]), 3),
    }


def run_sweep(work: Path, steps: int) -> dict[str, Any]:
    """Measure four recipes against one original in one command, on the cluster."""
    output = work / "sweep"
    shutil.rmtree(output, ignore_errors=True)
    with nodes(3) as cluster:
        started = time.monotonic()
        lensconv(
            *("bench", work / "signs", *(work / name for name in RECIPES), "--out", output, "--prompts", "signs"),
            *("--mode", "standard", "--pairs", 3, "--timing-prompts", 1, "--device", "cpu", "--dtype", "float32"),
            *("--steps", steps, "--ray", cluster.address),
        )
    return {
        "seconds": round(time.monotonic() - started, 1),
        "table": (output / "sweep.md").read_text().splitlines(),
    }


def lensconv(*arguments: object) -> None:
    """Run a command; what it says is not shown unless it fails.

    Raises:
        SystemExit: it fails.
    """
    command: Sequence[str] = [sys.executable, "-m", "converter", *map(str, arguments), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}")


if __name__ == "__main__":
    main()
