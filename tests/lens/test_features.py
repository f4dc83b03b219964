"""Features of diffusers' models: checkpointing, compilation, offloading, caching, attention backends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry, attention_backend

import converter.models.lens.attention as attention_module
from converter.models.lens.transformer import LensTransformer2DModel
from tests.lens.models import TOLERANCE, as_arguments, counted, distance, golden, run
from tests.lens.reference import golden_inputs


def test_gradient_checkpointing() -> None:
    plain, checkpointed = golden().train(), golden().train()
    checkpointed.enable_gradient_checkpointing()
    outputs = []
    for model, times in ((plain, 1), (checkpointed, 2)):
        with counted(model.transformer_blocks[1].attn) as calls:
            outputs.append(model(**as_arguments(golden_inputs((3, 5)))).sample)
            outputs[-1].square().mean().backward()
        assert len(calls) == times
    assert torch.equal(*outputs)
    names = {name for name, parameter in plain.named_parameters() if parameter.grad is not None}
    for (name, expected), parameter in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        assert (parameter.grad is None) == (expected.grad is None), name
        assert expected.grad is None or torch.equal(parameter.grad, expected.grad), name
    # All but what only the text stream behind the last block would use.
    unused = {name for name, _ in plain.named_parameters()} - names
    assert unused == {
        f"transformer_blocks.2.{name}"
        for name in (
            "attn.to_add_out.weight",
            "attn.to_add_out.bias",
            "txt_norm2.weight",
            "txt_mlp.w1.weight",
            "txt_mlp.w2.weight",
            "txt_mlp.w3.weight",
        )
    }


# torch's own, from a module that its compiler imports.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_compiled() -> None:
    expected = run(golden())
    try:
        assert distance(run(torch.compile(golden(), fullgraph=True)), expected) <= TOLERANCE
        # The code for blocks is that of before; what may differ is what a graph takes in.
        model = golden()
        model.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
        assert all(block._compiled_call_impl is not None for block in model.transformer_blocks)
        assert distance(run(model), expected) <= TOLERANCE
    finally:
        torch.compiler.reset()


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_group_offloading(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights lie on disk until a module is called; what is left of them in between is poisoned here."""
    expected, model = run(golden()), golden()
    monkeypatch.setattr(torch, "empty_like", lambda tensor, **options: torch.full_like(tensor, float("nan"), **options))
    cpu = torch.device("cpu")
    model.enable_group_offload(
        onload_device=cpu,
        offload_device=cpu,
        offload_type=kind,
        num_blocks_per_group=1 if kind == "block_level" else None,
        offload_to_disk_path=str(tmp_path),
    )
    assert torch.equal(run(model), expected)
    assert torch.equal(run(model), expected)
    assert model.transformer_blocks[1].attn.img_qkv.weight.isnan().all()


def test_first_block_cache() -> None:
    plain, cached = golden(), golden()
    first = golden_inputs((3, 5))
    second = {**first, "timestep": first["timestep"] + 0.002}
    blocks: list[torch.Tensor] = []
    for block in (plain.transformer_blocks[0], plain.transformer_blocks[-1]):
        block.register_forward_hook(lambda _module, _inputs, output: blocks.append(output[1]))
    exact = [run(plain, inputs) for inputs in (first, second)]
    head, tail, later_head, _ = blocks
    with torch.no_grad():
        time = plain.time_text_embed(second["timestep"], torch.float32)
        expected = plain.proj_out(plain.norm_out(later_head + (tail - head), time))
    cached.enable_cache(FirstBlockCacheConfig(threshold=0.2))
    with counted(cached.transformer_blocks[1].attn) as calls:
        with cached.cache_context("one"):
            assert torch.equal(run(cached, first), exact[0])
            assert len(calls) == 1
            assert distance(run(cached, second), expected) <= TOLERANCE
            assert len(calls) == 1
        assert distance(expected, exact[1]) > 10 * TOLERANCE
        cached.disable_cache()
        assert torch.equal(run(cached, second), exact[1])
        assert len(calls) == 2


def test_attention_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, calls = AttentionBackendName._NATIVE_MATH, []
    backends = _AttentionBackendRegistry._backends
    original = backends[chosen]

    def spy(**arguments: Any) -> Any:
        calls.append(arguments["attn_mask"])
        return original(**arguments)

    monkeypatch.setitem(backends, chosen, spy)
    # Setting a model's backend sets everyone's; this puts it back after the test.
    monkeypatch.setattr(_AttentionBackendRegistry, "_active_backend", _AttentionBackendRegistry._active_backend)
    model, expected = golden(), run(golden())
    assert not calls
    with attention_backend("_native_math"):
        assert distance(run(model), expected) <= TOLERANCE
    assert [mask.shape for mask in calls] == [(2, 1, 1, 22)] * 3
    run(model)
    assert len(calls) == 3
    model.set_attention_backend("_native_math")
    _AttentionBackendRegistry.set_active_backend(AttentionBackendName.NATIVE)
    assert distance(run(model), expected) <= TOLERANCE
    assert len(calls) == 6
    run(golden())
    assert len(calls) == 6
    model.reset_attention_backend()
    assert torch.equal(run(model), expected)
    assert len(calls) == 6


def test_attention_processors() -> None:
    model = golden()
    assert list(model.attn_processors) == [f"transformer_blocks.{index}.attn.processor" for index in range(3)]
    seen: list[tuple[int, ...]] = []

    class Spy(attention_module.LensAttnProcessor):
        def __call__(self, attn: Any, hidden_states: Any, *others: Any) -> Any:
            seen.append(tuple(hidden_states.shape))
            return super().__call__(attn, hidden_states, *others)

    model.set_attn_processor(Spy())
    assert torch.equal(run(model), run(golden()))
    assert seen == [(2, 15, 48)] * 3
    model.fuse_qkv_projections()  # They are fused from the start.
    assert torch.equal(run(model), run(golden()))


def test_layerwise_casting() -> None:
    """Linear layers are stored in eight bits, but for norms' and the last one, and compute as if rounded to them."""
    model, rounded = golden(), golden()
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    stored = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.float8_e4m3fn}
    assert stored == {name for name in golden().state_dict() if "norm" not in name and not name.startswith("proj_out.")}
    for name, parameter in rounded.named_parameters():
        if name in stored:
            parameter.data = parameter.data.to(torch.float8_e4m3fn).float()
    assert torch.equal(run(model), run(rounded))
    # SDNQ goes by the pattern, too, where diffusers has it of its own.
    assert "norm" in LensTransformer2DModel._skip_layerwise_casting_patterns
    assert distance(run(rounded), run(golden())) > 1e-2
