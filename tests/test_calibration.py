"""Calibrated rounding: what layers compute gets nearer, never farther; files that are not calibrations are refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from converter import ConvertOptions, Recipe, convert, make_card, open_checkpoint, plan, verify
from converter.conversion.kernels import calibrated, moments
from converter.conversion.kernels.moments import Moments, factorise
from converter.conversion.kernels.scale_search import search_scales
from converter.conversion.kernels.searching import improve_groups
from converter.conversion.planning.rounding import MOST_STEPS
from converter.conversion.recipe.recipe import Rule
from converter.errors import CalibrationError, InputError, MissingInput, OutputError, RecipeError, UsageError
from converter.measurement.comparison.trajectory import Difference
from converter.measurement.prompts.suite import read_suite
from converter.measurement.sensitivity.calibration import write_calibration as write_moments
from converter.measurement.sensitivity.calls import record_calls, replay
from converter.measurement.sensitivity.inputs import gather_inputs
from converter.measurement.sensitivity.storage import storages
from converter.models.empty import build_empty_model
from converter.schemas import load_schema
from converter.synthesis.synthesize import synthesize
from converter.verification.audited import open_audits
from converter.verification.dequantizing import dequantize, prepare_quantized
from scripts.signs.drawing import SIDE
from tests.calibrations import write_calibration
from tests.checkpoints import failed
from tests.conftest import Lensconv, snapshot
from tests.reporters import Notes
from tests.sensitivity import load
from tests.test_resume import Interruption, interrupt_after
from tests.test_rounding import MIXED as SEARCHED
from tests.tiny_models import WEIGHTS, make_pipeline

CHANNELS, ROWS = 384, 40


def correlated(channels: int, seed: int = 0, rank: int = 24) -> torch.Tensor:
    """Second moments of inputs that mostly vary in few directions, some of them in larger numbers than others."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(rank, channels, generator=generator)
    inputs = torch.randn(4000, rank, generator=generator) @ directions / rank**0.5
    inputs = (inputs + 0.2 * torch.randn(inputs.shape, generator=generator)) * torch.rand(channels, generator=generator)
    return inputs.T @ inputs / len(inputs)


class Weight:
    """A weight, quantized as SDNQ does, in the arrays that kernels work on."""

    def __init__(self, bits: int, group: int, *, is_signed: bool, round_scales: bool, seed: int = 1) -> None:
        self.bits, self.group, self.round_scales = bits, group, round_scales
        self.least = -(2 ** (bits - 1)) if is_signed else 0
        most = self.least + 2**bits - 1
        generator = torch.Generator().manual_seed(seed)
        self.numbers = 0.02 * torch.randn(ROWS, CHANNELS, generator=generator)
        groups = self.numbers.view(ROWS, -1, group)
        low, high = groups.aminmax(dim=2)
        scales = (groups.abs().amax(2) if is_signed else high - low) / most
        zeros = torch.zeros_like(low) if is_signed else low
        if round_scales:
            scales, zeros = scales.bfloat16().float(), zeros.bfloat16().float()
        codes = ((groups - zeros.unsqueeze(2)) / scales.unsqueeze(2)).round().clamp(self.least, most) - self.least
        self.codes: NDArray[Any] = codes.to(torch.uint8).numpy().reshape(-1, group)
        self.scales, self.zeros = scales.flatten().numpy(), zeros.flatten().numpy()
        self.zero_points = None if is_signed else self.zeros

    def errors(self) -> torch.Tensor:
        """What is restored without the source, float64, ``[ROWS, CHANNELS]``."""
        codes = torch.from_numpy(self.codes).float() + self.least
        scales, zeros = (torch.from_numpy(values).unsqueeze(1) for values in (self.scales, self.zeros))
        restored = torch.addcmul(zeros, codes, scales)
        restored = restored.bfloat16().float() if self.round_scales else restored
        return restored.view(ROWS, CHANNELS).double() - self.numbers.double()

    def cost(self, hessian: torch.Tensor) -> torch.Tensor:
        """D·H·Dᵀ of each row, in float64."""
        errors = self.errors()
        return ((errors @ hessian.double()) * errors).sum(1)

    def improve(self, found: Moments | None) -> None:
        """Search scales, and calibrate codes if there are moments."""
        improve_groups(
            self.numbers.numpy().reshape(-1, self.group),
            self.codes,
            self.scales,
            self.zero_points,
            channels=CHANNELS,
            bits=self.bits,
            round_scales=self.round_scales,
            moments=found,
        )


