"""Workers that are killed, run out of memory or hang, for real."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

from converter.measurement.evidence.files import read_evidence_folder
from converter.schemas import load_schema
from tests.benches import DRAWING, LIMIT, SUITE
from tests.conftest import Outcome, time_limit

Lensconv = Callable[..., Outcome]

#: Runs before everything else in every process that has it on its path; plants faults into the workers' second model.
FAULTS = """
import sys

if "converter.measurement.benchmark.worker" in " ".join(sys.orig_argv):
    import importlib.abc, importlib.machinery, os, signal, time

    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name != "converter.measurement.benchmark.session":
                return None
            sys.meta_path.remove(self)
            spec = importlib.machinery.PathFinder.find_spec(name, path)
            load = spec.loader.exec_module

            def exec_module(module):
                load(module)
                plant(module.Session)

            spec.loader.exec_module = exec_module
            return spec

    def plant(session):
        measure, seen = session._measure, set()

        def faulty(self, settings):
            is_second = settings.seed in seen
            seen.add(settings.seed)
            if self.repo.quantization is not None:
                if settings.seed == 302:
                    os.kill(os.getpid(), signal.SIGKILL)
                if settings.seed == 303:
                    import torch
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
                if settings.seed == 304 and is_second:
                    time.sleep(3600)
            return measure(self, settings)

        session._measure = faulty

    sys.meta_path.insert(0, Finder())
"""


def test_faults_become_failed_rows_and_the_rest_goes_on(
    tiny_repo: Path,
    tiny_release: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lensconv: Lensconv,
) -> None:
    """A worker that is killed, one that runs out of memory, one that hangs; then the same without the faults."""
    (tmp_path / "sitecustomize.py").write_text(FAULTS)
    longer = tmp_path / "longer.toml"
    longer.write_text(SUITE + '\n[[prompts]]\nid = "D4"\nscenario = "Blue"\nseed = 304\nprompt = "a blue cube"\n')
    output = tmp_path / "evidence"
    options = ("--mode", "standard", "--no-baseline", "--timeout", 15, "--json")
    arguments = ("bench", tiny_repo, tiny_release, "--prompts", longer, "--out", output, *DRAWING, *options)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with time_limit(LIMIT):
        outcome = lensconv(*arguments)
    assert outcome.code == 1
    reasons = {
        "B2": "killed by SIGKILL, perhaps because memory ran out",
        "C3": "while warming up: there is not enough memory: CUDA out of memory. Tried to allocate 20.00 GiB.",
        "D4": "hung: nothing for 15 s, and was killed",
    }
    assert outcome.result["failed"] == [
        {"model": "quantized", "mode": "standard", "repeat": 0, "prompt": key, "reason": reason}
        for key, reason in reasons.items()
    ]
    evidence = read_evidence_folder(output)
    matrix = evidence["comparison_matrix.json"]
    for row in matrix["prompts"]:
        assert row["original"]["time_s"] > 0
        assert row["quantized"].get("failed") == reasons.get(row["id"])
    assert matrix["summary"]["original"]["count"] == 4
    assert matrix["summary"]["slowdown"]["pairs"] == matrix["summary"]["quantized"]["count"] == 1
    assert len(evidence["benchmark_metrics.json"]["models"]["quantized"]["failed"]) == 3
    assert [pair["id"] for pair in evidence["image_fidelity.json"]["pairs"]] == ["A1"]
    assert outcome.result["ok"] is False
    jsonschema.validate(outcome.result, load_schema("bench"))

    monkeypatch.delenv("PYTHONPATH")
    with time_limit(LIMIT):
        again = lensconv(*arguments)
    assert again.code == 0
    assert (again.result["images"], again.result["resumed"]) == (8, 5)
    sides = {row["id"]: row["quantized"] for row in read_evidence_folder(output)["comparison_matrix.json"]["prompts"]}
    assert [key for key, side in sides.items() if "failed_attempts" in side] == list(reasons)
    assert sides["B2"]["failed_attempts"] == [{"repeat": 0, "reason": reasons["B2"]}]
