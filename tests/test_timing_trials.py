"""The trials of the interval: what earlier versions claimed, and what is counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts.interval_coverage import Machine, bootstrap_over_prompts, coverage, simulate
from scripts.timing_trials import examine, summarise
from tests import charts
from tests.published import published_matrix
from tests.timed_pairs import matrix_over_pairs, pair


def test_the_old_bootstrap_gives_what_it_gave() -> None:
    rows = published_matrix()["prompts"]
    original, quantized = ([row[model]["time_s"] for row in rows] for model in ("original", "quantized"))
    ends = bootstrap_over_prompts(original, quantized, np.random.default_rng(0), 10_000)
    assert [round(end, 1) for end in ends] == [11.4, 22.3]


def test_students_t_holds_where_the_old_bootstrap_does_not() -> None:
    """The share of 200 intervals that contain the true ratio; 0.91 is 2.6 standard deviations below 0.95."""
    held = coverage(Machine(), 4, 200, np.random.default_rng(0))
    assert held["Student's t over pairs"] > 0.91
    assert held["bootstrap over prompts"] < 0.4
    assert "Student's t over pairs" not in coverage(Machine(), 2, 1, np.random.default_rng(0))


def test_the_order_of_simulated_processes_alternates() -> None:
    times = simulate(Machine(process=0, image=0, slope=1), 3, np.random.default_rng(0))
    logs = np.log(times[..., 0] / times[0, 0, 0])
    assert logs == pytest.approx(np.array([[0, 1], [3, 2], [4, 5]]))


def test_what_a_trial_counts(tmp_path: Path) -> None:
    busy = {"disturbed": {"quantized": ["other programs"]}}
    pairs = [pair(0, 2.0, 2.2), pair(1, 2.0, 1.9), pair(2, 2.0, 3.0, used=False, **busy), pair(2, 2.0, 2.1, attempt=1)]
    matrix = matrix_over_pairs(charts.matrix({"P01": (1.0, 1.1), "P02": (1.0, 1.1)}), pairs, ["P01", "P02"])
    (tmp_path / "comparison_matrix.json").write_text(json.dumps(matrix))
    rows: list[dict[str, Any]] = [{"format": "lensconv.measurements/2"}]
    for model, time in (("original", 1.0), ("quantized", 1.1)):
        cell: dict[str, Any] = {"pair": 0, "attempt": 0, "model": model, "time_s": time}
        rows += [{**cell, "key": key} for key in ("(load)", "P01", "P02", "P01+1000")]
        rows.append({**cell, "pair": 1, "key": "P01", "time_s": 9.0})
    (tmp_path / "measurements.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = examine(tmp_path)
    assert (found["over_prompts"], found["interval"]) == (
        [10.0, 10.0],
        matrix["summary"]["slowdown"]["percent_interval"],
    )
    counts = {"sessions": 8, "disturbed_sessions": 1, "measured_again": 1, "disturbed_pairs": 0}
    assert {key: found[key] for key in counts} == counts
    summary = summarise([found, {**found, "interval": [1.0, 9.0], "disturbed_sessions": 0}], None)
    assert (summary["interval"]["contain_0"], summary["interval"]["above_0"]) == (1, 1)
    assert (summary["over_prompts"]["contain_0"], summary["runs_with_disturbed_sessions"]) == (0, 1)
    truth = {"percent": 8.0, "interval": [7.0, 9.0]}
    assert summarise([found], truth)["interval"]["contain_truth"] == 1
