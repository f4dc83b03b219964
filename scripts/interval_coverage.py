"""Simulate how often a 95 % interval for the ratio of two times contains the true one.

Times have noise of each process, noise of each image, and a drift of the machine. Three methods see the same times:
Student's t over pairs of adjacent processes, which `lensconv bench` uses; a bootstrap over prompts, which it used
before; and a bootstrap over the pairs and the prompts in them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converter.measurement.evidence.statistics import CONFIDENCE, FEWEST_PAIRS, paired_slowdown

ROOT = Path(__file__).resolve().parents[1]
PAIRS = (2, 3, 4, 6)
PROMPTS = 10
RESAMPLES = 500
#: Spread of the prompts' own lengths: their logarithms, which both models share.
_LENGTHS = 0.2


@dataclass(frozen=True)
class Machine:
    """Standard deviations of the logarithms of times, and the drift from one process to the next."""

    process: float = 0.05
    image: float = 0.02
    walk: float = 0.0
    """Standard deviation of the steps of a random walk."""
    slope: float = 0.0
    """Growth from one process to the next."""


MACHINES = {
    "noise of processes": Machine(),
    "and a random walk": Machine(walk=0.03),
    "and a steady drift": Machine(slope=0.02),
    "noise of images alone": Machine(process=0.0),
}


def main() -> None:
    """Simulate, print the table, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=2000, help="simulated benchmarks of each kind (default 2000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random numbers (default 0)")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "interval-coverage.json", help="file for the results"
    )
    arguments = parser.parse_args()
    generator = np.random.default_rng(arguments.seed)
    found = []
    for name, machine in MACHINES.items():
        for pairs in PAIRS:
            held = coverage(machine, pairs, arguments.trials, generator)
            print(f"{name:22} {pairs} pairs: " + ", ".join(f"{method} {share:.1%}" for method, share in held.items()))
            found.append({"machine": name, "pairs": pairs, **held})
    content = {
        "trials": arguments.trials,
        "seed": arguments.seed,
        "prompts": PROMPTS,
        "resamples": RESAMPLES,
        "machines": {name: asdict(machine) for name, machine in MACHINES.items()},
        "coverage": found,
    }
    arguments.out.write_text(json.dumps(content, indent=1) + "\n")
    print(f"written to {arguments.out}")


def coverage(machine: Machine, pairs: int, trials: int, generator: np.random.Generator) -> dict[str, float]:
    """Return the share of simulated benchmarks of equal models whose interval contains 0 %, by method.

    With fewer than three pairs, the first method does not give an interval.
    """
    methods = METHODS if pairs >= FEWEST_PAIRS else dict(list(METHODS.items())[1:])
    held = dict.fromkeys(methods, 0)
    for _ in range(trials):
        times = simulate(machine, pairs, generator)
        for name, method in methods.items():
            least, most = method(times, generator)
            held[name] += least <= 0 <= most
    return {name: round(number / trials, 4) for name, number in held.items()}


def simulate(machine: Machine, pairs: int, generator: np.random.Generator) -> np.ndarray:
    """Return seconds of two equal models, of shape (pairs, 2, prompts), in the order AB BA AB."""
    numbers = np.arange(2 * pairs)
    drift = machine.slope * numbers + np.cumsum(generator.normal(0, machine.walk, 2 * pairs))
    process = (drift + generator.normal(0, machine.process, 2 * pairs)).reshape(pairs, 2)
    process[1::2] = process[1::2, ::-1]
    lengths = generator.normal(0, _LENGTHS, PROMPTS)
    return np.exp(lengths + process[..., None] + generator.normal(0, machine.image, (pairs, 2, PROMPTS)))


def bootstrap_over_prompts(
    original: Sequence[float], quantized: Sequence[float], generator: np.random.Generator, resamples: int
) -> tuple[float, float]:
    """Return the interval of the ratio of means in percent as lensconv computed it before: prompts are drawn again.

    Args:
        original: seconds of each prompt.
        quantized: the same of the other model.
        generator: draws the prompts.
        resamples: number of draws.
    """
    first, second = np.asarray(original), np.asarray(quantized)
    draws = generator.integers(0, first.size, (resamples, first.size))
    return _ends(second[draws].sum(axis=1) / first[draws].sum(axis=1))


def _over_prompts(times: np.ndarray, generator: np.random.Generator) -> tuple[float, float]:
    original, quantized = np.median(times, axis=0)
    return bootstrap_over_prompts(original, quantized, generator, RESAMPLES)


def _over_pairs(times: np.ndarray, generator: np.random.Generator) -> tuple[float, float]:
    pairs, _, prompts = times.shape
    drawn = generator.integers(0, pairs, (RESAMPLES, pairs, 1))
    images = generator.integers(0, prompts, (RESAMPLES, pairs, prompts))
    sums = [times[:, model][drawn, images].sum(axis=2) for model in range(2)]
    return _ends(np.exp(np.log(sums[1] / sums[0]).mean(axis=1)))


def _students(times: np.ndarray, _: np.random.Generator) -> tuple[float, float]:
    sums = times.sum(axis=2)
    found = paired_slowdown(np.log(sums[:, 1] / sums[:, 0]).tolist())
    least, most = found.percent_interval if found else (-np.inf, np.inf)
    return least, most


def _ends(ratios: np.ndarray) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    least, most = np.quantile(100 * (ratios - 1), (tail, 1 - tail))
    return float(least), float(most)


METHODS: dict[str, Callable[[np.ndarray, np.random.Generator], Any]] = {
    "Student's t over pairs": _students,
    "bootstrap over prompts": _over_prompts,
    "bootstrap over pairs and prompts": _over_pairs,
}


if __name__ == "__main__":
    main()
