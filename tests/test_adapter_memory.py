"""The memory that adapters take: what a plan predicts, what a conversion counts, and what it frees."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest

from converter import ConvertOptions, convert
from converter.console import Progress
from converter.conversion.adapters.modules import Factor
from tests.conftest import run_process
from tests.lora_files import flux_sizes, of_authors, write
from tests.test_adapters_conversion import build, flux_of_kohya, save_pipeline


def held_tensors() -> list[Any]:
    """What of adapters is in memory."""
    return [item for item in gc.get_objects() if isinstance(item, Factor) and item.held is not None]


def test_what_a_converter_made_is_freed_before_the_first_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, _, choice = flux_of_kohya(tmp_path)
    held: list[int] = []
    monkeypatch.setattr(Progress, "advance", lambda *_: held.append(len(held_tensors())))
    convert(source, tmp_path / "out", options=ConvertOptions(adapters=(choice, choice), jobs=1))
    assert len(held) > 20
    assert not any(held)


@pytest.mark.long
def test_a_plan_predicts_the_peak_where_a_converter_makes_large_tensors(tmp_path: Path) -> None:
    """For real processes: not less than what is measured, and what is due to the adapter at most a fifth more."""
    source = save_pipeline(tmp_path / "source", build("flux"), "FluxPipeline")
    sizes = {name: size for name, size in flux_sizes(128, 2, 2).items() if "linear1" not in name}
    file = write(tmp_path / "large.safetensors", of_authors(sizes, "kohya", rank=10_000))
    predicted, measured = [], []
    for options in ((), ("--lora", file)):
        planned = run_process("plan", source, *options, "--jobs", 1, "--json")
        done = run_process("convert", source, tmp_path / f"out{len(options)}", *options, "--jobs", 1, "--json")
        assert done.returncode == 0, done.stderr
        predicted.append(json.loads(planned.stdout)["peak_memory_bytes"])
        measured.append(json.loads(done.stdout)["peak_rss_bytes"])
        assert measured[-1] <= predicted[-1], options
    added = measured[1] - measured[0]
    assert 300_000_000 < added < predicted[1] - predicted[0] < 1.2 * added
