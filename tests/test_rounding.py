"""Codes that a search chose: errors are never above SDNQ's, group by group, and everything else is as SDNQ has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from converter import ConvertOptions, Recipe, convert, make_card, open_checkpoint, plan, verify
from converter.conversion.kernels import fused, scale_search, searching
from converter.conversion.kernels.regrouping import improve_scales
from converter.conversion.kernels.sdnq import QuantizedParts, as_bytes, quantize_with_sdnq
from converter.conversion.recipe.recipe import Rule, parse_recipe
from converter.conversion.request import open_request
from converter.errors import OutputError, RecipeError
from converter.libraries import load_library
from converter.schemas import load_schema
from converter.synthesis.synthesize import synthesize
from converter.verification.audited import open_audits
from converter.verification.dequantizing import dequantize
from converter.verification.fidelity import measure_fidelity
from converter.verification.nearness import compare_errors
from tests.checkpoints import failed
from tests.conftest import Lensconv, snapshot
from tests.cuda_arithmetic import cuda_arithmetic
from tests.reporters import Notes
from tests.test_nearness import WEIGHTS as KINDS
from tests.test_resume import Interruption, interrupt_after
from tests.tiny_models import WEIGHTS, make_pipeline, save_model

SCALE = ConvertOptions(rounding="scale")
#: Every integer of SDNQ of at most 8 bits, under one of its names.
DTYPES = [*(f"uint{bits}" for bits in range(1, 9)), *(f"int{bits}" for bits in range(2, 9))]
#: Shapes of weights, and options that spread scales over them in another way each.
LAYOUTS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "groups": ((64, 256), {"group_size": 32}),
    "groups, scales in float32": ((64, 256), {"group_size": 32, "dequantize_fp32": True}),
    "rows": ((64, 256), {"group_size": -1}),
    "matmul": ((64, 256), {"group_size": -1, "use_quantized_matmul": True}),
    "tensor": ((64, 256), {"group_size": -2}),
    "embedding": ((64, 256), {"layer_class_name": "Embedding"}),
    "convolution": ((32, 64, 2, 2), {"layer_class_name": "Conv2d", "group_size": -1}),
    "convolution in groups": ((32, 64, 2, 2), {"layer_class_name": "Conv2d", "group_size": 16}),
    "convolution by matmul": (
        (32, 64, 2, 2),
        {"layer_class_name": "Conv2d", "group_size": -1, "use_quantized_matmul": True},
    ),
    "transposed convolution": ((64, 32, 2, 2), {"layer_class_name": "ConvTranspose2d", "group_size": -1}),
    "one row": ((1, 256), {"group_size": 32}),
}


def quantize(numbers: torch.Tensor, **options: Any) -> tuple[QuantizedParts, QuantizedParts]:
    """What SDNQ makes of a weight, and what the search makes of that."""
    data, dtype = as_bytes(numbers.clone()), "F64" if numbers.dtype == torch.float64 else "F32"
    arguments: dict[str, Any] = {"layer_class_name": "Linear", "dequantize_fp32": False, "torch_dtype": "bfloat16"}
    arguments |= {"use_dynamic_quantization": False, **options}
    shape, device = tuple(numbers.shape), torch.device("cpu")
    nearest = quantize_with_sdnq(data, dtype, shape, arguments, from_float32=False, device=device)
    found = improve_scales(nearest, data, dtype, shape)
    np.testing.assert_array_equal(data, as_bytes(numbers))
    return nearest, found


def errors(result: QuantizedParts, numbers: torch.Tensor) -> torch.Tensor:
    """The squared error of each group, of what SDNQ restores, in float64."""
    dequantizer = result.dequantizer
    squares = (dequantize(dequantizer, result.parts).double() - numbers.double()).square()
    scale, shape = result.parts["scale"], tuple(dequantizer.quantized_weight_shape)
    if dequantizer.use_quantized_matmul and not (dequantizer.re_quantize_for_matmul or dequantizer.is_packed):
        scale, shape = scale.t(), shape[::-1]
    return squares.reshape(shape).sum([axis for axis, size in enumerate(scale.shape) if size == 1])


def assert_better(nearest: QuantizedParts, found: QuantizedParts, numbers: torch.Tensor) -> float:
    """Assert that no group has a larger error, and that the layout is the same; returns the ratio of all errors."""
    layout = {part: (tensor.dtype, tensor.shape, tensor.is_contiguous()) for part, tensor in nearest.parts.items()}
    assert {part: (x.dtype, x.shape, x.is_contiguous()) for part, x in found.parts.items()} == layout
    before, after = errors(nearest, numbers), errors(found, numbers)
    assert bool((after <= before).all()), float((after / before).max())
    assert (
        compare_errors(found.dequantizer, found.parts, dequantize(found.dequantizer, found.parts), numbers).excess <= 1
    )
    return float(after.sum() / before.sum()) if before.sum() else 1.0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_group_is_farther_in_any_layout(layout: str) -> None:
    shape, options = LAYOUTS[layout]
    numbers = 0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(3))
    for name in DTYPES if layout in ("groups", "matmul", "tensor") else ("uint4", "int5", "int8", "uint8"):
        ratio = assert_better(*quantize(numbers, weights_dtype=name, **options), numbers)
        # With one scale for many numbers, 8 bits leave little to gain.
        assert ratio < (0.9999 if "8" in name or "7" in name else 0.97), name


@pytest.mark.parametrize("name", ["uint4", "int5", "int8", "uint1", "int2"])
def test_no_group_is_farther_for_weights_of_any_kind(name: str) -> None:
    for kind, numbers in KINDS.items():
        for options in ({"group_size": 16}, {"group_size": 16, "dequantize_fp32": True}, {"group_size": -1}):
            for weights in (numbers, numbers.double() * (1 + 2**-40)):
                ratio = assert_better(*quantize(weights, weights_dtype=name, **options), weights)
                assert ratio < 1 or kind in ("constant", "zero", "with an offset", "huge") or name == "int8", kind


VALUES = st.tuples(
    st.integers(-44, 37), st.sampled_from([0.0, 1.0, 1e4]), st.sampled_from([1, 2, 8, 10**6]), st.integers(0, 2**32 - 1)
)


@settings(max_examples=60)
@given(
    groups=st.lists(VALUES, min_size=32, max_size=40),
    name=st.sampled_from(DTYPES),
    length=st.sampled_from([8, 24, 64, 200]),
    dequantize_fp32=st.booleans(),
)
def test_no_group_is_farther_that_hypothesis_finds(
    groups: list[Any], name: str, length: int, dequantize_fp32: bool
) -> None:
    """A group has at most so many different numbers, of any size, so that it has ties, or is constant."""
    drawn = [
        (np.random.default_rng(seed).integers(-count, count, 2 * length, endpoint=count > 1) / count + offset)
        * 10.0**power
        for power, offset, count, seed in groups
    ]
    numbers = torch.from_numpy(np.array(drawn)).float().clamp(-3e38, 3e38)
    nearest, found = quantize(numbers, weights_dtype=name, group_size=length, dequantize_fp32=dequantize_fp32)
    before, after = errors(nearest, numbers), errors(found, numbers)
    # What overflows when it is restored cannot be compared, and is left alone.
    finite = before.isfinite()
    assert bool((after[finite] <= before[finite]).all())
    for part, tensor in nearest.parts.items():
        if part != "weight":
            same = found.parts[part].reshape(before.shape)[~finite] == tensor.reshape(before.shape)[~finite]
            assert bool(same.all())


@settings(max_examples=60)
@given(
    bits=st.integers(1, 8),
    is_signed=st.booleans(),
    round_result=st.booleans(),
    power=st.integers(-42, 37),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_search_restores_numbers_as_sdnq_does(
    bits: int, is_signed: bool, round_result: bool, power: int, seed: int
) -> None:
    """Bit for bit, or errors would be those of other numbers than a user gets."""
    generator, size = np.random.default_rng(seed), 16 * 16
    stored = torch.bfloat16 if round_result else torch.float32
    values = torch.from_numpy(generator.standard_normal((3, size)) * 10.0**power).float()
    scales, zeros = (
        values[row].to(stored).float().abs() * sign for row, sign in ((0, 0.1), (1, -float(not is_signed)))
    )
    scales, zeros = scales.to(stored).float(), zeros.to(stored).float()
    least, most = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if is_signed else (0, 2**bits - 1)
    codes, restored = np.empty((2, size), np.float32)
    scale_search._restore(
        values[2].numpy(), scales.numpy(), zeros.numpy(), np.float32(least), np.float32(most), codes, restored
    )
    if round_result:
        scale_search._round(restored.view(np.uint32))
    assert set(codes.tolist()) <= set(range(least, most + 1))
    dequantizer = load_library("sdnq.dequantizer")
    stored_codes = torch.from_numpy(codes).to(torch.int16)
    if is_signed:
        expected = dequantizer.dequantize_symmetric(stored_codes, scales.to(stored))
    else:
        expected = dequantizer.dequantize_asymmetric(stored_codes, scales.to(stored), zeros.to(stored))
    finite = expected.isfinite()
    assert torch.equal(torch.from_numpy(restored)[finite], expected.float()[finite])


def test_what_is_not_finite_is_left_as_sdnq_has_it() -> None:
    numbers = 0.02 * torch.randn((32, 128), generator=torch.Generator().manual_seed(4))
    numbers[0, 0], numbers[3, 70], numbers[9, 5] = torch.nan, torch.inf, -torch.inf
    nearest, found = quantize(numbers, weights_dtype="int8", group_size=64)
    codes = [result.parts["weight"].reshape(-1, 64) for result in (nearest, found)]
    flawed = ~numbers.reshape(-1, 64).isfinite().all(1)
    assert torch.equal(codes[0][flawed], codes[1][flawed])
    assert not torch.equal(codes[0][~flawed], codes[1][~flawed])


@pytest.mark.parametrize("round_scales", [True, False])
def test_uint4_is_searched_alike_in_its_own_layout(round_scales: bool) -> None:
    numbers = 0.02 * torch.randn((50, 192), generator=torch.Generator().manual_seed(6))
    _, expected = quantize(numbers, weights_dtype="uint4", dequantize_fp32=not round_scales)
    data = as_bytes(numbers)
    parts, _ = fused.quantize_uint4(data.view(np.uint32), round_weights=True, round_scales=round_scales)
    searching.improve_uint4(data, "F32", parts, channels=192, round_scales=round_scales, moments=None)
    for part, found in parts.items():
        np.testing.assert_array_equal(expected.bytes_of(part), found.view(np.uint8), err_msg=part)


def test_a_source_that_is_not_finite_is_searched_where_it_is(lens_source: Path, tmp_path: Path) -> None:
    tensors = load_file(lens_source / WEIGHTS)
    name = "transformer_blocks.0.attn.to_out.0.weight"
    tensors[name][1, 70] = torch.nan
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_bytes((lens_source / "config.json").read_bytes())
    save_file(tensors, source / WEIGHTS, metadata={"format": "pt"})
    for rounding in ("nearest", "scale"):
        report = convert(source, tmp_path / rounding, None, ConvertOptions(rounding=rounding, allow_nonfinite=True))
        assert report.nonfinite == {name: 1}
    scales = [load_file(tmp_path / x / WEIGHTS)[name.replace("weight", "scale")] for x in ("nearest", "scale")]
    assert torch.equal(scales[0][1, 1].view(torch.int16), scales[1][1, 1].view(torch.int16))
    assert not torch.equal(scales[0][1, 0], scales[1][1, 0])


def test_a_group_does_not_depend_on_those_beside_it() -> None:
    numbers = np.random.default_rng(5).standard_normal((1000, 30)).astype(np.float32)

    def search(some: Any) -> tuple[Any, ...]:
        low = some.min(1)
        scales, zeros = (some.max(1) - low) / np.float32(15), low.copy()
        codes = np.round((some - zeros[:, None]) / scales[:, None]).astype(np.uint8)
        scale_search.search_scales(some, codes, scales, zeros, bits=4, round_scales=False)
        return codes, scales, zeros

    together = search(numbers)
    for first, last in ((0, 1), (1, 4), (4, 37), (37, 555), (555, 1000)):
        for whole, part in zip(together, search(numbers[first:last]), strict=True):
            np.testing.assert_array_equal(whole[first:last], part)


@pytest.fixture(scope="module")
def signs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline with trained weights."""
    return Path(synthesize(tmp_path_factory.mktemp("rounding") / "signs", preset="signs").output)


