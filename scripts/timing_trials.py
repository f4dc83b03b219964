"""Benchmark two models again and again beside a load that is known, and count what the intervals of their times say.

The models are equal, or the second one has a deeper autoencoder and takes longer by about ``--planted`` percent. The
load is processes that only compute: none, all the time, or for 10 to 40 s and then not, in a pattern that a seed gives.
Each run is a real `lensconv bench`. An interrupted series continues. Options of `bench` may follow after `--`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from converter import synthesize
from converter.libraries import load_library
from converter.measurement.evidence.pairs import read_pairs
from converter.measurement.evidence.statistics import FEWEST_PAIRS
from converter.measurement.prompts.suite import PromptSuite, builtin_suites
from scripts.interval_coverage import bootstrap_over_prompts

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The tiny pipeline's depth, and images that take about a second on two cores. Smaller ones with more steps have
#: shorter operations, whose times vary more.
LAYERS = 8
IMAGE = {"steps": 12, "width": 384, "height": 384}
#: Layers a block that are added to an autoencoder to see what one takes.
TRIED_LAYERS = 12
#: Draws of the bootstrap that lensconv used before.
RESAMPLES = 10_000
#: Seconds of a phase of the pattern.
PHASE = (10.0, 40.0)
#: A program that does nothing but compute, until the script ends.
BUSY = "import os; parent = os.getppid()\nwhile os.getppid() == parent: sum(range(10**5))"


def main() -> None:
    """Run the series, print the table, and write the JSON."""
    arguments = _parse()
    folder = arguments.out / _name(arguments)
    folder.mkdir(parents=True, exist_ok=True)
    models = _make_models(arguments)
    suite = arguments.out / "suite.toml"
    suite.write_text(PromptSuite("trials", builtin_suites()[0].prompts[: arguments.prompts]).to_toml())
    if arguments.planted and arguments.truth_pairs:
        _run(folder / "truth", models, suite, ["--pairs", str(arguments.truth_pairs), *arguments.options])
    runs = []
    for number in range(1, arguments.runs + 1):
        place = folder / f"run-{number:02}"
        schedule = Schedule(arguments.load, arguments.busy, arguments.seed + number)
        runs.append(_run(place, models, suite, ["--pairs", str(arguments.pairs), *arguments.options], schedule))
        print(_line(number, runs[-1]), flush=True)
    truth = folder / "truth" / "trial.json"
    content = summarise(runs, json.loads(truth.read_text()) if truth.is_file() else None)
    print(json.dumps(content, indent=1))
    names = ("load", "planted", "pairs", "prompts", "busy", "seed", "options")
    settings = {key: getattr(arguments, key) for key in names} | {"threads": load_library("torch").get_num_threads()}
    file = folder / "timing-trials.json"
    file.write_text(json.dumps({**settings, "image": IMAGE, **content, "runs": runs}, indent=1) + "\n")
    print(f"written to {file}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder for the models, the runs and the results")
    parser.add_argument(
        "--models", type=Path, nargs=2, metavar="REPO", help="pipelines to compare (default: tiny ones)"
    )
    parser.add_argument("--runs", type=int, default=20, help="number of benchmarks (default 20)")
    parser.add_argument("--pairs", type=int, default=4, help="as for `lensconv bench` (default 4)")
    parser.add_argument("--prompts", type=int, default=8, help="images of a process (default 8)")
    parser.add_argument("--load", choices=("pattern", "none", "constant"), default="pattern", help="default: pattern")
    parser.add_argument("--busy", type=int, default=2, help="processes of the load (default 2)")
    parser.add_argument("--planted", type=float, default=0.0, help="percent by which the second model takes longer")
    parser.add_argument("--truth-pairs", type=int, default=12, help="pairs that measure the planted ratio (default 12)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the patterns (default 0)")
    # argparse does not take what follows two dashes as the rest.
    words = [*sys.argv[1:], "--"]
    end = words.index("--")
    arguments = parser.parse_args(words[:end], argparse.Namespace(options=words[end + 1 : -1]))
    if arguments.runs < 1 or arguments.pairs < FEWEST_PAIRS:
        parser.error(f"at least one run and {FEWEST_PAIRS} pairs are needed, as fewer pairs have no interval")
    return arguments


def _name(arguments: argparse.Namespace) -> str:
    return f"{arguments.load}-{arguments.planted:g}-{arguments.pairs}-{arguments.seed}"


class Schedule:
    """A load that comes and goes.

    Args:
        kind: ``none``, ``constant`` or ``pattern``.
        busy: number of processes.
        seed: of the pattern.
    """

    def __init__(self, kind: str = "none", busy: int = 0, seed: int = 0) -> None:
        self._kind = kind
        self._busy = busy
        self._random = random.Random(seed)  # noqa: S311 - lengths of phases
        self._stopped = threading.Event()
        self.phases: list[tuple[bool, float]] = []
        """Whether processes ran, and for how many seconds."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the load meanwhile."""
        thread = threading.Thread(target=self._play)
        thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            thread.join()

    def _play(self) -> None:
        is_on = self._kind == "constant" or (self._kind == "pattern" and self._random.random() < 1 / 2)
        while not self._stopped.is_set():
            seconds = self._random.uniform(*PHASE) if self._kind == "pattern" else None
            programs = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(self._busy * is_on)]
            started = time.monotonic()
            self._stopped.wait(seconds)
            for program in programs:
                program.kill()
                program.wait()
            self.phases.append((is_on, round(time.monotonic() - started, 1)))
            is_on = not is_on


