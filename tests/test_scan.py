"""The weight level of ablation and search, against what `convert` writes and what `verify --against` measures."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from converter import ConvertOptions, Recipe, Rule, convert
from converter.checkpoint.layout import TensorSpec
from converter.checkpoint.reader import TensorReader
from converter.checkpoint.source import Checkpoint, SourceTensor, open_checkpoint
from converter.conversion.execution.jobs import QuantizeJob
from converter.conversion.planning.methods import Kind
from converter.conversion.planning.planner import plan_with_sdnq
from converter.conversion.recipe.recipe import find_recipe
from converter.errors import MemoryLimitError, NonFiniteWeight, OutputError
from converter.measurement.ablation.variants import Variant, distinct_storages
from converter.measurement.sensitivity.digest import variant_digest, weights_digest
from converter.measurement.sensitivity.figures import Figures, StorageFigures
from converter.measurement.sensitivity.scan import scan
from converter.measurement.sensitivity.storage import Storage
from converter.measurement.sensitivity.tasks import make_task
from converter.synthesis.synthesize import synthesize
from converter.verification.audited import open_audits
from converter.verification.fidelity import measure_fidelity
from tests.checkpoints import WEIGHTS
from tests.reference import LENS_OPTIONS
from tests.reporters import Notes
from tests.tiny_models import save_model

BASE = {name: value for name, value in LENS_OPTIONS.items() if name != "modules_to_not_convert"}
#: One way of each kind to store a module: fused, transposed, packed, without rounded scales, floats, and all that
#: couples rows or scales; and one that keeps it.
WAYS: tuple[dict[str, Any], ...] = (
    {"weights_dtype": "uint4"},
    {"weights_dtype": "int8"},
    {"weights_dtype": "int5"},
    {"weights_dtype": "uint8", "dequantize_fp32": True, "use_quantized_matmul": False},
    {"weights_dtype": "float8_e4m3fn", "use_quantized_matmul": True, "quantized_matmul_dtype": "float8_e4m3fn"},
    {"weights_dtype": "float5_e2m2fn"},
    {"weights_dtype": "int6", "use_hadamard": True},
    {"weights_dtype": "uint4", "use_codebook": True, "codebook_steps": 2},
    {"weights_dtype": "int4", "scale_dtype": "uint8"},
    {},
)
PRESETS = ("tiny", "tiny-flux", "tiny-sdxl")


def variant(checkpoint: Checkpoint, recipe: Recipe) -> Variant:
    """A recipe and what it makes of a model."""
    return Variant(recipe.name, recipe, plan_with_sdnq(checkpoint, recipe))


def uniform(checkpoint: Checkpoint, **options: Any) -> Variant:
    """A recipe of these options and no rules."""
    return variant(checkpoint, Recipe("uniform", options))


def mixed(checkpoint: Checkpoint) -> Variant:
    """A recipe that stores one module after the other in each of the ways."""
    options = {**BASE, "quant_conv": True}
    modules = uniform(checkpoint, **options).plan.modules.values()
    rules = (Rule(match=module.name, keep=not way, options=way) for module, way in zip(modules, cycle(WAYS)))
    return variant(checkpoint, Recipe("mixed", options, tuple(rules)))


def digest(made: Variant, figures: Figures) -> str:
    """The digest of what a conversion would write."""
    return variant_digest(made.plan, made.storages, figures)


def assert_as_released(release: Path, made: Variant, figures: Figures, source: Checkpoint) -> None:
    """Assert that the scan has the bytes of a release, and the figures of its comparison with the source."""
    (audit,) = open_audits(release)
    assert weights_digest(audit.checkpoint) == digest(made, figures)
    by_name = {module.name: weight for weight, module in made.plan.modules.items()}
    modules = measure_fidelity(audit, source).modules
    assert len(modules) == len(by_name)
    for module in modules:
        weight = by_name[module.name]
        found = figures[weight, made.storages[weight].key]
        assert found.is_finite
        assert (found.energy, found.noise, found.cosine) == pytest.approx(
            (module.energy, module.noise, module.cosine), rel=1e-12
        ), module.name
        assert found.sqnr_db == pytest.approx(module.sqnr_db, rel=1e-9)


@pytest.mark.long
@pytest.mark.parametrize("preset", PRESETS)
def test_a_scan_has_bytes_figures_and_parts_of_a_release(preset: str, tmp_path: Path) -> None:
    source, release, spool = (tmp_path / name for name in ("source", "release", "spool"))
    synthesize(source, preset=preset)
    checkpoint = open_checkpoint(source)
    made = mixed(checkpoint)
    figures = scan(checkpoint, distinct_storages([made, uniform(checkpoint, **BASE)]), spool=spool)
    convert(source, release, made.recipe)
    assert_as_released(release, made, figures, checkpoint)
    released = load_file(release / checkpoint.component / WEIGHTS)
    for weight, storage in made.storages.items():
        file = storage.spool_file(spool)
        if storage.quantized is None:
            assert not file.exists()
            continue
        tensors = load_file(file)
        noise = tensors.pop("column_noise")
        assert tensors.keys() == storage.parts.keys()
        for part, tensor in tensors.items():
            assert torch.equal(tensor.view(torch.uint8), released[storage.parts[part].name].view(torch.uint8)), part
        assert noise.shape == storage.quantized.shape[1:2]
        assert float(noise.double().sum()) == pytest.approx(figures[weight, storage.key].noise, rel=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("preset", ["tiny", "tiny-flux", "tiny-sdxl"])
def test_the_digests_of_uniform_recipes_are_those_of_their_releases(preset: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    synthesize(source, preset=preset)
    checkpoint = open_checkpoint(source)
    recipes = [Recipe(name, {**BASE, "weights_dtype": name}) for name in ("uint4", "int8")]
    recipes += [find_recipe(name, checkpoint.class_name) for name in (None, "sdnq-int8")]
    variants = [variant(checkpoint, recipe) for recipe in recipes]
    figures = scan(checkpoint, distinct_storages(variants))
    for made in variants:
        convert(source, tmp_path / "release", made.recipe, ConvertOptions(shard_bytes=1_000_000, overwrite=True))
        assert_as_released(tmp_path / "release", made, figures, checkpoint)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_sources_in_other_dtypes_are_compared_as_they_are(dtype: torch.dtype, tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", "LensTransformer2DModel", dtype=dtype)
    checkpoint = open_checkpoint(source)
    made = mixed(checkpoint)
    options = ConvertOptions(quantize_from="float32")
    figures = scan(checkpoint, distinct_storages([made]), options)
    convert(source, tmp_path / "release", made.recipe, options)
    assert_as_released(tmp_path / "release", made, figures, checkpoint)


def test_searched_scales_are_measured_as_they_are_released(lens_source: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(lens_source)
    nearest = mixed(checkpoint)
    made = replace(nearest, recipe=replace(nearest.recipe, rounding="scale"))
    figures = scan(checkpoint, distinct_storages([nearest, made]))
    convert(lens_source, tmp_path / "release", made.recipe)
    assert_as_released(tmp_path / "release", made, figures, checkpoint)
    noises = []
    for weight, storage in made.storages.items():
        other = nearest.storages[weight]
        assert (storage.key == other.key) is (storage.rounding == "nearest")
        if storage.key != other.key:
            noises.append((figures[weight, storage.key].noise, figures[weight, other.key].noise))
    assert noises
    assert all(searched < found for searched, found in noises)


@pytest.fixture(scope="module")
def lens(lens_source: Path) -> Checkpoint:
    """A tiny Lens transformer in F32."""
    return open_checkpoint(lens_source)


@pytest.fixture(scope="module")
def lens_wanted(lens: Checkpoint) -> dict[str, list[Storage]]:
    """Two recipes for it: every way of storing a module, and the default."""
    return distinct_storages([mixed(lens), variant(lens, find_recipe(None, lens.class_name))])


@pytest.fixture(scope="module")
def lens_figures(lens: Checkpoint, lens_wanted: Mapping[str, Sequence[Storage]]) -> Figures:
    """What a scan of both finds."""
    return scan(lens, lens_wanted)


def test_the_digest_of_a_release_is_that_of_its_plan(
    lens: Checkpoint, lens_figures: Figures, lens_output: Path, tmp_path: Path
) -> None:
    expected = digest(variant(lens, find_recipe(None, lens.class_name)), lens_figures)
    notes = Notes()
    release = open_checkpoint(lens_output)
    assert weights_digest(release, reporter=notes) == expected
    assert [(shown.label, shown.done) for shown in notes.shown] == [("hashing", release.total_bytes)]
    assert digest(mixed(lens), lens_figures) != expected
    tensors = load_file(lens_output / WEIGHTS)
    save_file(dict(reversed(tensors.items())), tmp_path / WEIGHTS)
    assert weights_digest(open_checkpoint(tmp_path / WEIGHTS)) == expected
    name, norm = next((name, tensor) for name, tensor in tensors.items() if tensor.dtype == torch.bfloat16)
    flipped = norm.clone()
    flipped.view(torch.uint8).view(-1)[0] ^= 1
    for changes in (
        {name: flipped},
        {name: norm.view(torch.float16)},
        {name: norm.reshape(1, *norm.shape)},
        {"more": norm.clone()},
    ):
        save_file({**tensors, **changes}, tmp_path / WEIGHTS)
        assert weights_digest(open_checkpoint(tmp_path / WEIGHTS)) != expected, changes
    del tensors[name]
    save_file({**tensors, f"{name}2": norm}, tmp_path / WEIGHTS)
    assert weights_digest(open_checkpoint(tmp_path / WEIGHTS)) != expected


def test_figures_depend_neither_on_memory_nor_on_threads(
    lens: Checkpoint,
    lens_wanted: Mapping[str, Sequence[Storage]],
    lens_figures: Figures,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert scan(lens, lens_wanted, ConvertOptions(jobs=7)) == lens_figures
    ways: tuple[dict[str, Any], ...] = ({}, {"weights_dtype": "int8"}, {"weights_dtype": "int5"})
    in_runs = distinct_storages([uniform(lens, **BASE | way) for way in ways])
    expected = scan(lens, in_runs)
    reads: list[SourceTensor] = []
    read = TensorReader.read

    def counted(reader: TensorReader, tensor: SourceTensor, *arguments: Any) -> None:
        reads.append(tensor)
        read(reader, tensor, *arguments)

    monkeypatch.setattr(TensorReader, "read", counted)
    assert scan(lens, in_runs) == expected
    assert len(reads) == len(in_runs)
    reads.clear()
    assert scan(lens, in_runs, ConvertOptions(jobs=3, memory=2_500_000)) == expected
    assert len(reads) > 1.5 * len(in_runs)


def test_too_little_memory_is_refused_before_anything_is_read(
    lens: Checkpoint, lens_wanted: Mapping[str, Sequence[Storage]]
) -> None:
    with pytest.raises(MemoryLimitError, match=r"one tensor alone needs \d+ .*") as caught:
        scan(lens, lens_wanted, ConvertOptions(memory=1))
    assert caught.value.hint.startswith("Allow at least --memory ")


def test_kept_tensors_are_rounded_and_compared(lens: Checkpoint, lens_figures: Figures) -> None:
    made = variant(lens, find_recipe(None, lens.class_name)).plan
    tensors = load_file(lens.headers[0].file)
    assert made.kept
    for kept in made.kept:
        (found,) = (
            figures for (name, _), figures in lens_figures.items() if name == kept.source and "" in figures.sha256
        )
        original, rounded = tensors[kept.source].double(), tensors[kept.source].bfloat16()
        assert found.sha256 == {"": hashlib.sha256(rounded.view(torch.int16).numpy().tobytes()).hexdigest()}
        assert found.bytes == 2 * original.numel()
        sums = (original**2).sum(), ((rounded - original) ** 2).sum(), (rounded * original).sum()
        assert (found.energy, found.noise, found.dot) == pytest.approx([float(total) for total in sums], rel=1e-12)


def test_integers_and_empty_tensors_are_copied(tmp_path: Path) -> None:
    numbers = torch.arange(3000)
    save_file({"numbers": numbers, "empty": torch.empty(0, 4)}, tmp_path / WEIGHTS)
    specs = TensorSpec("numbers", "I64", (3000,)), TensorSpec("empty", "BF16", (0, 4))
    wanted = {spec.name: [Storage(spec.name, {"": spec}, None)] for spec in specs}
    found = {name: figures for (name, _), figures in scan(open_checkpoint(tmp_path / WEIGHTS), wanted).items()}
    for name, content in (("numbers", numbers.numpy().tobytes()), ("empty", b"")):
        assert found[name].sha256 == {"": hashlib.sha256(content).hexdigest()}
        assert (found[name].energy, found[name].noise, found[name].sqnr_db, found[name].cosine) == (0, 0, math.inf, 1)


def test_what_is_finished_is_not_measured_again(
    lens: Checkpoint, lens_wanted: Mapping[str, Sequence[Storage]], lens_figures: Figures, tmp_path: Path
) -> None:
    """Also after an end in the middle; and a lost file of the spool is made again, as it was."""
    noted: list[StorageFigures] = []

    def stop(figures: StorageFigures) -> None:
        if len(noted) >= 20:
            raise KeyboardInterrupt
        noted.append(figures)

    spool = tmp_path / "spool"
    with pytest.raises(KeyboardInterrupt):
        scan(lens, lens_wanted, spool=spool, note=stop)
    # As the lines of a journal.
    lines = [json.dumps(asdict(figures)) for figures in noted]
    finished = {(found.source, found.key): found for found in (StorageFigures(**json.loads(line)) for line in lines)}
    assert 0 < len(finished) < len(lens_figures)
    quantized = [storage for several in lens_wanted.values() for storage in several if storage.quantized]
    unfinished = next(storage for storage in quantized if (storage.source, storage.key) not in finished)
    # What a killed run leaves.
    unfinished.spool_file(spool).with_suffix(".draft.safetensors").write_bytes(b"x" * 10_000_000)
    later: list[StorageFigures] = []
    notes = Notes()
    assert scan(lens, lens_wanted, spool=spool, finished=finished, note=later.append, reporter=notes) == lens_figures
    assert {(found.source, found.key) for found in later} == lens_figures.keys() - finished.keys()
    assert len(later) == len(lens_figures) - len(finished)
    assert [(shown.label, shown.done) for shown in notes.shown] == [("measuring weights", notes.shown[0].total)]
    files = {storage.spool_file(spool) for storage in quantized}
    assert files == set(spool.iterdir())
    lost = quantized[3].spool_file(spool)
    content = lost.read_bytes()
    lost.unlink()
    again: list[StorageFigures] = []
    assert scan(lens, lens_wanted, spool=spool, finished=lens_figures, note=again.append) == lens_figures
    assert [(found.source, found.key) for found in again] == [(quantized[3].source, quantized[3].key)]
    assert lost.read_bytes() == content
    assert scan(lens, lens_wanted, finished=lens_figures, note=again.append) == lens_figures
    assert len(again) == 1


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize(
    ("number", "quantize_from"), [(math.nan, "float32"), (math.inf, "bfloat16"), (3.4e38, "bfloat16")]
)
def test_a_number_that_is_not_finite_is_refused(
    number: float,
    quantize_from: str,
    kept: bool,
    lens: Checkpoint,
    lens_wanted: Mapping[str, Sequence[Storage]],
    tmp_path: Path,
) -> None:
    tensors = load_file(lens.headers[0].file)
    is_kept = {name: all(storage.quantized is None for storage in several) for name, several in lens_wanted.items()}
    name = next(name for name, value in is_kept.items() if value is kept)
    tensors[name].view(-1)[-1] = number
    shutil.copy(lens.folder / "config.json", tmp_path)
    save_file(tensors, tmp_path / WEIGHTS)
    source = open_checkpoint(tmp_path)
    with pytest.raises(NonFiniteWeight) as caught:
        scan(source, lens_wanted, ConvertOptions(quantize_from=quantize_from))
    assert str(caught.value).startswith(f"{tmp_path / WEIGHTS}: tensor {name}: contains NaN")


def test_random_numbers_belong_to_one_tensor_in_one_storage(
    lens: Checkpoint, lens_wanted: Mapping[str, Sequence[Storage]]
) -> None:
    """Whatever else is measured beside them, and in which order; the generator of the process is left alone."""
    variants = [
        uniform(lens, weights_dtype="uint4", use_svd=True, svd_rank=8, svd_steps=2),
        uniform(lens, weights_dtype="int8", use_stochastic_rounding=True),
    ]
    random = distinct_storages(variants)
    before = torch.get_rng_state()
    found = scan(lens, random, ConvertOptions(jobs=3))
    assert torch.equal(torch.get_rng_state(), before)
    weight = list(variants[0].plan.modules)[-1]
    both = {weight: [*lens_wanted[weight], *reversed(random[weight])]}
    alone = scan(lens, both, ConvertOptions(jobs=1))
    for storage in random[weight]:
        assert storage.is_random
        assert alone[weight, storage.key] == found[weight, storage.key]


def test_a_spool_that_cannot_be_written_is_named(
    lens: Checkpoint, lens_wanted: Mapping[str, Sequence[Storage]], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        scan(lens, lens_wanted, spool=tmp_path / "file")


def test_every_way_is_taken(lens: Checkpoint, lens_wanted: Mapping[str, Sequence[Storage]]) -> None:
    jobs = [
        (wanted.job, wanted.form)
        for name, several in lens_wanted.items()
        for wanted in make_task(lens.tensors[name], several, use_fused=True).wanted
        if isinstance(wanted.job, QuantizeJob)
    ]
    assert {(job.method.kind, form is not None) for job, form in jobs} == {
        *((kind, True) for kind in (Kind.FUSED, Kind.ROWS, Kind.COLUMNS)),
        *((kind, False) for kind in (Kind.ROWS, Kind.COLUMNS, Kind.WHOLE)),
    }