@pytest.mark.parametrize("dtype", ["uint4", *(pytest.param(name, marks=pytest.mark.long) for name in ("int8", "int5"))])
def test_every_module_of_trained_weights_gains(dtype: str, signs: Path, tmp_path: Path) -> None:
    recipe, reports = Recipe("x", {"weights_dtype": dtype, "dequantize_fp32": False}), []
    for rounding in ("nearest", "scale"):
        convert(signs, tmp_path / rounding, recipe, ConvertOptions(rounding=rounding))
        report = verify(tmp_path / rounding, against=signs, load=rounding == "scale", recipe=recipe)
        assert report.ok, failed(report)
        (audit,) = open_audits(tmp_path / rounding)
        modules = measure_fidelity(audit, open_checkpoint(signs)).modules
        reports.append({module.name: module.sqnr_db for module in modules})
    gains = [reports[1][name] - before for name, before in reports[0].items()]
    assert min(gains) > {"uint4": 0.6, "int8": 0.05, "int5": 0.3}[dtype]
    sizes = [
        {file.name: file.stat().st_size for file in (tmp_path / x / "transformer").iterdir()}
        for x in ("nearest", "scale")
    ]
    assert sizes[0] == sizes[1]
    weights = [load_file(tmp_path / rounding / "transformer" / WEIGHTS) for rounding in ("nearest", "scale")]
    for name, tensor in weights[0].items():
        is_part = name.rpartition(".")[0] in reports[0]
        assert is_part or torch.equal(tensor, weights[1][name]), name


