"""The golden transformer, its runs and its adapters, for tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from converter.models.lens.transformer import LensTransformer2DModel
from tests.lens.reference import GOLDEN_CONFIG, golden_inputs, golden_state, transformer_forward

Inputs = dict[str, Any]
State = dict[str, torch.Tensor]
#: How far upstream's figures may be missed, and how far two orders of the same float32 sums may be apart.
GOLDEN_TOLERANCE = 2e-5
TOLERANCE = 1e-5
#: Rank and alpha of the adapters here; they differ, so that a lost alpha shows.
RANK, ALPHA = 4, 10.0
ADAPTED = ("attn.img_qkv", "attn.to_out.0")


def golden() -> Any:
    """The golden model, its weights from the reference."""
    model = LensTransformer2DModel(**GOLDEN_CONFIG).eval()
    model.load_state_dict(golden_state({name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}))
    return model


def as_arguments(inputs: Inputs) -> Inputs:
    """Arguments of the reference, as the model calls them."""
    renamed = {key: value for key, value in inputs.items() if key not in ("mask", "grid")}
    return {**renamed, "encoder_hidden_states_mask": inputs["mask"], "img_shapes": [(1, *inputs["grid"])]}


def run(model: Any, inputs: Inputs | None = None, **options: Any) -> torch.Tensor:
    """What a model makes of inputs of the reference, by default the golden ones."""
    arguments = as_arguments(inputs or golden_inputs((3, 5)))
    with torch.no_grad():
        (sample,) = model(**arguments, return_dict=False, **options)
    return sample


def reference(state: Mapping[str, torch.Tensor], inputs: Inputs | None = None) -> torch.Tensor:
    """What the reference makes of golden-sized weights."""
    with torch.no_grad():
        return transformer_forward(state, GOLDEN_CONFIG, **(inputs or golden_inputs((3, 5))))


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference; NaN is one, too."""
    assert one.shape == other.shape
    largest = float((one.detach().float() - other.detach().float()).abs().max())
    return largest if largest == largest else float("inf")


@contextmanager
def calls_of(module: Any) -> Iterator[list[dict[str, Any]]]:
    """The named arguments of each call of a module inside the block."""
    calls: list[dict[str, Any]] = []
    handle = module.register_forward_pre_hook(
        lambda _module, _positional, arguments: calls.append(arguments), with_kwargs=True
    )
    try:
        yield calls
    finally:
        handle.remove()


Delta = tuple[dict[str, torch.Tensor], float]


def adapted(state: Mapping[str, torch.Tensor], *adapters: Delta) -> State:
    """Weights with adapters multiplied out; an adapter is its tensors by bare names, and what it is scaled by."""
    merged = dict(state)
    for tensors, scale in adapters:
        for name, down in tensors.items():
            if name.endswith(".lora_A.weight"):
                module = name.removesuffix(".lora_A.weight")
                update = tensors[f"{module}.lora_B.weight"] @ down
                merged[f"{module}.weight"] = merged[f"{module}.weight"] + scale * update
    return merged


def make_adapter(model: Any, seed: int = 0, rank: int = RANK) -> State:
    """Tensors of an adapter under bare names."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in model.state_dict().items():
        module = name.removesuffix(".weight")
        if module.endswith(ADAPTED):
            rows, columns = tensor.shape
            state[f"{module}.lora_A.weight"] = 0.3 * torch.randn(rank, columns, generator=generator)
            state[f"{module}.lora_B.weight"] = 0.3 * torch.randn(rows, rank, generator=generator)
    return state
