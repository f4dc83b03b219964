"""What reaches the modules of an original: means, energies, shared inputs, and second moments in a calibration file."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

from converter.checkpoint.checksum import file_sha256
from converter.checkpoint.header import read_header
from converter.errors import ImageError
from converter.measurement.sensitivity.calibration import write_calibration
from converter.measurement.sensitivity.calls import Call, record_calls
from converter.measurement.sensitivity.inputs import GatheredInputs, ModuleInputs, TensorNumbers, gather_inputs
from converter.measurement.sensitivity.loaded import LoadedOriginal
from tests.reporters import Notes
from tests.sensitivity import PROMPTS, load


class Model(nn.Module):  # type: ignore[misc]
    """Two linear modules of one input, a third one of a view of it, convolutions, and one that is not called."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(6, 4, bias=False)
        self.third, self.unused = nn.Linear(6, 6), nn.Linear(6, 6)
        self.conv = nn.Conv2d(6, 4, 3, padding=1)
        self.grouped = nn.Conv1d(6, 4, 3, groups=2, bias=False)
        self.embedding = nn.Embedding(5, 6)

    def forward(self, states: torch.Tensor, *, index: int = 0) -> tuple[torch.Tensor]:
        states = states + self.embedding(torch.tensor(index))
        first, second = self.first(states), self.second(input=states)
        states += 1
        third = self.third(states)
        images = self.conv(third.transpose(1, 2).unflatten(2, (2, 5)))
        rows = self.grouped(third.transpose(1, 2)[0])
        return (torch.stack([part.sum() for part in (first, second, images, rows)]),)


def three_calls() -> list[Call]:
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(2, 10, 6, generator=generator) for _ in range(3)]
    return [Call("A", step, (part,), {"index": step}, (torch.ones(4),)) for step, part in enumerate(states)]


PATHS = ("first", "second", "third", "unused", "conv", "grouped", "embedding")


def in_place(model: Model) -> Any:
    """What stands for a loaded original."""
    return SimpleNamespace(denoiser=model, device=torch.device("cpu"), repo=SimpleNamespace(folder=Path("/repo")))


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    made = Model()
    made.eval()
    return made


def inputs_of(model: Model, calls: list[Call]) -> torch.Tensor:
    """All rows that reach the first module, ``[rows, 6]``."""
    return torch.cat([call.arguments[0] + model.embedding.weight[call.step] for call in calls]).detach().flatten(0, -2)


def test_means_and_energies(model: Model) -> None:
    calls = three_calls()
    found = gather_inputs(in_place(model), PATHS, calls)
    assert found.absent == ("embedding", "unused")
    assert found.shares == {"second": "first"}
    rows = inputs_of(model, calls).double()
    for path in ("first", "second"):
        known, weight = found.modules[path], model.get_submodule(path).weight.detach().double()
        assert known.rows == 60
        assert torch.allclose(known.mean_squares, rows.square().mean(0))
        assert known.output_energy == pytest.approx(float((rows @ weight.T).square().sum(1).mean()))
    third = model.third(rows.float() + 1).detach().double()
    assert torch.allclose(found.modules["conv"].mean_squares, third.square().mean(0))
    assert found.modules["conv"].rows == 60
    with torch.no_grad():
        images = third.float().unflatten(0, (6, 10)).transpose(1, 2).unflatten(2, (2, 5))
        places = nn.functional.conv2d(images, model.conv.weight, padding=1)
    assert found.modules["conv"].output_energy == pytest.approx(float(places.square().sum(1).mean()))
    # Only the first image of each call reaches the grouped one; both groups count as one.
    used = third.unflatten(0, (3, 2, 10))[:, 0].flatten(0, 1).square().mean(0)
    assert torch.allclose(found.modules["grouped"].mean_squares, used.reshape(2, 3).mean(0))
    assert found.modules["grouped"].rows == 3 * 8


def test_the_harm_is_the_error_of_the_output_for_independent_channels() -> None:
    """The error of a weight's columns, weighed by the inputs; a column without input does none."""
    inputs = ModuleInputs(torch.tensor([1.0, 4.0, 0.0]).double(), 8.0, 10)
    assert inputs.harm(torch.tensor([0.5, 0.25, 100.0]), "a") == pytest.approx((0.5 + 1.0) / 8)
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(20_000, 3, generator=generator) * torch.tensor([1.0, 2.0, 0.1])
    weight, change = (torch.randn(5, 3, generator=generator) for _ in range(2))
    known = ModuleInputs(states.double().square().mean(0), float((states @ weight.T).square().sum(1).mean()), 20_000)
    true = (states @ change.T).square().sum() / (states @ weight.T).square().sum()
    assert known.harm(change.square().sum(0), "a") == pytest.approx(float(true), rel=0.03)
    zero_inputs, zero_outputs = torch.zeros(3).double(), ModuleInputs(torch.ones(3).double(), 0.0, 1)
    assert ModuleInputs(zero_inputs, 0.0, 1).harm(torch.ones(3), "a") == 0
    # A weight of zeros, of which quantization makes zeros.
    assert zero_outputs.harm(torch.zeros(3), "a") == 0
    with pytest.raises(ImageError, match=r"blocks\.7: its output is zero in all calls"):
        zero_outputs.harm(torch.ones(3), "blocks.7")


