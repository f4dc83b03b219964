"""Conversions: what a release holds, and that it is the same every time."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from converter import ConvertOptions, Recipe, Rule, convert, find_recipe, plan
from converter.checkpoint.header import TensorEntry
from converter.checkpoint.layout import Layout
from converter.checkpoint.reader import TensorReader
from converter.checkpoint.source import SourceTensor, open_checkpoint
from converter.console import Progress
from converter.conversion import convert as convert_module
from converter.conversion import plans as plans_module
from converter.conversion.execution.jobs import QuantizeJob
from converter.conversion.execution.work import Work, make_work, memory_budget
from converter.conversion.planner_process import PlanAnswer, PlannerProcess, plan_here
from converter.conversion.planning.methods import Kind, Method
from converter.conversion.planning.plan import Plan, PlannedModule
from converter.conversion.planning.planner import plan_with_sdnq
from converter.conversion.planning.prediction import plans_agree, predict_plan
from converter.conversion.preview import predict_peak
from converter.conversion.recipe.recipe import parse_setting
from converter.conversion.request import open_request
from converter.errors import (
    MalformedCheckpoint,
    MemoryLimitError,
    MissingInput,
    RecipeError,
    UnsupportedCheckpoint,
)
from converter.libraries import load_library
from converter.memory import peak_rss_bytes
from converter.schemas import load_schema
from tests.conftest import call, names_in, run_python, snapshot
from tests.reference import LENS_OPTIONS, RECIPES, convert_with_sdnq, weight_files
from tests.reporters import Notes
from tests.tiny_models import WEIGHTS, convert_default, make_pipeline, save_model


def test_files_have_the_mode_of_the_umask(lens_source: Path, tmp_path: Path) -> None:
    previous = os.umask(0o026)
    try:
        convert(lens_source, tmp_path / "out")
    finally:
        os.umask(previous)
    for file in (tmp_path / "out").iterdir():
        assert file.stat().st_mode & 0o777 == 0o640, file.name


#: Converts in a process in which SDNQ is not imported, so that another one plans at first.
_CONVERT = """
import sys
from converter.cli.main import run
from converter.console import Console
source, place, *recipes = sys.argv[1:]
for recipe in recipes:
    line = ["convert", source, f"{place}/{recipe}", "--recipe", recipe, "--jobs", "1", "--memory", "9MB"]
    assert run(line, Console()) == 0
