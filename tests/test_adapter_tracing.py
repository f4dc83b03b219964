"""What converters of diffusers do with the tensors of an adapter, and what of it takes memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from converter.checkpoint.reader import TensorReader
from converter.conversion.adapters.choice import AdapterChoice
from converter.conversion.adapters.tracing import Traced, name_of, origins_of, plain, traced
from tests import lora_files
from tests.lora_files import ALPHA, Tensors, down_and_up, factors, of_authors
from tests.test_adapter_weights import check
from tests.tiny_models import build_model

KINDS = ((1, "self"), (2, "cross"))
#: Wan's modules of a block in its authors' names, by diffusers' own.
WAN = {f"attn{number}.to_{part}": f"{kind}_attn.{part}" for number, kind in KINDS for part in "qkv"}
WAN |= {f"attn{number}.to_out.0": f"{kind}_attn.o" for number, kind in KINDS}
WAN |= {"ffn.net.0.proj": "ffn.0", "ffn.net.2": "ffn.2"}


@pytest.mark.parametrize("form", ["diffusion_model", "lora_unet"])
def test_factors_that_are_scaled_in_place(tmp_path: Path, form: str) -> None:
    """diffusers does that with alphas of Wan's cross attention."""

    def make(models: Any, seed: int) -> Tensors:
        names = {
            f"blocks.{block}.{ours}": f"blocks.{block}.{theirs}" for block in (0, 1) for ours, theirs in WAN.items()
        }
        found: Tensors = {}
        for name, tensor in down_and_up(factors(models["transformer"], [*names], seed, torch.bfloat16)).items():
            path, _, part = name.partition(".lora_")
            stem = f"diffusion_model.{names[path]}"
            if form == "lora_unet":
                stem = f"lora_unet_{names[path].replace('.', '_')}"
            found |= {f"{stem}.lora_{part}": tensor, f"{stem}.alpha": torch.tensor(ALPHA)}
        return found

    check(tmp_path, (0.7,), "WanPipeline", {"transformer": build_model("WanTransformer3DModel")}, make)


class File:
    """A tensor in a file, which counts how often it is read."""

    def __init__(self) -> None:
        self.numbers = torch.arange(12.0).reshape(4, 3)
        self.reads = 0

    def read(self) -> torch.Tensor:
        self.reads += 1
        return self.numbers.clone()

    def traced(self, name: str = "x") -> Traced:
        return traced(name, (4, 3), torch.float32, self.read)


def test_a_tensor_is_read_when_something_is_computed_with_it() -> None:
    file = File()
    given = file.traced()
    assert (given.shape, given.dtype, given.device, given.ndim, given.numel(), len(given.shape)) == (
        *((4, 3), torch.float32, torch.device("cpu"), 2, 12, 2),
    )
    assert (name_of(given), file.reads) == ("x", 0)
    doubled = given * 2
    assert (name_of(given), name_of(doubled), file.reads) == ("x", "", 1)
    assert type(plain(doubled)) is torch.Tensor
    assert torch.equal(plain(doubled), file.numbers * 2)
    assert torch.equal(plain(given), file.numbers)


OPERATIONS: list[Callable[[Any], Any]] = [
    lambda x: torch.split(x, [1, 3]),
    lambda x: torch.chunk(x, 2, dim=0),
    lambda x: [torch.cat([x, x]), torch.stack((x, x), dim=1)],
    lambda x: [x.T.contiguous(), x[1:3, :2], x[..., None], x.to(torch.bfloat16), x.float(), x.clone()],
    lambda x: [torch.zeros(2, device=x.device, dtype=x.dtype) + x[0, 0]],
    lambda x: [torch.tensor([float(x[0, 1]), x[1, 1].item(), bool(torch.all(x == 0))])],
    lambda x: [torch.where(condition=x > 3, input=x, other=torch.zeros_like(x))],
]


@pytest.mark.parametrize("number", range(len(OPERATIONS)))
def test_what_is_computed_is_what_torch_computes(number: int) -> None:
    file = File()
    for ours, theirs in zip(OPERATIONS[number](file.traced()), OPERATIONS[number](file.numbers), strict=True):
        assert torch.equal(plain(ours), theirs)
        assert name_of(ours) == ""
        assert origins_of([ours]) == ({"x"} if isinstance(ours, Traced) else set())


def scale(tensor: Any) -> Any:
    tensor *= 2
    return tensor


def set_row(tensor: Any) -> Any:
    tensor[0] = 5
    return tensor


@pytest.mark.parametrize("change", [scale, lambda x: x.mul_(2), set_row, lambda x: torch.add(x, 1, out=x)])
def test_what_is_changed_in_place_is_no_longer_what_is_in_the_file(change: Callable[[Any], Any]) -> None:
    """Whether the converter uses what the function returns or not."""
    file, other = File(), File()
    given, expected = file.traced(), change(file.numbers.clone())
    again = change(given)
    for found in (given, again):
        assert name_of(found) == ""
        assert torch.equal(plain(found), expected)
    given += other.traced("y")
    assert torch.equal(plain(given), expected + other.numbers)
    assert origins_of([given]) == {"x", "y"}


def test_a_container_knows_all_that_it_was_made_from() -> None:
    first, second = File().traced("a"), File().traced("b")
    assert origins_of([torch.cat([first, second])]) == {"a", "b"}
    assert origins_of([[first], (second, 3)]) == {"a", "b"}


def test_only_what_a_converter_makes_is_held(tmp_path: Path) -> None:
    """Of a joined projection, both factors are in memory once, although three modules have parts of them."""
    model = build_model("FluxTransformer2DModel")
    sizes = {"double_blocks.0.img_attn.qkv": (128, 384), "double_blocks.0.img_mlp.0": (128, 512)}
    file = lora_files.write(tmp_path / "x.safetensors", of_authors(sizes, "kohya"))
    found = lora_files.resolve(AdapterChoice(file), "FluxPipeline", {"transformer": model})
    assert found.held_bytes == 2 * lora_files.RANK * (128 + 384 + 128 + 512)
    modules = found.modules["transformer"]
    assert {*modules} == {
        f"transformer_blocks.0.{part}" for part in ("attn.to_q", "attn.to_k", "attn.to_v", "ff.net.0.proj")
    }
    with TensorReader() as reader:
        assert {module.up.load(reader).shape for module in modules.values()} == {(128, 4), (512, 4)}