def test_tensors_are_known_while_they_live_and_stay_as_they_are() -> None:
    numbers, first = TensorNumbers(), torch.ones(3)
    view = first[:]
    assert [numbers.number(first), numbers.number(first), numbers.number(view)] == [1, 1, 2]
    first += 1
    assert numbers.number(first) == 3
    # torch gives freed memory to the next tensor.
    found = [numbers.number(torch.ones(3)) for _ in range(5)]
    assert found == [4, 5, 6, 7, 8]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite(value: float, model: Model) -> None:
    calls = three_calls()
    calls[1].arguments[0][0, 0, 0] = value
    with pytest.raises(ImageError, match="first: its input or output is not finite in prompt A, step 1"):
        gather_inputs(in_place(model), PATHS, calls)


@pytest.fixture(scope="module")
def original(tiny_repo: Path) -> tuple[LoadedOriginal, list[Call], GatheredInputs]:
    loaded, settings = load(tiny_repo, PROMPTS, dtype="float32")
    calls = record_calls(loaded, settings, 2)
    paths = [path for path, module in loaded.denoiser.named_modules() if isinstance(module, nn.Linear)]
    return loaded, calls, gather_inputs(loaded, paths, calls)


def read(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    with safe_open(file, "pt") as stream:
        tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - it is no dictionary
        return tensors, stream.metadata()


def test_second_moments_of_lens(original: tuple[LoadedOriginal, list[Call], GatheredInputs], tmp_path: Path) -> None:
    """Their diagonal is the mean square; less memory takes more passes, and gives the same file."""
    loaded, calls, gathered = original
    notes = Notes()
    found = write_calibration(loaded, gathered, calls, tmp_path / "all", memory=1 << 30, reporter=notes)
    assert (found.passes, found.absent, notes.texts) == (1, gathered.absent, [])
    assert found.sha256 == file_sha256(tmp_path / "all")
    tensors, metadata = read(tmp_path / "all")
    assert metadata["format"] == "lensconv-calibration/1"
    header = read_header(loaded.checkpoint.folder / "diffusion_pytorch_model.safetensors")
    assert json.loads(metadata["source"]) == {header.file.name: header.sha256}
    shares = json.loads(metadata["shares"])
    assert shares == gathered.shares
    # Both projections of a SwiGLU get the same states.
    assert any(path.endswith("img_mlp.w3") and other.endswith("img_mlp.w1") for path, other in shares.items())
    assert {*shares, *(name.removesuffix(".hessian") for name in tensors)} == gathered.modules.keys()
    for name, tensor in tensors.items():
        known = gathered.modules[name.removesuffix(".hessian")].mean_squares
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, tensor.T) or torch.allclose(tensor, tensor.T, rtol=1e-5, atol=1e-6)
        assert torch.allclose(tensor.diagonal().double(), known, rtol=1e-5)
    few = write_calibration(loaded, gathered, calls, tmp_path / "few", memory=3_000_000, reporter=notes)
    assert few.passes > 2
    assert notes.texts == [f"the calls are repeated {few.passes} times, as the inputs' second moments take much memory"]
    assert few.sha256 == found.sha256
    blocks = write_calibration(loaded, gathered, calls, tmp_path / "blocks", memory=1 << 30, limit=100)
    assert blocks.absent == found.absent
    for name, tensor in read(tmp_path / "blocks")[0].items():
        whole = tensors[name]
        count = tensor.shape[0]
        assert (tensor.ndim, count * tensor.shape[1], tensor.shape[1] <= 100) == (3, len(whole), True)
        size = len(whole) // count
        for number in range(count):
            part = slice(number * size, (number + 1) * size)
            assert torch.allclose(tensor[number], whole[part, part], rtol=1e-5, atol=1e-6)


def test_second_moments_are_those_of_the_rows(
    original: tuple[LoadedOriginal, list[Call], GatheredInputs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In chunks of rows; the first layer gets the latents."""
    loaded, calls, gathered = original
    monkeypatch.setattr("converter.measurement.sensitivity.calibration._ROWS", 7)
    write_calibration(loaded, gathered, calls, tmp_path / "file", memory=1 << 30)
    rows = torch.cat([call.options["hidden_states"].flatten(0, -2) for call in calls]).double()
    tensors, _ = read(tmp_path / "file")
    assert torch.allclose(tensors["img_in.hessian"], (rows.T @ rows / len(rows)).float(), rtol=1e-5, atol=1e-6)