"""


@pytest.mark.long
def test_two_runs_write_the_same_bytes(lens_source: Path, tmp_path: Path) -> None:
    """In other folders, with other hash seeds, threads and memory, and planned by another process or the same."""
    recipes = ("lens-uint4-static", "sdnq-int8")
    places = [tmp_path / name for name in ("another process", "this process")]
    for place in places:
        place.mkdir()
    other_seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    environment = {**os.environ, "PYTHONHASHSEED": other_seed}
    done = run_python(_CONVERT, lens_source, places[0], *recipes, env=environment)
    assert done.returncode == 0, done.stderr
    load_library("sdnq")
    for recipe in recipes:
        options = ("--recipe", recipe, "--jobs", 5, "--memory", "64MB")
        assert call("convert", lens_source, places[1] / recipe, *options).code == 0
    assert snapshot(places[0]) == snapshot(places[1])
    assert {name.partition("/")[0] for name in snapshot(places[0])} == set(recipes)


def test_weights_can_be_quantized_from_float32(lens_source: Path, tmp_path: Path) -> None:
    recipe, from_float32 = find_recipe(None, "LensTransformer2DModel"), ConvertOptions(quantize_from="float32")
    convert(lens_source, tmp_path / "out", recipe, from_float32)
    written = load_file(tmp_path / "out" / WEIGHTS)
    source = load_file(lens_source / WEIGHTS)
    quantize = load_library("sdnq.quantizer").sdnq_quantize_layer_weight
    options = {key: value for key, value in LENS_OPTIONS.items() if key != "modules_to_not_convert"}
    for name in ("attn.img_qkv", "img_mlp.w2"):
        path = f"transformer_blocks.1.{name}"
        _, parts = quantize(source[f"{path}.weight"], layer_class_name="Linear", torch_dtype=torch.bfloat16, **options)
        for part in ("weight", "scale", "zero_point"):
            assert torch.equal(written[f"{path}.{part}"], parts[part]), part
    assert torch.equal(written["proj_out.weight"], source["proj_out.weight"].bfloat16())
    assert weight_files(tmp_path / "out") != weight_files(convert_default(lens_source, tmp_path / "other"))
    (described,) = json.loads((tmp_path / "out" / "lensconv_manifest.json").read_text())["components"]
    assert described["recipe"]["quantize_from"] == "float32"
    # Where the weights decide, and every loss is small enough, the first dtype is taken.
    tried = {**recipe.options, "use_dynamic_quantization": True, "dynamic_loss_threshold": 1e9}
    convert(lens_source, tmp_path / "tried", replace(recipe, options=tried), from_float32)
    assert weight_files(tmp_path / "tried") == weight_files(tmp_path / "out")


def test_one_file_without_a_config_is_recognised_as_lens(tmp_path: Path) -> None:
    """What its tensors do not show is assumed, and both commands say so."""
    source = save_model(tmp_path / "source", "LensTransformer2DModel")
    alone = tmp_path / "alone" / "lens.safetensors"
    alone.parent.mkdir()
    shutil.copyfile(source / WEIGHTS, alone)
    notes = Notes()
    report = convert(alone, tmp_path / "out", reporter=notes).to_dict()
    assert weight_files(tmp_path / "out") == weight_files(convert_default(source, tmp_path / "expected"))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_attention_heads"] == 3
    assumed = {
        "_class_name": "LensTransformer2DModel",
        "patch_size": 2,
        "axes_dims_rope": [8, 28, 28],
        "selected_layer_index": [5, 11, 17, 23],
    }
    assert assumed.items() <= config.items()
    planned = plan(alone).to_dict()
    for result, name in ((report, "convert"), (planned, "plan")):
        jsonschema.validate(result, load_schema(name))
        assert result["assumed_config"] == assumed
    note = (
        "no config.json names the model's class; assumed from microsoft/Lens: _class_name LensTransformer2DModel, "
        "patch_size 2, axes_dims_rope [8, 28, 28], selected_layer_index [5, 11, 17, 23]"
    )
    assert (planned["notes"], notes.texts) == ([note], [f"Note: {note}."])


@pytest.mark.parametrize("rows", [31, 32, 63, 64, 80, 97, 1000])
def test_no_run_of_rows_is_too_short_for_the_decision_of_sdnq(rows: int) -> None:
    tensor = SourceTensor(TensorEntry("x.weight", "BF16", (rows, 64), 0, 128 * rows), Path("x"), 0)
    job = QuantizeJob(tensor, {}, PlannedModule("x", "x.weight", (rows, 64), {}), Method(Kind.ROWS))
    starts, stops = zip(*job.row_runs(1), strict=True)
    assert (starts[0], stops[-1]) == (0, rows)
    assert starts[1:] == stops[:-1]
    assert len(starts) == max(1, rows // 32)
    assert all(stop - start >= min(rows, 32) for start, stop in zip(starts, stops, strict=True))
    aligned = replace(job, method=Method(Kind.ROWS, rows_multiple=64))
    assert [start for start, _ in aligned.row_runs(1)] == [*range(0, max(1, rows - 31), 64)]


def test_neither_an_interrupted_run_of_another_kernel_counts_nor_a_plan_on_other_assumptions(lens_source: Path) -> None:
    target = open_request(lens_source, None, ConvertOptions()).main
    predicted = predict_plan(target.checkpoint, target.recipe)
    assert predicted is not None
    assert plans_agree(predicted, replace(predicted, config={"x": 1}))
    weight, module = next(iter(predicted.modules.items()))
    others: dict[str, Any] = {"class_name": "x", "stem": "x", "tensors": predicted.tensors[1:], "ignored": ("x",)}
    others |= {"index_metadata": {"total_parameters": 1}, "assumed_config": {"patch_size": 2}}
    others["modules"] = {**predicted.modules, weight: replace(module, options={**module.options, "group_size": -2})}
    for name, value in others.items():
        assert not plans_agree(predicted, replace(predicted, **{name: value})), name
    first = predicted.tensors[0]
    wider = replace(predicted, tensors=(replace(first, spec=replace(first.spec, dtype="F32")), *predicted.tensors[1:]))
    works = [make_work(target, predicted), make_work(target, predicted, use_fused=False), make_work(target, wider)]
    assert len({work.content for work in works}) == 3


def test_the_peak_of_memory_follows_from_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a weight of 64 MiB, by kind, threads and ``memory``."""
    tensor = SourceTensor(TensorEntry("x.weight", "BF16", (8192, 1024, 2, 2), 0, 1 << 26), Path("x"), 0)
    monkeypatch.setattr(torch.version, "cuda", None)
    for kind, jobs, memory, pieces, *device in (
        *((Kind.DEVICE, 1, None, 92_274_688, "cuda"), (Kind.DEVICE, 4, None, 256_000_000, "cuda")),
        *((Kind.FUSED, 1, 10**8, 20_971_520), (Kind.FUSED, 5, None, 104_857_600), (Kind.FUSED, 5, 10**8, 10**8)),
        *((Kind.FUSED, 16, None, 256_000_000), (Kind.ROWS, 1, None, 88_080_384), (Kind.WHOLE, 4, None, 3_288_334_336)),
    ):
        job = QuantizeJob(tensor, {}, PlannedModule("x", "x.weight", (8192, 1024, 2, 2), {}), Method(kind))
        work = Work(Plan("x", "x", (), {}), Layout((), {}, "", b""), (job,))
        options = ConvertOptions(jobs=jobs, memory=memory, device=device[0] if device else "cpu")
        assert predict_peak(work, options, has_planner=False) == 540_000_000 + pieces, (kind, jobs, memory)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert predict_peak(replace(work, jobs=()), options, has_planner=True) == 1_110_000_000
    on_gpu = replace(options, device="cuda")
    assert predict_peak(replace(work, jobs=()), on_gpu, has_planner=True) == 1_790_000_000
    for memory, count, budget in ((None, 1, 3_288_334_336), (3_288_334_336, 1, 3_288_334_336), (None, 0, 256_000_000)):
        assert memory_budget(replace(work, jobs=work.jobs[:count]), memory) == budget
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(99))
    assert (ConvertOptions().workers, ConvertOptions(jobs=17).workers) == (16, 17)
    assert (ConvertOptions(device="cuda").workers, ConvertOptions(device="cuda", jobs=5).workers) == (4, 5)


