"""Measure the overhead of the benchmark: the time that it reports for an image, and that of the same call without it.

Both run in turn in one process, with the tiny pipeline or another one. The ratio is that of the medians, and of each
pair.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from converter import synthesize
from converter.libraries import load_library
from converter.measurement.benchmark.job import Job, Task
from converter.measurement.generation.options import GenerateOptions
from converter.measurement.generation.repo import open_pipeline
from converter.measurement.generation.settings import choose_settings
from converter.measurement.prompts.suite import builtin_suites
from scripts.benchmark import describe_machine


def main() -> None:
    """Measure pairs and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repo", type=Path, help="pipeline to use (default: a tiny one)")
    parser.add_argument("--device", default="auto", help="as for `lensconv bench`")
    parser.add_argument("--pairs", type=int, default=30, help="number of pairs (default 30)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/overhead.json"), help="file for the results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        repo = arguments.repo or Path(folder) / "tiny"
        if arguments.repo is None:
            synthesize(repo, preset="tiny")
        result = measure(repo, arguments.device, arguments.pairs)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "seconds"}, indent=2))


def measure(repo: Path, device: str, pairs: int) -> dict[str, Any]:
    """Generate the same image inside and outside of the benchmark, in turn."""
    session_module = load_library("converter.measurement.benchmark.session")
    call_arguments = load_library("converter.measurement.generation.generate").call_arguments
    opened = open_pipeline(repo)
    prompt = builtin_suites()[0].prompts[0]
    settings = choose_settings(opened, prompt.prompt, GenerateOptions(seed=prompt.seed, device=device))
    task = Task("warm", asdict(settings), None)
    session = session_module.Session(Job(str(repo), {}, "none", device, settings.dtype, [task]))
    session.load()
    session.generate(task)
    inside, outside = [], []

    def generate_inside() -> None:
        inside.append(session.generate(task)["time_s"])

    def generate_outside() -> None:
        session.synchronize()
        started = time.perf_counter()
        session.pipeline(settings.prompt, settings.negative_prompt, **call_arguments(settings))
        session.synchronize()
        outside.append(time.perf_counter() - started)

    for number in range(pairs):
        # The second one finds warm caches, so the order alternates.
        calls = (generate_inside, generate_outside)
        for call in calls if number % 2 else calls[::-1]:
            call()
    ratios = [first / second for first, second in zip(inside, outside, strict=True)]
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": describe_machine(),
        "pairs": pairs,
        "image": f"{settings.width}x{settings.height}, {settings.steps} steps",
        "median_inside_s": round(statistics.median(inside), 4),
        "median_outside_s": round(statistics.median(outside), 4),
        "ratio_of_medians": round(statistics.median(inside) / statistics.median(outside), 4),
        "median_of_ratios": round(statistics.median(ratios), 4),
        "seconds": {"inside": inside, "outside": [round(seconds, 4) for seconds in outside]},
    }


if __name__ == "__main__":
    main()