def prepared(hessian: torch.Tensor, blocks: int = 1) -> Moments:
    size = len(hessian) // blocks
    found = factorise(torch.stack([hessian[i : i + size, i : i + size] for i in range(0, len(hessian), size)]))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("bits", "group", "is_signed", "round_scales"),
    [
        *((4, 64, False, True), (4, 64, False, False), (5, 128, True, True), (8, CHANNELS, True, True)),
        *((2, 16, False, True), (1, 8, False, True), (6, 192, False, True), (3, 96, True, False)),
    ],
)
def test_what_a_layer_computes_gets_nearer(bits: int, group: int, is_signed: bool, round_scales: bool) -> None:
    """Far nearer than by the nearest codes or by searched scales; in no row farther."""
    hessian = correlated(CHANNELS)
    nearest, searched, weight = (Weight(bits, group, is_signed=is_signed, round_scales=round_scales) for _ in range(3))
    searched.improve(None)
    weight.improve(prepared(hessian))
    costs = [one.cost(hessian) for one in (nearest, searched, weight)]
    assert bool((costs[2] <= costs[1]).all())
    assert costs[2].sum() < 0.35 * min(costs[0].sum(), costs[1].sum())
    assert weight.codes.max() <= 2**bits - 1


@pytest.mark.parametrize("group", [64, 96, CHANNELS])
def test_blocks_of_moments_are_those_of_a_whole_matrix_that_is_zero_elsewhere(group: int) -> None:
    """Also where groups reach from one block into the next."""
    hessian, blocks = correlated(CHANNELS), 3
    size = CHANNELS // blocks
    # The same mean in each block, so that the same is added to all diagonals.
    units = hessian.diagonal().view(blocks, size).mean(1).rsqrt().repeat_interleave(size)
    numbers = torch.arange(CHANNELS) // size
    apart = numbers.unsqueeze(0) != numbers.unsqueeze(1)
    hessian = (hessian * units * units.unsqueeze(1)).masked_fill(apart, 0)
    in_blocks, whole = (Weight(4, group, is_signed=False, round_scales=True) for _ in range(2))
    in_blocks.improve(prepared(hessian, blocks))
    whole.improve(prepared(hessian))
    assert float(in_blocks.cost(hessian).sum()) == pytest.approx(float(whole.cost(hessian).sum()), rel=0.01)
    assert (in_blocks.codes == whole.codes).mean() > 0.99