def test_torch_has_one_thread_only_where_its_results_do_not_depend_on_them(
    lens_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))
    torch.set_num_threads(3)
    used: set[int] = set()
    monkeypatch.setattr(Progress, "advance", lambda *_: used.add(torch.get_num_threads()))
    for special, seen in (({}, {1}), ({"use_svd": True, "svd_rank": 8}, {1, 3})):
        rule = Rule(family="attn", options={"weights_dtype": "int8", **special})
        convert(lens_source, tmp_path / f"{seen}", Recipe("x", {"weights_dtype": "int8"}, (rule,)))
        assert (used, torch.get_num_threads()) == (seen, 3)


def test_the_prediction_is_what_sdnq_plans(lens_source: Path, tmp_path: Path) -> None:
    for source in (lens_source, save_model(tmp_path / "wide", "LensTransformer2DModel", num_attention_heads=6)):
        checkpoint = open_checkpoint(source)
        for recipe in (
            find_recipe(None, "LensTransformer2DModel"),
            find_recipe("sdnq-uint4", ""),
            find_recipe("sdnq-uint4", "").with_rules([parse_setting("*.attn.*=keep")]),
        ):
            predicted = predict_plan(checkpoint, recipe)
            actual = plan_with_sdnq(checkpoint, recipe)
            assert predicted is not None
            assert predicted.tensors == actual.tensors
            assert plans_agree(predicted, actual)
    mixed = find_recipe("sdnq-uint4", "").with_rules([parse_setting("*.attn.*=int8")])
    assert predict_plan(open_checkpoint(lens_source), mixed) is None


def refuse(_: PlannerProcess) -> PlanAnswer:
    raise RecipeError("recipe x", "unknown to SDNQ")