#: A recipe with a method that the search works for, in each way of quantizing, and one that it does not work for.
MIXED = Recipe(
    "mixed",
    {"weights_dtype": "uint4", "dequantize_fp32": False, "use_quantized_matmul": True},
    rules=(
        Rule(match="*.attn.*", options={"weights_dtype": "int8"}),
        Rule(match="*.to_out.0", options={"weights_dtype": "uint4", "scale_dtype": "uint8"}),
        Rule(match="*.img_mlp.*", options={"weights_dtype": "int5", "group_size": 48}),
    ),
    rounding="scale",
)


def test_threads_pieces_devices_and_dtypes_of_the_source_give_the_same_bytes(lens_source: Path, tmp_path: Path) -> None:
    convert(lens_source, tmp_path / "one", MIXED, ConvertOptions(jobs=1))
    convert(lens_source, tmp_path / "five", MIXED, ConvertOptions(jobs=5, memory=17_000_000))
    # What this device computes is not what the CPU computes; only the module that is not searched shows it.
    plain = Recipe(MIXED.name, MIXED.options, rules=MIXED.rules[::2], rounding="scale")
    for device in ("cpu", "cpu:0"):
        with cuda_arithmetic():
            convert(lens_source, tmp_path / device, plain, ConvertOptions(device=device))
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "five")
    assert snapshot(tmp_path / "cpu") == snapshot(tmp_path / "cpu:0")
    report = verify(tmp_path / "one", against=lens_source, load=True, recipe=MIXED)
    assert report.ok, failed(report)


@pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(name, marks=pytest.mark.long) for name in ("AutoencoderKL", "UNet2DConditionModel")),
        "T5EncoderModel",
    ],
)
def test_convolutions_and_embeddings_are_searched(name: str, tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", name)
    recipe = Recipe("x", {"weights_dtype": "uint4", "quant_conv": True, "quant_embedding": True})
    for rounding in ("nearest", "scale"):
        convert(source, tmp_path / rounding, recipe, ConvertOptions(rounding=rounding))
    report = verify(tmp_path / "scale", against=source, load=True)
    assert report.ok, failed(report)
    noises = []
    for rounding in ("nearest", "scale"):
        (audit,) = open_audits(tmp_path / rounding)
        modules = measure_fidelity(audit, open_checkpoint(source)).modules
        noises.append({module.name: module.noise for module in modules})
    assert all(noises[1][module] < noise for module, noise in noises[0].items())


def test_an_interrupted_search_goes_on(lens_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert(lens_source, tmp_path / "undisturbed", MIXED)
    with monkeypatch.context() as patches:
        interrupt_after(9, patches)
        with pytest.raises(Interruption):
            convert(lens_source, tmp_path / "out", MIXED, ConvertOptions(jobs=1))
    with pytest.raises(OutputError, match="recipe"):
        convert(lens_source, tmp_path / "out", MIXED, ConvertOptions(rounding="nearest"))
    assert convert(lens_source, tmp_path / "out", MIXED).resumed_tensors >= 9
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "undisturbed")


def test_modules_that_are_not_searched_are_named(tmp_path: Path, lensconv: Lensconv) -> None:
    source, notes = make_pipeline(tmp_path / "source"), Notes()
    convert(source, tmp_path / "out", MIXED, reporter=notes)
    left = [f"transformer_blocks.{block}.attn.to_out.0" for block in (0, 1)]
    manifest = json.loads((tmp_path / "out/lensconv_manifest.json").read_text())
    jsonschema.validate(manifest, load_schema("manifest"))
    rounding = {"method": "scale", "nearest": left}
    assert manifest["components"][0]["recipe"]["rounding"] == rounding
    planned = plan(source, MIXED)
    jsonschema.validate(planned.to_dict(), load_schema("plan"))
    assert planned.to_dict()["components"][0]["rounding"] == rounding
    for shown in ("\n".join(planned.notes), "\n".join(notes.texts)):
        assert f"rounding = scale does not work for modules, which get SDNQ's codes: {'; '.join(left)}" in shown
    card = make_card(tmp_path / "out").card.read_text()
    assert "The scales are not SDNQ's own: for each group of weights" in card
    assert "2 of the modules have SDNQ's, as the search does not work for them" in card
    convert(source, tmp_path / "nearest", MIXED, ConvertOptions(rounding="nearest"))
    for text in ((tmp_path / "nearest/lensconv_manifest.json").read_text(), json.dumps(plan(source).to_dict())):
        assert '"rounding"' not in text
    assert "SDNQ's own: for each group" not in make_card(tmp_path / "nearest").card.read_text()
    assert lensconv("verify", tmp_path / "out").code == 0
    manifest["components"][0]["recipe"]["rounding"] = {"method": 3, "nearest": []}
    (tmp_path / "out/lensconv_manifest.json").write_text(json.dumps(manifest))
    checks = lensconv("verify", tmp_path / "out", "--json").result["checks"]
    assert ["method must be a string" in check["detail"] for check in checks if not check["ok"]] == [True]


def test_a_search_that_works_for_nothing_is_refused(lens_source: Path, tmp_path: Path) -> None:
    for options in ({"weights_dtype": "float8_e4m3fn"}, {"weights_dtype": "uint4", "use_hadamard": True}):
        for work in (plan, lambda *arguments: convert(arguments[0], tmp_path / "out", *arguments[1:])):
            with pytest.raises(RecipeError, match="rounding = scale works for none of the modules"):
                work(lens_source, Recipe("x", options), SCALE)
    assert not list(tmp_path.iterdir())


def test_a_recipe_names_its_rounding(lens_source: Path) -> None:
    text = (
        'rounding = "scale"\n[sdnq]\nweights_dtype = "uint4"\n[components.vae]\nrounding = "nearest"\n[components.x]\n'
    )
    recipe = parse_recipe(text, where="x.toml")
    assert [recipe.for_component(name).rounding for name in ("vae", "x", "other")] == ["nearest", "scale", "scale"]
    for chosen, expected in ((None, "scale"), ("nearest", "nearest")):
        (target,) = open_request(lens_source, recipe.for_component("x"), ConvertOptions(rounding=chosen)).targets
        assert target.recipe.rounding == expected
    assert parse_recipe("", where="x.toml").rounding == "nearest"
    for wrong, said in (('"best"', "rounding = best is not known"), ("3", "rounding must be a string")):
        with pytest.raises(RecipeError, match=said):
            parse_recipe(f"rounding = {wrong}", where="x.toml")
