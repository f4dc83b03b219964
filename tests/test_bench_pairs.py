"""Which sessions a benchmark measures, in which order, and which pairs count: real scheduling without real models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from converter.console import Progress
from converter.errors import UsageError
from converter.measurement.benchmark import pairing
from converter.measurement.benchmark.job import Task
from converter.measurement.benchmark.journal import LOAD_KEY, Cell, Journal
from converter.measurement.benchmark.measuring import Bench, Place
from converter.measurement.benchmark.options import BenchOptions
from converter.measurement.benchmark.pairing import ModePairs, find_pairs
from converter.measurement.evidence.pairs import TimedPair, read_pairs, used_log_ratios
from converter.measurement.generation.settings import Settings
from converter.measurement.prompts.suite import PromptSuite, SuitePrompt
from tests.expected import check_expected

PROMPTS = tuple(SuitePrompt(key, key, number, key, ()) for number, key in enumerate(("A1", "B2", "C3", "D4")))
SUITE = PromptSuite("four", PROMPTS)
SETTINGS = [Settings(prompt.prompt, "", prompt.seed, 2, 5.0, 64, 96, "bfloat16", "2026-05-23") for prompt in PROMPTS]
STAGES = {name: {"time_s": 1.0} for name in ("text_encoder", "transformer", "vae")}


class Killed(BaseException):
    """The benchmark is killed."""


@dataclass
class Machine:
    """Workers that take no time, on a machine where all that happens is known."""

    folder: Path
    busy: frozenset[str] = frozenset()
    """Sessions beside another program, such as ``1.0 quantized``: pair, attempt and model."""
    slow: Mapping[str, float] = field(default_factory=dict)
    """Milliseconds of the fixed computation in the sessions in which the CPU is slow; elsewhere it takes 20."""
    failing: frozenset[str] = frozenset()
    """Images that fail, such as ``0.0 quantized B2``; the worker ends."""
    rows_left: float = math.inf
    """Number of images after which the benchmark is killed."""
    said: list[str] = field(default_factory=list)
    """What each worker was asked for, and what the progress counts at the end of a run."""

    def run(self, mode: str = "standard", suite: PromptSuite = SUITE, **options: Any) -> ModePairs:
        """Run the benchmark, or continue it."""
        chosen = BenchOptions(mode=mode, **{"timing_prompts": 2, "skip_baseline": True, **options})
        with Journal(self.folder, {}, restart=False) as journal:
            bench = Bench(self.folder, {}, suite, SETTINGS[: len(suite.prompts)], chosen, "cpu", {}, journal)
            bench._run_worker = self._work(bench)  # type: ignore[method-assign]
            bench._is_measured = lambda cell, task: (cell, task.key) in journal.measured  # type: ignore[method-assign]
            shown = Progress("", bench.total)
            shown.skip(bench.measured)
            try:
                bench.measure(shown)
                self.said.append(f"{shown.done} of {shown.total}, {bench.measured} measured")
            except Killed:
                self.said.append("killed")
            return find_pairs(journal, suite, chosen, mode.split(",")[-1])

    def _work(self, bench: Bench) -> Any:
        def work(cell: Cell, missing: Sequence[Task], shown: Progress, _: Place) -> bool:
            bench.journal.worker += 1
            name = f"{cell.pair}.{cell.attempt} {cell.model}"
            self.said.append(f"{cell.mode[0]} {name}: {' '.join(task.key for task in missing)}")
            if (cell, LOAD_KEY) not in bench.journal.measured:
                bench.journal.note(cell, LOAD_KEY, {"time_s": 1.0, "cache_warm": True, "components": {}})
            for task in missing:
                if self.rows_left == 0:
                    raise Killed
                if f"{name} {task.key}" in self.failing:
                    bench.fail(cell, [task], "no memory", shown)
                    return False
                self.rows_left -= 1
                seconds = (2.0 if cell.model == "quantized" else 1.0) + cell.pair / 10
                conditions = {"seconds": seconds, "cpus": 2, "other_cpu_s": seconds * (name in self.busy)}
                conditions["cpu_probe_ms"] = self.slow.get(name, 20.0)
                figures = {"time_s": seconds, "stages": STAGES, "pixels_sha256": "0" * 64, "conditions": conditions}
                bench.journal.note(cell, task.key, figures)
                shown.advance(1)
            return False

        return work


def described(found: ModePairs) -> str:
    """The prompts, and for each attempt: whether it counts, its times, and what was wrong."""
    lines = [f"over {' '.join(found.prompts) or 'nothing'}"]
    for pair in found.pairs:
        busy = [model for model, reasons in pair.disturbed.items() if reasons]
        notes = [*(["used"] if pair.used else []), *(["interrupted"] if pair.interrupted else []), *busy]
        lines.append(f"{pair.pair}.{pair.attempt} {pair.first} {pair.original_s} {pair.quantized_s} {' '.join(notes)}")
    return "; ".join(lines)


#: Machines, and the options of the runs on them.
SCENARIOS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "quiet": ({}, [{"pairs": 4}]),
    "one pair costs what it has to": ({"busy": {"0.0 original"}}, [{"pairs": 1}]),
    "two pairs claim nothing": ({"busy": {"0.0 original"}}, [{"pairs": 2}]),
    "a busy session": ({"busy": {"1.0 quantized"}}, [{"pairs": 3}]),
    # Neither the second attempt nor the other model changes what is usual.
    "a slow CPU": ({"slow": {"1.0 quantized": 22.0, "1.1 quantized": 22.0}}, [{"pairs": 3}]),
    "a CPU that is always slow": ({"slow": {f"{pair}.0 quantized": 30.0 for pair in range(3)}}, [{"pairs": 3}]),
    "busy both times": ({"busy": {"1.0 quantized", "1.1 quantized"}}, [{"pairs": 3}]),
    "more disturbed than before": ({"busy": {"1.0 quantized", "1.1 quantized", "1.1 original"}}, [{"pairs": 3}]),
    "the first pair is busy": ({"busy": {"0.0 original"}}, [{"pairs": 3}]),
    "killed in a session": ({"rows_left": 5}, [{"pairs": 3}, {"pairs": 3}]),
    "killed between two sessions": ({"rows_left": 4}, [{"pairs": 3}, {"pairs": 3}]),
    "killed between two pairs": ({"rows_left": 8}, [{"pairs": 3}, {"pairs": 3}]),
    "interrupted, then busy": ({"rows_left": 5, "busy": {"0.1 original"}}, [{"pairs": 3}, {"pairs": 3}]),
    "an image fails between others": ({"failing": {"1.0 original B2"}}, [{"pairs": 3, "timing_prompts": 3}]),
    "more pairs later": ({"busy": {"0.0 original"}}, [{"pairs": 1}, {"pairs": 3}, {"pairs": 3}]),
    "an image fails": ({"failing": {"0.0 quantized A1"}}, [{"pairs": 3}]),
    "an image fails later": ({"failing": {"1.0 original B2"}}, [{"pairs": 3}]),
    "all images fail": ({"failing": {f"0.0 original {key}" for key in ("A1", "B2", "C3", "D4")}}, [{"pairs": 3}]),
    "an image that is not timed fails": ({"failing": {"0.0 original D4"}}, [{"pairs": 3}]),
    "all prompts": ({}, [{"pairs": 3, "timing_prompts": 0}]),
    "offload": ({"busy": {"2.0 original"}}, [{"pairs": 3, "mode": "offload"}]),
    "offload of one prompt": ({}, [{"pairs": 3, "mode": "offload", "suite": replace(SUITE, prompts=PROMPTS[:1])}]),
    "two modes": ({}, [{"pairs": 1, "mode": "standard,offload"}]),
}


def test_what_is_measured_and_what_counts(tmp_path: Path) -> None:
    lines = []
    for number, (name, (happens, runs)) in enumerate(SCENARIOS.items()):
        machine = Machine(tmp_path / str(number), **happens)
        for options in runs:
            found = machine.run(**options)
            machine.rows_left = math.inf
        lines += [name, *(f"  {text}" for text in machine.said), f"  {described(found)}"]
    check_expected("bench_pairs.txt", "\n".join(lines) + "\n")


@pytest.mark.parametrize("mode", ["standard", "offload"])
def test_a_run_that_is_killed_anywhere_ends_the_same(mode: str, tmp_path: Path) -> None:
    """After any number of images, also among those of a pair that is measured once more."""
    options: dict[str, Any] = {"mode": mode, "pairs": 3}
    for rows in range(20):
        machine = Machine(tmp_path / str(rows), busy=frozenset({"1.0 original"}), rows_left=rows)
        machine.run(**options)
        machine.rows_left = math.inf
        found = machine.run(**options)
        # The run that was killed leaves one pair that has to be measured once more, or none.
        count = 20 + 4 * (len(found.pairs) - 4)
        assert machine.said[-1] == f"{count} of {count}, {count} measured"
        assert len(found.pairs) in (4, 5)
        used = [pair for pair in found.pairs if pair.used]
        assert [pair.pair for pair in used] == [0, 1, 2]
        # Only a kill in the last attempt at a pair leaves it with an interrupted one.
        spoilt = [pair for pair in used if pair.interrupted or pair.disturbed_sessions]
        assert all(pair.pair == 1 for pair in spoilt)
        # Another run finds nothing to do.
        said = len(machine.said)
        machine.run(**options)
        assert len(machine.said) == said + 1


def test_pairs_in_a_file(tmp_path: Path) -> None:
    found = Machine(tmp_path, busy=frozenset({"1.0 original"})).run(pairs=3)
    assert read_pairs(found.to_dict()) == list(found.pairs)
    assert read_pairs({"schema": "lensconv.matrix/1"}) == []
    ratios = [2.0, round(2.1 / 1.1, 4), round(2.2 / 1.2, 4)]
    assert [round(math.exp(value), 4) for value in used_log_ratios(found.pairs)] == ratios
    assert [pair.get("ratio") for pair in found.to_dict()["timed_pairs"] if pair["used"]] == ratios
    nothing = TimedPair(0, 0, "original", None, None, {"original": [], "quantized": []}, False, {}, True)
    assert (nothing.log_ratio, used_log_ratios([nothing]), "ratio" in nothing.to_dict()) == (None, [], False)


def test_the_first_prompt_of_offloading_is_not_timed() -> None:
    with pytest.raises(UsageError, match="is cold") as caught:
        BenchOptions(timing_prompts=1)
    assert "--mode standard" in caught.value.hint
    chosen = BenchOptions(timing_prompts=1, mode="standard")
    assert (pairing.timing_count(SUITE, chosen), pairing.timing_count(SUITE, BenchOptions(timing_prompts=0))) == (1, 4)
