"""What drawing takes in weights: predicted from headers, compared with what the libraries load."""

from __future__ import annotations

import importlib
import pkgutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models.modeling_utils import ModelMixin

from converter import convert, plan
from converter.checkpoint.components import examine_components
from converter.conversion.options import ConvertOptions
from converter.conversion.recipe.recipe import Recipe, parse_recipe
from converter.measurement.evidence.names import METRICS_NAME, OFFLOAD_NAME
from converter.measurement.evidence.units import GB
from converter.models.kept_floats import KEPT_IN_FLOAT32
from converter.models.pipeline_fit import FitReport
from converter.models.pipeline_memory import ComponentMemory, PipelineMemory, pipeline_memory
from converter.presentation.card.memory import describe_cards, memory_table, release_memory
from converter.presentation.card.release import read_release
from converter.synthesis.pipelines.presets import PIPELINES
from converter.synthesis.synthesize import synthesize
from tests.conftest import ROOT
from tests.published import published_metrics, published_offload
from tests.real_layout import real_repo

#: Options of SDNQ that decide in which dtype the parts of a weight are loaded.
RECIPES = {
    "products of int8": 'weights_dtype = "int8"\nuse_quantized_matmul = true\ndequantize_fp32 = false',
    "products of uint4": 'weights_dtype = "uint4"\nuse_quantized_matmul = true\ndequantize_fp32 = false',
    "SVD": 'weights_dtype = "int5"\nuse_svd = true\nsvd_rank = 8',
    "SVD in bfloat16": 'weights_dtype = "uint4"\nuse_svd = true\nsvd_rank = 8\ndequantize_fp32 = false',
    "float8": 'weights_dtype = "float8_e4m3fn"\nuse_quantized_matmul = true\ndequantize_fp32 = false',
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fitting")


def make(folder: Path, preset: str) -> Path:
    """A tiny pipeline."""
    if not (folder / preset).exists():
        synthesize(folder / preset, preset=preset)
    return folder / preset


def loaded_bytes(repo: Path) -> dict[str, int]:
    """Bytes of what diffusers loads of each component in bfloat16, without buffers that it computes."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(repo, dtype=torch.bfloat16)
    found = {}
    for name, model in pipe.components.items():
        if isinstance(model, torch.nn.Module):
            # Tied tensors have several names.
            tensors = {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()}
            found[name] = sum(tensor.nbytes for tensor in tensors.values())
    return found


def by_component(memory: PipelineMemory) -> dict[str, int]:
    return {component.name: component.bytes for component in memory.components}


def check_exact(source: Path, output: Path, recipe: Recipe | None, *names: str) -> None:
    """Convert, load both, and compare them with the plan and with the card."""
    options = ConvertOptions(components=names)
    planned = plan(source, recipe, options).memory
    convert(source, output, recipe, options)
    release = release_memory(read_release(output))
    assert planned is not None
    assert release == planned
    assert planned.is_exact
    assert by_component(planned.source) == loaded_bytes(source)
    assert by_component(planned.result) == loaded_bytes(output)


@pytest.mark.parametrize("preset", PIPELINES)
def test_weights_are_predicted_to_the_byte(folder: Path, preset: str) -> None:
    """Of every preset, with all its denoisers and text encoders quantized."""
    names = [model.name for model in PIPELINES[preset].models if model.name != "vae"]
    check_exact(make(folder, preset), folder / f"{preset}-quantized", None, *names)


@pytest.mark.parametrize("name", RECIPES)
def test_parts_have_the_dtype_in_which_they_are_loaded(folder: Path, name: str) -> None:
    recipe = parse_recipe(f'name = "parts"\n[sdnq]\n{RECIPES[name]}\n', where="parts")
    check_exact(make(folder, "tiny-flux"), folder / name, recipe, "transformer", "text_encoder_2")


def test_diffusers_keeps_the_same_tensors_in_float32() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in pkgutil.walk_packages(diffusers.models.__path__, "diffusers.models."):
            importlib.import_module(module.name)

    def classes(parent: Any) -> Iterator[Any]:
        for child in parent.__subclasses__():
            yield child
            yield from classes(child)

    # Other tests define classes of their own.
    found = [item for item in classes(ModelMixin) if item.__module__.startswith("diffusers.")]
    kept = {item.__name__: {*item._keep_in_fp32_modules} for item in found if item._keep_in_fp32_modules}
    assert kept == {name: {*parts} for name, parts in KEPT_IN_FLOAT32.items()}


def test_sdnq_unpacks_one_weight_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest weight that a run of the transformer unpacks is the predicted one."""
    from sdnq.dequantizer import SDNQDequantizer

    source, output = make(folder, "tiny-flux"), folder / "unpacking"
    convert(source, output)
    fit = release_memory(read_release(output))
    assert fit is not None
    pipe = diffusers.DiffusionPipeline.from_pretrained(output, dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    unpacked, original = [], SDNQDequantizer.__call__

    def watched(*arguments: Any, **options: Any) -> torch.Tensor:
        result = original(*arguments, **options)
        unpacked.append(result.nbytes)
        return result

    monkeypatch.setattr(SDNQDequantizer, "__call__", watched)
    pipe("a cat", height=32, width=32, num_inference_steps=1, output_type="latent")
    (transformer,) = (item for item in fit.result.components if item.name == "transformer")
    assert transformer.unpacked == max(unpacked) > 0


def test_where_weights_are() -> None:
    encoder = ComponentMemory("text_encoder", 9_000, 500)
    denoiser = ComponentMemory("transformer", 6_000, 300, unpacked=200)
    checker = ComponentMemory("safety_checker", 1_000, 100, stays=True)
    memory = PipelineMemory((encoder, denoiser, checker))
    assert memory.placed("none", on_cpu=True) == (16_200, 0)
    assert memory.placed("none", on_cpu=False) == (9_000, 16_200)
    assert memory.placed("model", on_cpu=False) == (16_000, 10_000)
    assert memory.placed("sequential", on_cpu=False) == (16_000, 1_500)
    assert PipelineMemory((denoiser,)).placed("model", on_cpu=False) == (6_000, 6_200)


def test_which_placement_leaves_room() -> None:
    sizes = (("text_encoder", 13, 2), ("transformer", 4, 1))
    memory = PipelineMemory(tuple(ComponentMemory(name, gb * GB, module * GB) for name, gb, module in sizes))
    assert describe_cards(FitReport(memory, memory), {}) == [
        "8 GB: sequential offload; weights take 2.000 GB, which leaves 6.0 GB for activations.",
        "12 GB: sequential offload; weights take 2.000 GB, which leaves 10.0 GB for activations.",
        "16 GB: model offload; weights take 13.000 GB, which leaves 3.0 GB for activations.",
        "24 GB: all on the device; weights take 17.000 GB, which leaves 7.0 GB for activations.",
    ]
    # Where a peak was measured, it decides.
    peaks = {"cold": {"peak_allocated_gb": 14.5}, "warm": {"peak_allocated_gb": {"max": 16.25}}}
    metrics = {"models": {"quantized": {"generation_peak_allocated_gb": {"max": 21.5}}}}
    measured: dict[str, Any] = {OFFLOAD_NAME: {"models": {"quantized": peaks}}, METRICS_NAME: metrics}
    of_16, of_24 = describe_cards(FitReport(memory, memory), measured)[2:]
    assert of_16 == "16 GB: sequential offload; weights take 2.000 GB, which leaves 14.0 GB for activations."
    assert of_24.endswith("which leaves 7.0 GB for activations; the measured peak is 21.5 GB.")
    huge = PipelineMemory((ComponentMemory("transformer", 90 * GB, 30 * GB),))
    assert describe_cards(FitReport(huge, huge), {})[0] == "8 GB: no placement leaves room."


def test_the_published_peaks_are_those_of_weights_and_activations(tiny_repo: Path, tmp_path: Path) -> None:
    """Of Lens on an H100; its text encoder is in MXFP4, which model offload leaves on the GPU."""
    fit = plan(real_repo(tiny_repo, tmp_path)).memory
    assert fit is not None
    guide = (ROOT / "docs" / "converting.md").read_text()
    for model, memory in (("original", fit.source), ("quantized", fit.result)):
        metrics, offload = published_metrics()["models"][model], published_offload()["models"][model]
        loaded, drawn = metrics["load_peak_allocated_gb"], metrics["generation_peak_allocated_gb"]["max"]
        offloaded = offload["warm"]["peak_allocated_gb"]["max"]
        taken = {name: memory.placed(name, on_cpu=False)[1] / GB for name in ("none", "model")}
        assert taken["none"] <= loaded <= 1.02 * taken["none"]
        assert 0.92 < taken["model"] / offloaded < 1
        assert f"\n| {model} | all on the device | {taken['none']:.2f} | {loaded:.2f} | {drawn:.2f} |\n" in guide
        assert f"\n| {model} | model offload | {taken['model']:.2f} | | {offloaded:.2f} |\n" in guide
    encoder = fit.result.components[0]
    assert (encoder.name, encoder.bytes, encoder.without_mxfp4 // 10**8) == ("text_encoder", 13_761_264_768, 418)
    assert "text_encoder then takes 41.8 GB instead of 13.8 GB" in fit.describe()
    ram, device = fit.result.placed("sequential", on_cpu=False)
    assert (round(ram / GB, 1), round(device / GB, 1)) == (46.3, 1.6)


def test_peaks_are_shown_where_they_were_measured() -> None:
    memory = PipelineMemory((ComponentMemory("transformer", 4_000_000_000, 100_000_000),))
    fit = FitReport(memory, memory)
    assert memory_table(fit, {}).columns == [
        *("Placement", "Source: device", "Source: RAM", "Release: device", "Release: RAM"),
    ]
    metrics = {"models": {"quantized": {"generation_peak_allocated_gb": {"mean": 4.5, "max": 5.25}}}}
    offload = {"models": {"original": {"cold": {"peak_allocated_gb": 4.75}, "warm": {"failed": "x"}}, "quantized": {}}}
    table = memory_table(fit, {METRICS_NAME: metrics, OFFLOAD_NAME: offload})
    assert table.columns[2] == "Source: measured peak, GB"
    assert [row[2] for row in table.rows] == ["–", "4.750", "–"]  # noqa: RUF001 - a dash
    assert [row[5] for row in table.rows] == ["5.250", "–", "–"]  # noqa: RUF001


def test_components_without_headers_count_as_stored(folder: Path) -> None:
    repo = make(folder, "tiny-z-image")
    unread = examine_components(repo, reads_headers=False)
    known, sizes = (pipeline_memory(unread, 2, counts_files=counts) for counts in (False, True))
    assert known.total == 0
    assert by_component(sizes) == {item.name: item.footprint.bytes for item in unread if item.is_model}
    fit = FitReport(sizes, sizes)
    assert not fit.is_exact
    assert "Of text_encoder, transformer, vae, only the sizes of files are known, and count." in fit.describe()
