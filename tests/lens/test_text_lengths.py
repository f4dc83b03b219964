"""Attention without a mask: lengths of texts say what a mask said, for the transformer and for runs of the pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn import functional
from torch.nn.functional import scaled_dot_product_attention

from tests.lens import pipelines
from tests.lens.models import GOLDEN_TOLERANCE, TOLERANCE, Inputs, as_arguments, calls_of, distance, golden, reference
from tests.lens.pipelines import OTHER_PROMPT, PROMPT, STEPS, draw, embeddings
from tests.lens.reference import GOLDEN, golden_inputs

#: Text tokens to which all samples are padded.
TOKENS = 7


def mask_of(lengths: list[int]) -> torch.Tensor:
    return torch.arange(TOKENS) < torch.tensor(lengths)[:, None]


def inputs_for(lengths: list[int]) -> Inputs:
    """Inputs of that many samples; what lies in the padding would be seen."""
    generator = torch.Generator().manual_seed(len(lengths))
    padding = 1000.0 * ~mask_of(lengths)[..., None]
    features = [torch.randn(len(lengths), TOKENS, 24, generator=generator) + padding for _ in range(3)]
    inputs = {"hidden_states": torch.randn(len(lengths), 15, 16, generator=generator), "grid": (3, 5)}
    timestep = torch.rand(len(lengths), generator=generator)
    return {**inputs, "encoder_hidden_states": features, "timestep": timestep, "mask": mask_of(lengths)}


def arguments_of(inputs: Inputs, lengths: Any) -> dict[str, Any]:
    return {**as_arguments({**inputs, "mask": None}), "text_lengths": lengths}


def run(model: Any, inputs: Inputs, lengths: Any) -> torch.Tensor:
    with torch.no_grad():
        sample: torch.Tensor = model(**arguments_of(inputs, lengths)).sample
    return sample


@contextmanager
def attentions() -> Iterator[list[tuple[int, int, Any]]]:
    """Samples, tokens and mask of each attention inside the block."""
    seen: list[tuple[int, int, Any]] = []

    def spy(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: Any = None, **named: Any) -> Any:
        seen.append((query.shape[0], query.shape[2], attn_mask))
        return scaled_dot_product_attention(query, key, value, attn_mask, **named)

    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(functional, "scaled_dot_product_attention", spy)
        yield seen


@settings(max_examples=25)
@example([7, 4])
@example([0, 0])
@example([3, 0, 0, 5, 5, 0])
@given(st.lists(st.integers(0, TOKENS), min_size=1, max_size=6))
def test_lengths_say_what_a_mask_says(lengths: list[int]) -> None:
    """Also for samples without text before others, and where no sample has any."""
    model, inputs = golden(), inputs_for(lengths)
    with attentions() as seen:
        found = run(model, inputs, lengths)
    assert distance(found, reference(model.state_dict(), inputs)) <= TOLERANCE
    # Neighbours of one length attend at once.
    different = 1 + sum(one != other for one, other in pairwise(lengths))
    assert [mask for *_, mask in seen] == [None] * 3 * different


def test_upstreams_figures_without_a_mask() -> None:
    for grid, figures in GOLDEN.items():
        output = run(golden(), golden_inputs(grid), [7, 4])
        assert distance(output[0, 0, :4], torch.tensor(figures["first"])) <= GOLDEN_TOLERANCE
        assert distance(output[1, -1, -4:], torch.tensor(figures["last"])) <= GOLDEN_TOLERANCE


@pytest.mark.parametrize("lengths", [[7], [7, 4, 4], [7, 8], [7, -1], torch.tensor([7, 4]), 7])
def test_lengths_that_do_not_fit(lengths: Any) -> None:
    with pytest.raises(ValueError, match="text_lengths must be a list of 2 numbers from 0 to 7, not "):
        run(golden(), golden_inputs((3, 5)), lengths)
    with pytest.raises(ValueError, match="give text_lengths or encoder_hidden_states_mask, not both"):
        golden()(**as_arguments(golden_inputs((3, 5))), text_lengths=[7, 4])


def test_lengths_of_a_model_that_is_trained() -> None:
    """With checkpoints or without; no gradient reaches what does not count."""
    lengths = [4, 0, 7, 0]
    outputs, gradients = [], []
    for checkpoints in (False, True):
        model, inputs = golden().train(), inputs_for(lengths)
        (model.enable_gradient_checkpointing if checkpoints else model.disable_gradient_checkpointing)()
        features = [feature.requires_grad_() for feature in inputs["encoder_hidden_states"]]
        outputs.append(model(**arguments_of(inputs, lengths)).sample)
        outputs[-1].square().mean().backward()
        gradients.append([feature.grad for feature in features])
        assert all(feature.grad.ne(0).any(dim=-1).equal(mask_of(lengths)) for feature in features)
    torch.testing.assert_close(*zip(outputs, gradients, strict=True), rtol=0, atol=0)


@pytest.mark.long
def test_lengths_are_exported() -> None:
    model, inputs = golden(), inputs_for([4, 0])
    arguments = arguments_of(inputs, [4, 0])
    exported = torch.export.export(model, args=(), kwargs=arguments).module()
    with torch.no_grad():
        assert distance(exported(**arguments).sample, run(model, inputs, [4, 0])) <= TOLERANCE


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("method", ["compile", "compile_repeated_blocks"])
def test_lengths_are_compiled_for_any_length(method: str) -> None:
    """As shapes are: the first text has a graph of its own, the second one of another length that of all others."""
    model, expected = golden(), golden()
    getattr(model, method)(fullgraph=True, backend="eager")
    torch.compiler.reset()
    try:
        for length in range(3, TOKENS + 1):
            inputs = inputs_for([length, 0])
            with torch._dynamo.config.patch(error_on_recompile=length > 4):
                assert distance(run(model, inputs, [length, 0]), run(expected, inputs, [length, 0])) <= TOLERANCE
    finally:
        torch.compiler.reset()


#: Batches: prompts, negative prompts, images of each prompt, and size in pixels.
BATCHES: dict[str, tuple[Any, Any, int, tuple[int, int]]] = {
    "one": (PROMPT, "", 1, (64, 96)),
    "one, short": ("", "", 1, (16, 16)),
    "one, wide": (PROMPT, "", 1, (32, 256)),
    "one, shorter negative": (PROMPT, "dog", 1, (64, 96)),
    "one, longer negative": ("sea", PROMPT, 1, (96, 64)),
    "one, equal negative": (PROMPT, PROMPT, 1, (64, 96)),
    "two images": (PROMPT, "", 2, (48, 48)),
    "two prompts": ([PROMPT, OTHER_PROMPT], "", 1, (64, 96)),
    "two prompts, the shorter first": ([OTHER_PROMPT, PROMPT], "", 2, (64, 64)),
    "two prompts, one negative blank": ([PROMPT, OTHER_PROMPT], ["", "dog"], 1, (64, 96)),
}


@contextmanager
def with_masks(transformer: Any) -> Iterator[None]:
    """Lengths reach the transformer as the mask that says the same."""

    def to_mask(_module: Any, positional: Any, named: dict[str, Any]) -> Any:
        if (lengths := named.pop("text_lengths", None)) is not None:
            tokens = torch.arange(named["encoder_hidden_states"][0].shape[1])
            named["encoder_hidden_states_mask"] = tokens < torch.tensor(lengths)[:, None]
        return positional, named

    handle = transformer.register_forward_pre_hook(to_mask, with_kwargs=True)
    yield
    handle.remove()


@pytest.mark.parametrize("batch", BATCHES)
def test_a_run_without_masks_is_the_run_with_masks(pipe: Any, batch: str) -> None:
    prompts, negatives, images, (height, width) = BATCHES[batch]

    def latents() -> Any:
        generator, size = torch.Generator().manual_seed(1), {"height": height, "width": width}
        options = {**size, "num_images_per_prompt": images, "generator": generator}
        return draw(pipe, prompts, negative_prompt=negatives, **options)

    with with_masks(pipe.transformer):
        expected = latents()
    with attentions() as seen, calls_of(pipe.transformer) as calls:
        found = latents()
    assert (found - expected).norm() <= 1e-5 * expected.norm()
    assert len(calls) == STEPS
    # The encoder's attention is not SDPA.
    assert [mask for *_, mask in seen] == [None] * len(seen)
    assert len(seen) >= STEPS * len(pipe.transformer.transformer_blocks)


def test_a_blank_negative_costs_no_text(pipe: Any) -> None:
    """Linear layers of the text stream see the conditional sample alone; the unconditional one attends to its image."""
    whole = embeddings(pipe, negative="")
    tokens = whole["prompt_mask"].shape[1]
    block = pipe.transformer.transformer_blocks[0]
    layers = [pipe.transformer.txt_in, block.txt_mod, block.attn.txt_qkv, block.attn.to_add_out, block.txt_mlp]
    rows: list[int] = []
    handles = [layer.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0]))) for layer in layers]
    with attentions() as seen:
        draw(pipe, None, **whole, num_inference_steps=1)
    for handle in handles:
        handle.remove()
    assert rows == [1] * len(layers)
    assert {(samples, tokens) for samples, tokens, _ in seen} == {(1, 24 + tokens), (1, 24)}


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_masks_that_no_length_describes(pipe: Any, scale: float) -> None:
    """A token in the middle is taken out, by a mask in the branches that have it."""
    whole = embeddings(pipe, negative="")
    holed = {**whole, "prompt_mask": whole["prompt_mask"].clone()}
    holed["prompt_mask"][0, 3] = False
    expected = pipelines.Reference(pipe, *pipelines.branches(holed), scale).latents(pipelines.noise())
    with calls_of(pipe.transformer) as calls:
        found = draw(pipe, None, **holed, guidance_scale=scale, latents=pipelines.noise())
    torch.testing.assert_close(found, expected, **pipelines.TOLERANCE)
    (mask,) = {tuple(call["encoder_hidden_states_mask"].sum(dim=1).tolist()) for call in calls}
    length = whole["prompt_mask"].shape[1]
    assert mask == ((length - 1,) if scale == 1 else (length - 1, 0))


def test_a_transformer_of_others_gets_a_mask(pipe: Any, folder: Any) -> None:
    """Registration keeps one that diffusers may have, which knows no lengths."""
    other = pipelines.load(folder)
    transformer = other.transformer

    class Theirs:
        def __getattr__(self, name: str) -> Any:
            return getattr(transformer, name)

        def __call__(self, **named: Any) -> Any:
            assert "text_lengths" not in named
            assert named["encoder_hidden_states_mask"].any(dim=1).tolist() == [True, False]
            return transformer(**named)

    expected = draw(pipe, latents=pipelines.noise())
    other.transformer = Theirs()
    torch.testing.assert_close(draw(other, latents=pipelines.noise()), expected, **pipelines.TOLERANCE)
    # Ours is ours when it is compiled, too.
    other.transformer = torch.compile(transformer, backend="eager")
    assert other._counted_tokens(mask_of([4]), mask_of([0])) == [{"text_lengths": [4]}, {"text_lengths": [4, 0]}]