@pytest.mark.parametrize("lie", ["another plan", "a kernel that differs", "a planner that dies"])
def test_a_wrong_prediction_costs_time_and_no_byte(
    lie: str, lens_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes, options = Notes(), ConvertOptions(cache=False)
    for module in (convert_module, plans_module):
        monkeypatch.setattr(module, "is_loaded", lambda: False)
    if lie == "another plan":

        def wrong(*arguments: Any) -> Any:
            predicted = predict_plan(*arguments)
            assert predicted is not None
            object.__setattr__(predicted, "tensors", predicted.tensors[::-1])
            return predicted

        monkeypatch.setattr(plans_module, "predict_plan", wrong)
        options = replace(options, shard_bytes=200_000)
        # The process that plans imports nothing from the current folder, and libraries may print there.
        hook = "lambda _, a: a[0] == 'torch' and (os.write(1, b'x'), '' in sys.path and os._exit(1))"
        (tmp_path / "sitecustomize.py").write_text(f"import os, sys\nsys.addaudithook({hook})")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    elif lie == "a planner that dies":
        monkeypatch.setattr(sys, "executable", "false")
    else:
        # It may need more memory than is allowed, and waits for no plan.
        little, stopped = replace(options, memory=30_000), []

        def answer(self: PlannerProcess) -> PlanAnswer:
            stopped.append(self._process)
            planned = plan_here(open_request(lens_source, None, little).main)
            return replace(planned, kernel_agrees=False, peak_rss_bytes=10**15)

        monkeypatch.setattr(PlannerProcess, "answer", answer)
        with pytest.raises(MemoryLimitError, match="--memory 30000 is too little"):
            convert(lens_source, tmp_path / "out", options=little)
        assert names_in(tmp_path) == []
        assert [process.returncode for process in stopped] == [-signal.SIGKILL]
        # A version of SDNQ that refuses what was predicted will refuse it again.
        monkeypatch.setattr(PlannerProcess, "answer", refuse)
        with pytest.raises(RecipeError, match="unknown to SDNQ"):
            convert(lens_source, tmp_path / "out", options=options)
        assert names_in(tmp_path) == []
        monkeypatch.setattr(PlannerProcess, "answer", answer)
    report = convert(lens_source, tmp_path / "out", options=options, reporter=notes)
    assert bool(notes.texts) == (lie != "a planner that dies")
    of_planner = report.peak_rss_bytes - peak_rss_bytes()
    assert (of_planner > 100_000_000) == (lie != "a planner that dies"), "torch and SDNQ"
    assert (of_planner > 10**14) == (lie == "a kernel that differs")
    times_read = report.bytes_read_per_s * report.elapsed_s / plan(lens_source).source_bytes
    assert times_read == pytest.approx(1 if lie == "a planner that dies" else 2)
    shard = "200KB" if lie == "another plan" else "5GB"
    name = "LensTransformer2DModel"
    expected = convert_with_sdnq(lens_source, tmp_path / "expected", name, LENS_OPTIONS, shard=shard)
    assert weight_files(tmp_path / "out") == weight_files(expected)


def test_reads_that_come_in_pieces(
    lens_source: Path, lens_output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel hands out 2 GiB at most, and a network volume less."""
    read = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, views, position: read(file, [views[0][:9999]], position))
    assert snapshot(convert_default(lens_source, tmp_path / "out")) == snapshot(lens_output)


def test_a_file_that_is_gone_or_shorter_than_its_header_said(tmp_path: Path) -> None:
    tensor = SourceTensor(TensorEntry("x", "U8", (9,), 0, 9), tmp_path / "w", 0)
    with TensorReader() as reader:
        with pytest.raises(MissingInput, match="w: cannot be read: No such file"):
            reader.read_all(tensor)
        tensor.file.write_bytes(bytes(5))
        with pytest.raises(MalformedCheckpoint, match="w: tensor x: became shorter"):
            reader.read_all(tensor)


@pytest.mark.parametrize("recipe", [None, "sdnq-uint4", "sdnq-int8"])
@pytest.mark.parametrize("shard_bytes", [5 * 10**9, 300_000])
def test_the_plan_is_what_gets_written(recipe: str | None, shard_bytes: int, tmp_path: Path) -> None:
    source, options = make_pipeline(tmp_path / "source"), ConvertOptions(shard_bytes=shard_bytes)
    planned = plan(source, recipe, options)
    report = convert(source, tmp_path / "out", recipe, options)
    weights = (tmp_path / "out" / "transformer").iterdir()
    written = {f"transformer/{file.name}": file.stat().st_size for file in weights}
    del written["transformer/config.json"], written["transformer/quantization_config.json"]
    assert dict(planned.files) == written == {file.name: file.bytes for file in report.files if file.name in written}
    assert ("transformer/diffusion_pytorch_model.safetensors.index.json" in written) == (shard_bytes < 10**9)
    assert (planned.output_bytes_by_dtype, len(planned.plan.tensors)) == (report.bytes_by_dtype, report.tensors)


def test_nonfinite_numbers_are_converted_and_counted_if_allowed(lens_source: Path, tmp_path: Path) -> None:
    source = shutil.copytree(lens_source, tmp_path / "source")
    tensors = load_file(source / WEIGHTS)
    tensors["transformer_blocks.0.attn.img_qkv.weight"][3, 5] = np.nan
    tensors["transformer_blocks.0.attn.img_qkv.weight"][90, 0] = np.inf
    tensors["transformer_blocks.1.img_mod.1.weight"][7, 7] = 3.4e38
    save_file(tensors, source / WEIGHTS, metadata={"format": "pt"})
    report = convert(source, tmp_path / "out", options=ConvertOptions(allow_nonfinite=True))
    counted = {"transformer_blocks.0.attn.img_qkv.weight": 2, "transformer_blocks.1.img_mod.1.weight": 1}
    assert report.nonfinite == counted
    manifest = json.loads((tmp_path / "out" / "lensconv_manifest.json").read_text())
    assert manifest["components"][0]["source"]["nonfinite"] == counted
    with pytest.raises(UnsupportedCheckpoint, match=r"other parts than planned \(weight, scale, zero_point\)"):
        convert(source, tmp_path / "svd", Recipe("svd", RECIPES["svd"]), ConvertOptions(allow_nonfinite=True))
    assert names_in(tmp_path) == ["out", "source"]
    expected = convert_with_sdnq(source, tmp_path / "expected", "LensTransformer2DModel", LENS_OPTIONS)
    assert weight_files(tmp_path / "out") == weight_files(expected)
