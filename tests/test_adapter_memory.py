"""The memory and the threads that adapters take: what is counted, predicted and freed, and who computes products."""

from __future__ import annotations

import gc
import json
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from converter import ConvertOptions, Recipe, convert
from converter.checkpoint.header import TensorEntry
from converter.checkpoint.layout import Layout, Slot, TensorSpec
from converter.checkpoint.source import SourceTensor
from converter.console import Progress
from converter.conversion.adapters import weights
from converter.conversion.adapters.additions import Addition
from converter.conversion.adapters.modules import Factor, ModuleAdapter, ModuleShape
from converter.conversion.execution.jobs import Job, KeepJob, Output, QuantizeJob
from converter.conversion.execution.work import Work, memory_budget
from converter.conversion.planning.methods import Kind, Method
from converter.conversion.planning.plan import Plan, PlannedModule
from converter.errors import MemoryLimitError
from tests import reference
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


#: A weight that is much larger than its factors and a piece.
WIDE = ModuleShape((40_000, 300), has_bias=False)


def wide_work(method: Method | None) -> Work:
    """The work of one such weight, kept or quantized, to which an adapter is added."""
    tensor = SourceTensor(TensorEntry("x.weight", "BF16", WIDE.weight, 0, 24_000_000), Path("x"), 0)
    adapter = ModuleAdapter(Factor((2, 300), tensor), Factor((40_000, 2), tensor), 1.0)
    addition = Addition(WIDE, (adapter,))
    job: Job
    if method is None:
        job = KeepJob(tensor, Output(TensorSpec("x.weight", "BF16", WIDE.weight), Slot("x", 0, 0)), addition=addition)
    else:
        job = QuantizeJob(tensor, {}, PlannedModule("x", "x.weight", WIDE.weight, {}), method, addition=addition)
    return Work(Plan("x", "x", (), {}), Layout((), {}, "", b""), (job,))


@pytest.mark.parametrize("method", [None, Method(Kind.FUSED), Method(Kind.ROWS)], ids=str)
def test_a_conversion_needs_the_memory_of_the_test_of_products(method: Method | None) -> None:
    """A whole product is computed once, in float32, to see whether its blocks equal it."""
    work = wide_work(method).with_blocks()
    product, (job,) = 40_000 * 300 * 4, work.jobs
    assert job.largest_share < product < work.check_bytes == work.needed_bytes < 1.1 * product
    assert memory_budget(work, work.needed_bytes) == work.needed_bytes
    with pytest.raises(MemoryLimitError, match=f"needs {work.needed_bytes} with this recipe"):
        memory_budget(work, work.needed_bytes - 1)
    # Where whole products are computed, one stays until the last row.
    (whole,) = wide_work(method).jobs
    assert product < whole.fixed_bytes < whole.largest_share


@pytest.mark.parametrize(
    ("recipe", "exact", "threads"), [("int8", True, 1), ("uint4", True, 1), ("int8", False, 3), ("svd", True, 3)]
)
def test_products_are_computed_with_the_threads_that_their_bits_need(
    recipe: str,
    exact: bool,
    threads: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """One thread for blocks, and for whole products those of the reference, which SDNQ's factorisations need, too."""
    request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))
    torch.set_num_threads(3)
    source, _, choice = flux_of_kohya(tmp_path)
    used: set[tuple[bool, int]] = set()
    product = weights.product

    def noting(*arguments: Any) -> torch.Tensor:
        used.add((threading.current_thread() is threading.main_thread(), torch.get_num_threads()))
        return product(*arguments)

    monkeypatch.setattr(weights, "product", noting)
    if not exact:
        monkeypatch.setattr(weights, "blocks_are_exact", lambda *_: False)
    weights._blocks_are_exact.cache_clear()
    options = ConvertOptions(adapters=(choice,), jobs=2)
    convert(source, tmp_path / "out", Recipe("mine", reference.RECIPES[recipe]), options)
    # The test of products is the only one that the first thread computes.
    tested = {(True, 1), (True, 3)} if threads == 1 else set()
    assert used == {(False, threads), *tested}
    assert torch.get_num_threads() == 3