def _make_models(arguments: argparse.Namespace) -> list[Path]:
    """Return the two pipelines; unless both were named, the second is a copy of the first."""
    folder = arguments.out / "models"
    first, second = arguments.models or (folder / "original", folder / "equal")
    if not first.is_dir():
        synthesize(first, preset="tiny", layers=LAYERS)
    if not second.is_dir():
        shutil.copytree(first, second)
    if arguments.planted:
        planted = folder / f"planted-{arguments.planted:g}"
        if not planted.is_dir():
            _plant(second, planted, arguments.planted)
        second = planted
    return [first, second]


def _plant(source: Path, target: Path, percent: float) -> None:
    """Copy a pipeline, with an autoencoder so deep that an image takes longer by about this many percent."""
    shallow = json.loads((source / "vae" / "config.json").read_text())["layers_per_block"]
    scratch = target.with_name(f"{target.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(source, scratch)
    _deepen(scratch, shallow + TRIED_LAYERS)
    seconds = _image_seconds(source)
    of_a_layer = (_image_seconds(scratch) - seconds) / TRIED_LAYERS
    layers = shallow + round(percent / 100 * seconds / of_a_layer)
    _deepen(scratch, layers)
    scratch.rename(target)
    print(f"{target}: the autoencoder has {layers} layers a block, not {shallow}", flush=True)


def _deepen(repo: Path, layers: int) -> None:
    """Replace a pipeline's autoencoder with one of this many layers a block and random weights."""
    diffusers, torch = load_library("diffusers"), load_library("torch")
    config = json.loads((repo / "vae" / "config.json").read_text())
    torch.manual_seed(0)
    model = getattr(diffusers, config["_class_name"]).from_config({**config, "layers_per_block": layers})
    model.save_pretrained(repo / "vae")


def _image_seconds(repo: Path) -> float:
    """Return the seconds of an image, as the benchmark measures them."""
    session_module = load_library("converter.measurement.benchmark.session")
    job = load_library("converter.measurement.benchmark.job")
    generation = load_library("converter.measurement.generation.settings")
    options = load_library("converter.measurement.generation.options").GenerateOptions(seed=0, device="cpu", **IMAGE)
    opened = load_library("converter.measurement.generation.repo").open_pipeline(repo)
    settings = generation.choose_settings(opened, builtin_suites()[0].prompts[0].prompt, options)
    task = job.Task("warm", asdict(settings), None)
    session = session_module.Session(job.Job(str(repo), {}, "none", "cpu", settings.dtype, [task]))
    session.load()
    return float(statistics.median([session.generate(task)["time_s"] for _ in range(6)][1:]))


def _run(
    place: Path, models: Sequence[Path], suite: Path, options: Sequence[str], schedule: Schedule | None = None
) -> dict[str, Any]:
    """Run a benchmark, unless that was done before, and return what it says."""
    kept = place / "trial.json"
    if kept.is_file():
        content: dict[str, Any] = json.loads(kept.read_text())
        return content
    drawing = [word for key, value in IMAGE.items() for word in (f"--{key}", str(value))]
    line = ["bench", *map(str, models), "--out", str(place), "--prompts", str(suite), "--mode", "standard"]
    line += ["--no-baseline", "--trajectory-prompts", "0", "--timing-prompts", "0", "--device", "cpu"]
    line += [*drawing, *options, "--json", "--quiet"]
    schedule = schedule or Schedule()
    started = time.monotonic()
    with schedule.running():
        done = subprocess.run(
            [sys.executable, "-m", "converter", *line],
            stdout=subprocess.PIPE,
            check=False,
            text=True,
            env={**os.environ, "SDNQ_USE_TORCH_COMPILE": "0"},
        )
    if done.returncode:
        raise SystemExit(f"{place}: {done.stdout}")
    found = {**examine(place), "schedule": schedule.phases, "elapsed_s": round(time.monotonic() - started, 1)}
    kept.write_text(json.dumps(found, indent=1) + "\n")
    return found


def examine(place: Path) -> dict[str, Any]:
    """Return what a benchmark says of times: the interval over pairs, that of the old bootstrap, and disturbances."""
    matrix = json.loads((place / "comparison_matrix.json").read_text())
    pairs = read_pairs(matrix)
    slowdown = matrix["summary"].get("slowdown")
    return {
        "percent": slowdown and slowdown["percent"],
        "interval": slowdown and slowdown["percent_interval"],
        "over_prompts": old_interval(place / "measurements.jsonl"),
        "sessions": 2 * len(pairs),
        "disturbed_sessions": sum(pair.disturbed_sessions for pair in pairs),
        "measured_again": sum(pair.attempt > 0 for pair in pairs),
        "disturbed_pairs": sum(pair.disturbed_sessions > 0 for pair in pairs if pair.used),
        "pairs": [pair.to_dict() for pair in pairs],
    }


def old_interval(journal: Path) -> list[float]:
    """Return the interval of a bootstrap over the prompts of the first pair, in percent: what one run gave before."""
    times: dict[str, dict[str, float]] = {"original": {}, "quantized": {}}
    for line in journal.read_text("utf-8").splitlines()[1:]:
        row = json.loads(line)
        # Keys in brackets, or with a plus sign, are not those of a prompt's images.
        if (row["pair"], row["attempt"]) == (0, 0) and "time_s" in row and row["key"].isalnum():
            times[row["model"]][row["key"]] = row["time_s"]
    original, quantized = times.values()
    keys = [key for key in original if key in quantized]
    ends = bootstrap_over_prompts(
        [original[key] for key in keys], [quantized[key] for key in keys], np.random.default_rng(0), RESAMPLES
    )
    return [round(end, 1) for end in ends]


def summarise(runs: Sequence[Mapping[str, Any]], truth: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return how many intervals contain 0 %, how many find a difference, and how wide they are.

    Args:
        runs: of ``_run``.
        truth: of a long run without load, if a difference was planted.
    """
    found: dict[str, Any] = {"number": len(runs)}
    for key in ("interval", "over_prompts"):
        ends = [run[key] for run in runs if run[key] is not None]
        found[key] = {
            "contain_0": sum(least <= 0 <= most for least, most in ends),
            "above_0": sum(least > 0 for least, _ in ends),
            "half_width_median": round(statistics.median((most - least) / 2 for least, most in ends), 2),
            "half_width_most": round(max((most - least) / 2 for least, most in ends), 2),
        }
        if truth is not None:
            found[key]["contain_truth"] = sum(least <= truth["percent"] <= most for least, most in ends)
    if truth is not None:
        found["truth"] = {"percent": truth["percent"], "interval": truth["interval"]}
    found["runs_with_disturbed_sessions"] = sum(run["disturbed_sessions"] > 0 for run in runs)
    return found


def _line(number: int, run: Mapping[str, Any]) -> str:
    texts = {}
    for key in ("interval", "over_prompts"):
        least, most = run[key] or (float("nan"), float("nan"))
        held = "contains 0" if least <= 0 <= most else "excludes 0"
        texts[key] = f"{least:+6.1f} to {most:+6.1f} % {held}"
    busy = sum(seconds for is_on, seconds in run["schedule"] if is_on)
    disturbed = (
        f"{run['disturbed_sessions']} of {run['sessions']} sessions disturbed, {run['measured_again']} pairs again"
    )
    return (
        f"run {number:2}: {texts['interval']}; over prompts {texts['over_prompts']}; {disturbed}; "
        f"load {busy:.0f} of {run['elapsed_s']:.0f} s"
    )


if __name__ == "__main__":
    main()