def feed_plainly(weight: Weight, hessian: torch.Tensor, added: float) -> Any:
    """The codes of GPTQ as its authors describe it, in float64 and without blocks, for the scales of a weight."""
    matrix = hessian.double() + added * torch.eye(CHANNELS)
    factor = torch.linalg.cholesky(torch.linalg.inv(matrix), upper=True)
    numbers = weight.numbers.double().clone()
    scales, zeros = (torch.from_numpy(values).view(ROWS, -1).double() for values in (weight.scales, weight.zeros))
    codes = torch.empty(ROWS, CHANNELS)
    for column in range(CHANNELS):
        scale, zero = scales[:, column // weight.group], zeros[:, column // weight.group]
        codes[:, column] = ((numbers[:, column] - zero) / scale).round().clamp(0, 2**weight.bits - 1)
        restored = (zero + codes[:, column] * scale).bfloat16().double()
        error = (numbers[:, column] - restored) / factor[column, column]
        numbers[:, column:] -= error.unsqueeze(1) * factor[column, column:]
    return codes.to(torch.uint8).numpy()


@pytest.mark.parametrize("group", [64, 192])
def test_codes_are_those_of_gptq_without_blocks(group: int) -> None:
    """Rows in which float32 decides a tie otherwise may differ from there on."""
    hessian = correlated(CHANNELS)
    weight = Weight(4, group, is_signed=False, round_scales=True)
    found = prepared(hessian)
    rounding = calibrated._Rounding(weight.numbers.numpy(), CHANNELS // group, found, 4, True, True)
    rounding.run()
    weight.scales, weight.zeros = rounding.scales, rounding.zeros
    expected = feed_plainly(weight, hessian, moments.DAMPING[0] * float(hessian.diagonal().mean()))
    assert (expected == rounding.codes).all(axis=1).mean() > 0.9


def test_inputs_that_are_always_zero_do_no_harm() -> None:
    hessian = correlated(CHANNELS)
    hessian[:, 100:130] = 0
    hessian[100:130] = 0
    for matrix in (hessian, torch.zeros_like(hessian)):
        searched, weight = (Weight(4, 64, is_signed=False, round_scales=True) for _ in range(2))
        searched.improve(None)
        weight.improve(prepared(matrix))
        assert bool((weight.cost(matrix) <= searched.cost(matrix)).all())
        # Where no input counts, no code is better than another.
        assert np.array_equal(weight.codes, searched.codes) is not bool(matrix.any())
        assert weight.errors().isfinite().all()


def test_rows_are_calibrated_each_for_itself_and_stay_near() -> None:
    hessian = correlated(CHANNELS, rank=2)
    searched, weight = (Weight(2, 64, is_signed=False, round_scales=True) for _ in range(2))
    searched.numbers[3, 5] = weight.numbers[3, 5] = torch.nan
    searched.improve(None)
    weight.improve(prepared(hessian))
    assert np.array_equal(weight.codes.reshape(ROWS, -1)[3], searched.codes.reshape(ROWS, -1)[3])
    steps = weight.scales.reshape(ROWS, -1)
    groups = weight.numbers.view(ROWS, -1, 64)
    steps = np.maximum(steps, ((groups.amax(2) - groups.amin(2)) / 3).numpy())
    rms = weight.errors().view(ROWS, -1, 64).square().mean(2).sqrt().numpy()
    fine = [row for row in range(ROWS) if row != 3]
    assert (rms[fine] <= MOST_STEPS * steps[fine]).all()
    assert weight.errors()[fine].square().sum() > searched.errors()[fine].square().sum()


def test_moments_that_are_hardly_semidefinite_are_damped_more() -> None:
    hessian = correlated(CHANNELS)
    mean = float(hessian.diagonal().mean())
    assert prepared(hessian).damping == moments.DAMPING[0]
    assert prepared(hessian - 0.05 * mean * torch.eye(CHANNELS)).damping == moments.DAMPING[1]
    assert factorise((hessian - 2 * mean * torch.eye(CHANNELS)).unsqueeze(0)) is None
    (block,) = prepared(hessian).blocks
    root = block.root
    expected = hessian + moments.DAMPING[0] * mean * torch.eye(CHANNELS)
    torch.testing.assert_close(root @ root.T, expected, rtol=1e-4, atol=1e-5 * mean)
    assert torch.equal(root, root.triu())


def test_weights_of_a_search_count() -> None:
    """Errors at heavy places become smaller than without weights; with equal weights nothing changes."""
    numbers = np.random.default_rng(0).standard_normal((200, 64)).astype(np.float32)
    weights = np.where(np.arange(64) < 8, 20, 0.1).astype(np.float32)

    def search(own: NDArray[np.float32] | None) -> tuple[NDArray[Any], ...]:
        low = numbers.min(1)
        scales, zeros = (numbers.max(1) - low) / np.float32(15), low.copy()
        codes = np.round((numbers - zeros[:, None]) / scales[:, None]).astype(np.uint8)
        search_scales(numbers, codes, scales, zeros, bits=4, round_scales=False, weights=own)
        return codes, scales, zeros

    def error(found: tuple[NDArray[Any], ...]) -> float:
        codes, scales, zeros = found
        return float((weights * (zeros[:, None] + codes * scales[:, None] - numbers) ** 2).sum())

    plain = search(None)
    assert error(search(weights)) < 0.6 * error(plain)
    for one, other in zip(plain, search(np.ones(64, np.float32)), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture(scope="module")
def lens(tmp_path_factory: pytest.TempPathFactory, lens_source: Path) -> Path:
    """A calibration for the tiny Lens transformer, of inputs that were made up; some modules share theirs."""
    shapes = {name: module.shape for name, module in ((m.name, m) for m in plan(lens_source).plan.modules.values())}
    first: dict[int, str] = {}
    owners = {name: first.setdefault(shape[1], name) for name, shape in shapes.items()}
    found = {name: correlated(channels) for channels, name in first.items()}
    shares = {name: owner for name, owner in owners.items() if name != owner}
    file = tmp_path_factory.mktemp("calibrations") / "lens.safetensors"
    return write_calibration(file, found, lens_source, shares=shares)


def options(file: Path, **other: Any) -> ConvertOptions:
    return ConvertOptions(rounding="calibrated", calibration=file, **other)


#: Modules of every kind: with one scale for a tensor, scales cannot be chosen when a group is reached.
MIXED = SEARCHED.with_rules([Rule(match="*.txt_mlp.w1", options={"weights_dtype": "int8", "group_size": -2})])


def test_threads_pieces_and_interruptions_give_the_same_bytes(
    lens: Path, lens_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(lens_source, tmp_path / "one", MIXED, options(lens, jobs=1))
    with monkeypatch.context() as patches:
        interrupt_after(9, patches)
        with pytest.raises(Interruption):
            convert(lens_source, tmp_path / "out", MIXED, options(lens, jobs=1))
    other = write_calibration(tmp_path / "other.safetensors", {"x": torch.eye(3)}, lens_source)
    other.write_bytes(lens.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(OutputError, match="calibration"):
        convert(lens_source, tmp_path / "out", MIXED, options(other))
    report = convert(lens_source, tmp_path / "out", MIXED, options(lens, jobs=5, memory=30_000_000))
    assert report.resumed_tensors >= 9
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "out")
    checked = verify(tmp_path / "out", against=lens_source, load=True, recipe=MIXED)
    assert checked.ok, failed(checked)
    assert any("rounding = calibrated" in note for note in checked.notes)
    convert(lens_source, tmp_path / "scale", MIXED, ConvertOptions(rounding="scale"))
    weights = [load_file(tmp_path / name / WEIGHTS) for name in ("out", "scale")]
    different = {name for name in weights[0] if not torch.equal(weights[0][name], weights[1][name])}
    assert {name.rpartition(".")[2] for name in different} == {"weight", "scale", "zero_point"}
    assert not {name for name in different if "to_out.0" in name or "txt_mlp.w1" in name}


def test_modules_that_are_not_calibrated_are_named(lens: Path, tmp_path: Path) -> None:
    moments_of = {name.removesuffix(".hessian"): tensor for name, tensor in load_file(lens).items()}
    some = dict(list(moments_of.items())[:1])
    source = make_pipeline(tmp_path / "source")
    file = write_calibration(tmp_path / "some.safetensors", some, source / "transformer")
    planned = plan(source, MIXED, options(file)).to_dict()
    jsonschema.validate(planned, load_schema("plan"))
    described = planned["components"][0]["rounding"]
    searched, nearest = described["scale"], described["nearest"]
    assert (len(searched), len(nearest)) == (21, 2)
    assert any("as the calibration does not work for them: transformer_blocks.0" in note for note in planned["notes"])
    convert(source, tmp_path / "out", MIXED, options(file))
    manifest = json.loads((tmp_path / "out/lensconv_manifest.json").read_text())
    jsonschema.validate(manifest, load_schema("manifest"))
    assert manifest["components"][0]["recipe"]["rounding"] == described
    card = make_card(tmp_path / "out").card.read_text()
    assert f'`rounding = "calibrated"`, sha256 `{described["calibration_sha256"]}`); 21 of the modules were not' in card
    assert "; 2 have SDNQ's codes." in card


def test_more_damping_is_said(lens: Path, lens_source: Path, tmp_path: Path) -> None:
    found = {name.removesuffix(".hessian"): tensor for name, tensor in load_file(lens).items()}
    (name, hessian), *_ = found.items()
    flawed = {name: hessian - 0.05 * hessian.diagonal().mean() * torch.eye(len(hessian))}
    file, notes = write_calibration(tmp_path / "flawed.safetensors", flawed, lens_source), Notes()
    convert(lens_source, tmp_path / "out", None, options(file), reporter=notes)
    said = f"second moments of the inputs of {name} are not positive semidefinite; 0.1 of their mean diagonal was added"
    assert any(said in text for text in notes.texts)
    manifest = json.loads((tmp_path / "out/lensconv_manifest.json").read_text())
    jsonschema.validate(manifest, load_schema("manifest"))
    assert manifest["components"][0]["recipe"]["rounding"]["damped"] == {name: 0.1}


Change = Callable[[dict[str, torch.Tensor]], object]


def replace_first(change: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    return lambda found: found.update({next(iter(found)): change(next(iter(found.values())))})


def set_number(value: float) -> Change:
    def change(hessian: torch.Tensor) -> torch.Tensor:
        hessian = hessian.clone()
        hessian[1, 0] = value
        return hessian

    return replace_first(change)


@pytest.mark.parametrize(
    ("change", "metadata", "message"),
    [
        (set_number(torch.nan), {}, r"tensor .*\.hessian: contains NaN or infinity"),
        (set_number(torch.inf), {}, r"tensor .*\.hessian: contains NaN or infinity"),
        (set_number(50.0), {}, r"tensor .*\.hessian: is not symmetric"),
        (replace_first(lambda hessian: -hessian), {}, r"tensor .*\.hessian: is not positive semidefinite"),
        (replace_first(lambda hessian: hessian[:, :-1]), {}, r"tensor .*\.hessian: is F32 \[\d+, \d+\], not F32"),
        (replace_first(lambda hessian: hessian.double()), {}, r"tensor .*\.hessian: is F64"),
        (replace_first(lambda hessian: hessian[:-1, :-1]), {}, r"has shape .*, but .* input channels"),
        (None, {"format": "pt"}, "is not a calibration: its format is pt"),
        (None, {"source": "{}"}, "does not name the files of the model"),
        (None, {"source": "[1]"}, "its source"),
        (None, {"source": '{"diffusion_pytorch_model.safetensors": 3}'}, "a value of its source is not a string"),
        (None, {"source": '{"diffusion_pytorch_model.safetensors": "0"}'}, "gathered with another model"),
        (None, {"source": '{"x.safetensors": "0"}'}, "was gathered with x.safetensors, not with diffusion_pytorch"),
        (None, {"shares": '{"a": "b.hessian"}'}, "tensor b.hessian: does not contain it, though a shares it"),
        (replace_first(lambda hessian: hessian.view(1, 1, *hessian.shape)), {}, r"tensor .*\.hessian: is F32"),
        (replace_first(lambda hessian: hessian[:64, :64].repeat(2, 1, 1)), {}, r"has shape .*, but .* input channels"),
    ],
)
def test_what_cannot_be_used_is_refused(
    change: Change | None, metadata: dict[str, str], message: str, lens: Path, lens_source: Path, tmp_path: Path
) -> None:
    found = {name.removesuffix(".hessian"): tensor for name, tensor in load_file(lens).items()}
    if change is not None:
        change(found)
    file = write_calibration(tmp_path / "bad.safetensors", found, lens_source, metadata=metadata)
    with pytest.raises(InputError, match=message) as caught:
        convert(lens_source, tmp_path / "out", None, options(file))
    assert str(file) in caught.value.message
    assert [entry.name for entry in tmp_path.iterdir()] == ["bad.safetensors"]


def test_files_and_options_that_make_no_sense(
    lens: Path, lens_source: Path, tmp_path: Path, lensconv: Lensconv
) -> None:
    hostile = tmp_path / "hostile.safetensors"
    hostile.write_bytes(b"\xff" * 8 + b"{}")
    for file, error in ((hostile, InputError), (tmp_path, MissingInput), (tmp_path / "none", MissingInput)):
        with pytest.raises(error, match=file.name):
            convert(lens_source, tmp_path / "out", None, options(file))
    save_file({"a": torch.zeros(2, 2)}, hostile, metadata=None)
    with pytest.raises(CalibrationError, match="its format is None"):
        plan(lens_source, None, options(hostile))
    for chosen, message in (
        (ConvertOptions(rounding="calibrated"), "needs a calibration"),
        (ConvertOptions(calibration=lens), "for calibrated rounding only"),
    ):
        with pytest.raises(UsageError, match=message):
            plan(lens_source, None, chosen)
    with pytest.raises(RecipeError, match="rounding = calibrated works for none"):
        plan(lens_source, Recipe("x", {"weights_dtype": "int8", "use_svd": True}), options(lens))
    shown = lensconv("plan", lens_source, "--rounding", "calibrated", "--calibration", lens)
    assert shown.code == 0
    assert "codes of 20 modules are calibrated" in " ".join(shown.stderr.split())


def test_where_nothing_is_calibrated_it_is_refused(lens_source: Path) -> None:
    """As for the weights of an ablation, which would be those of another rounding."""
    with pytest.raises(RecipeError, match="rounding = calibrated: needs a calibration"):
        storages(plan(lens_source).plan, "calibrated")


def test_a_calibration_that_changes_meanwhile_is_refused(
    lens: Path, lens_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from converter.conversion.execution.workers import WorkerPool

    file = tmp_path / "calibration.safetensors"
    file.write_bytes(lens.read_bytes())
    run = WorkerPool.run

    def run_and_change(self: WorkerPool, *arguments: Any, **named: Any) -> None:
        run(self, *arguments, **named)
        file.write_bytes(lens.read_bytes() + b"\0")

    monkeypatch.setattr(WorkerPool, "run", run_and_change)
    with pytest.raises(InputError, match="was changed while it was read"):
        convert(lens_source, tmp_path / "out", None, options(file))


@pytest.mark.long
@pytest.mark.parametrize(("dtype", "limit"), [("uint4", 0.7), ("int8", 0.8)])
def test_the_velocity_of_trained_weights_gets_nearer(dtype: str, limit: float, tmp_path: Path) -> None:
    """For other prompts than those of the calibration, which is gathered as for an ablation."""
    source, file = tmp_path / "signs", tmp_path / "calibration.safetensors"
    synthesize(source, preset="signs")
    prompts = [prompt.prompt for prompt in read_suite("signs").prompts][:5]
    loaded, settings = load(source, prompts, dtype="float32", height=SIDE, width=SIDE)
    first, others = (dict(some) for some in (list(settings.items())[:3], list(settings.items())[3:]))
    calls = record_calls(loaded, first, 3)
    paths = [path for path, module in loaded.denoiser.named_modules() if isinstance(module, torch.nn.Linear)]
    write_moments(loaded, gather_inputs(loaded, paths, calls), calls, file, memory=1 << 30)
    measured = record_calls(loaded, others, 3)
    errors = {}
    for rounding in ("nearest", "scale", "calibrated"):
        output = tmp_path / rounding
        chosen = ConvertOptions(rounding=rounding, calibration=file if rounding == "calibrated" else None)
        convert(source, output, Recipe("x", {"weights_dtype": dtype, "dequantize_fp32": False}), chosen)
        report = verify(output, against=source, load=rounding == "calibrated")
        assert report.ok, failed(report)
        found = replay(restored_model(output, source, loaded.denoiser), measured, loaded.device)
        errors[rounding] = sum(found, Difference(0, 0)).relative
    assert errors["calibrated"] < limit * min(errors["nearest"], errors["scale"]), errors


def restored_model(output: Path, source: Path, model: Any) -> Any:
    """A model in float32 with the weights that SDNQ restores from a release."""
    (audit,) = open_audits(output)
    dequantizers = prepare_quantized(build_empty_model(open_checkpoint(source)), audit.config)
    tensors = load_file(output / "transformer" / WEIGHTS)
    state = {}
    for name, tensor in model.state_dict().items():
        path = name.removesuffix(".weight")
        if path in dequantizers and name != path:
            names = {part: f"{path}.{part}" for part in ("weight", "scale", "zero_point")}
            parts = {part: tensors[full] for part, full in names.items() if full in tensors}
            state[name] = dequantize(dequantizers[path], parts)
        else:
            state[name] = tensors[name].to(tensor.dtype)
    restored = copy.deepcopy(model)
    restored.load_state_dict(state)
    return restored
