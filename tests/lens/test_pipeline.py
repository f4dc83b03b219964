"""Runs of the pipeline, compared with runs of the plain reference."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from converter.lens import LensGptOssEncoder
from tests.lens import reference
from tests.lens.pipelines import (
    CHANNELS,
    OTHER_PROMPT,
    PROMPT,
    STEPS,
    TOLERANCE,
    Branch,
    Reference,
    branches,
    calls_of,
    draw,
    embeddings,
    load,
    noise,
    reference_blank,
    reference_features,
    same_seed,
)
from tests.lens.prompts import PREFIX, stop_the_clock

#: Negative prompts for two prompts, and how each of them is spelled if it is encoded.
NEGATIVES: dict[str, tuple[Any, list[str] | None]] = {
    "blank": ("", None),
    "spaces": (" \n", None),
    "none": (None, None),
    "blanks": (["", " "], None),
    "one": ("blurry", ["blurry", "blurry"]),
    "list of one": (["blurry"], ["blurry", "blurry"]),
    "mixed": (["", "a dog, in the rain"], ["", "a dog, in the rain"]),
}


@pytest.mark.parametrize(
    ("kind", "scale"),
    [
        *((kind, 4.0) for kind in NEGATIVES),
        *((kind, scale) for kind in ("blank", "one", "mixed") for scale in (1.0, 0.5, 0.0)),
    ],
)
def test_a_run_is_the_references(pipe: Any, kind: str, scale: float) -> None:
    """Two prompts of different lengths; all negatives except blank ones go through the template."""
    prompts = [PROMPT, OTHER_PROMPT]
    negatives, spelled = NEGATIVES[kind]
    negative = reference_blank(2) if spelled is None else reference_features(pipe, spelled)
    expected = Reference(pipe, reference_features(pipe, prompts), negative, scale)
    options = {"negative_prompt": negatives, "guidance_scale": scale, "latents": noise(2)}
    found = draw(pipe, prompts, **options)
    assert found.dtype == torch.float32
    latents = expected.latents(noise(2))
    torch.testing.assert_close(found, latents, **TOLERANCE)
    images = draw(pipe, prompts, **options, output_type="pil")
    wanted = reference.to_uint8(expected.pixels(latents)).numpy()
    difference = np.abs(np.stack(images).astype(int) - wanted)
    assert difference.max() <= 1
    # Next to a level, float32 may fall on either side.
    assert (difference > 0).mean() < 0.01


def test_what_a_run_depends_on(pipe: Any) -> None:
    """The tolerance above would not hide any of these."""
    base = draw(pipe, latents=noise(), negative_prompt="dog")
    for options in (
        {"negative_prompt": "cat"},
        {"negative_prompt": ""},
        {"prompt": OTHER_PROMPT},
        {"guidance_scale": 3.0},
        {"guidance_scale": 1.0},
        {"guidance_scale": 0.5},
        {"num_inference_steps": STEPS + 1},
        {"latents": noise(seed=2)},
    ):
        other = draw(pipe, **({"latents": noise(), "negative_prompt": "dog"} | options))
        assert (other - base).abs().max() > 0.1, options
    # Scales below one are guidance, too.
    for scale in (0.0, 0.5):
        drawn = [draw(pipe, latents=noise(), negative_prompt=text, guidance_scale=scale) for text in ("cat", "dog")]
        assert not torch.allclose(*drawn, **TOLERANCE)


def test_the_encoder_and_the_transformer_run_no_more_than_they_must(pipe: Any) -> None:
    for options, encoded, batch in (
        ({"prompt": [PROMPT, OTHER_PROMPT], "latents": noise(2)}, [2], 4),
        ({"prompt": [PROMPT, OTHER_PROMPT], "latents": noise(2), "negative_prompt": "dog"}, [2, 1], 4),
        ({"latents": noise(), "negative_prompt": "dog", "guidance_scale": 1}, [1], 1),
    ):
        with calls_of(pipe.text_encoder) as texts, calls_of(pipe.transformer) as steps:
            draw(pipe, **options)
        assert [len(arguments["input_ids"]) for arguments in texts] == encoded
        assert [len(arguments["hidden_states"]) for arguments in steps] == [batch] * STEPS


def test_a_batch_is_its_prompts_one_by_one(pipe: Any) -> None:
    prompts, negatives = [PROMPT, OTHER_PROMPT], ["dog", ""]
    batch = draw(pipe, prompts, negative_prompt=negatives, latents=noise(2))
    for row, (prompt, negative) in enumerate(zip(prompts, negatives, strict=True)):
        # Alone, a blank negative prompt is left out; in a mixed list it is encoded.
        embeds, mask, *_ = pipe.encode_prompt(negative, do_classifier_free_guidance=False)
        options = {"negative_prompt_embeds": embeds, "negative_prompt_mask": mask, "latents": noise(2)[row : row + 1]}
        torch.testing.assert_close(batch[row], draw(pipe, prompt, **options)[0], **TOLERANCE)


@pytest.mark.parametrize("negatives", ["dog", ["dog", "a cat in the rain"]])
def test_images_of_a_prompt_stand_next_to_each_other(pipe: Any, negatives: Any) -> None:
    prompts = [PROMPT, OTHER_PROMPT]
    found = draw(pipe, prompts, negative_prompt=negatives, num_images_per_prompt=2, latents=noise(4))
    for row in range(4):
        negative = negatives if isinstance(negatives, str) else negatives[row // 2]
        alone = draw(pipe, prompts[row // 2], negative_prompt=negative, latents=noise(4)[row : row + 1])
        torch.testing.assert_close(found[row], alone[0], **TOLERANCE)


def test_only_the_image_is_left_where_97_tokens_are_allowed(pipe: Any) -> None:
    blank = Reference(pipe, reference_blank(1), reference_blank(1), 1.0)
    for negative in ("", "dog"):
        found = draw(pipe, max_sequence_length=PREFIX, negative_prompt=negative, latents=noise())
        torch.testing.assert_close(found, blank.latents(noise()), **TOLERANCE)


def test_long_prompts_are_cut_at_512_tokens(pipe: Any) -> None:
    embeds, mask, _, negative_mask = pipe.encode_prompt("x" * 600, "short")
    assert [tuple(embed.shape) for embed in embeds] == [(1, 415, 64)] * 4
    assert mask.all()
    # The negative prompt is padded to the same length.
    assert negative_mask.sum() == len("short") + 22
    assert negative_mask.shape == mask.shape
    shorter, *_ = pipe.encode_prompt("x" * 600, max_sequence_length=200)
    torch.testing.assert_close(shorter[3], embeds[3][:, :103], rtol=1e-4, atol=1e-4)


def test_features_depend_on_the_day_unless_it_is_frozen(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = pipe.encode_prompt(PROMPT)[0][3]
    stop_the_clock(monkeypatch, date(2031, 2, 3))
    assert torch.equal(pipe.encode_prompt(PROMPT)[0][3], frozen)
    monkeypatch.setattr(pipe, "prompt_date", None)
    current = pipe.encode_prompt(PROMPT)[0][3]
    assert not torch.allclose(current, frozen, atol=1e-2)
    monkeypatch.setattr(pipe, "prompt_date", date(2031, 2, 3))
    assert torch.equal(pipe.encode_prompt(PROMPT)[0][3], current)


def test_noise_is_drawn_packed(pipe: Any) -> None:
    """Or a seed would not mean what it means upstream."""
    assert torch.equal(
        draw(pipe, [PROMPT, OTHER_PROMPT], **same_seed()),
        draw(pipe, [PROMPT, OTHER_PROMPT], latents=torch.randn(2, 24, CHANNELS, **same_seed())),
    )


def test_generators_of_a_list_draw_an_image_each(pipe: Any) -> None:
    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in (3, 4)]

    found = draw(pipe, [PROMPT, OTHER_PROMPT], generator=generators())
    for row, generator in enumerate(generators()):
        alone = draw(pipe, [PROMPT, OTHER_PROMPT][row], generator=generator)
        torch.testing.assert_close(found[row], alone[0], **TOLERANCE)
    assert torch.equal(draw(pipe, generator=generators()[:1]), draw(pipe, generator=generators()[0]))
    with pytest.raises(ValueError, match="2 generators for 1 images"):
        draw(pipe, generator=generators())
    with pytest.raises(ValueError, match="1 generators for 2 images"):
        draw(pipe, num_images_per_prompt=2, generator=generators()[:1])


def test_latents_that_came_out_can_go_in(pipe: Any) -> None:
    run = Reference(pipe, reference_features(pipe, [PROMPT]), reference_blank(1), 4.0)
    first = draw(pipe, latents=noise())
    given = first.clone()
    second = draw(pipe, latents=first)
    assert torch.equal(first, given)
    torch.testing.assert_close(second, run.latents(run.latents(noise())), **TOLERANCE)
    with pytest.raises(ValueError, match=r"latents have shape \[1, 32, 8, 12\], not \[1, 24, 128\]"):
        draw(pipe, latents=torch.zeros(1, 32, 8, 12))
    with pytest.raises(ValueError, match=r"not \[2, 24, 128\]"):
        draw(pipe, latents=noise(), num_images_per_prompt=2)


def test_sigma_is_divided_in_the_dtype_of_the_latents(folder: Path, pipe: Any) -> None:
    half = load(folder, dtype=torch.bfloat16)
    for model, dtype in ((half, torch.bfloat16), (pipe, torch.float32)):
        with calls_of(model.transformer) as seen:
            images = draw(model, latents=noise(), num_inference_steps=8)
        assert images.dtype == dtype
        assert {arguments[name].dtype for arguments in seen for name in ("hidden_states", "timestep")} == {dtype}
        sigmas = torch.tensor(reference.sigmas(24, 8)[:-1])
        found = torch.stack([arguments["timestep"] for arguments in seen])
        assert found.shape == (8, 2)
        expected = (1000 * sigmas).to(dtype) / 1000
        torch.testing.assert_close(found, expected[:, None].expand(-1, 2), rtol=1e-6, atol=0)
        if dtype == torch.bfloat16:
            # Dividing before rounding is not the same.
            assert not torch.equal(found[:, 0], sigmas.to(dtype))


def test_bfloat16_is_near_float32(folder: Path, pipe: Any) -> None:
    """Within 4 % of the length of the latents, from the same features and noise.

    The reference in float32 is told the sigmas that bfloat16 makes of the schedule; the tiny transformer takes their
    rounding for another time, and is then 10 % off.
    """
    half = load(folder, dtype=torch.bfloat16)
    whole = embeddings(pipe)

    class Rounded(Reference):
        def branch(self, latents: torch.Tensor, sigma: float, texts: Branch) -> torch.Tensor:
            return super().branch(latents, float(torch.tensor(1000 * sigma).bfloat16() / 1000), texts)

    for scale in (1.0, 4.0):
        found = draw(half, None, **whole, latents=noise(), guidance_scale=scale)
        assert found.dtype == torch.bfloat16
        expected = Rounded(pipe, *branches(whole), scale).latents(noise())
        assert (found.float() - expected).norm() / expected.norm() < 0.04


def test_features_take_the_dtype_of_the_transformer(folder: Path, pipe: Any) -> None:
    """Encoders are in bfloat16 as a rule, whatever the transformer is in."""
    encoder = LensGptOssEncoder.from_pretrained(folder / "text_encoder", dtype=torch.bfloat16)
    mixed = load(folder, text_encoder=encoder)
    embeds, *_ = mixed.encode_prompt(PROMPT)
    assert {embed.dtype for embed in embeds} == {torch.float32}
    expected, _ = reference_features(mixed, [PROMPT])
    for ours, theirs in zip(embeds, expected, strict=True):
        assert theirs.dtype == torch.bfloat16
        assert torch.equal(ours, theirs.float())
    assert draw(mixed, latents=noise()).dtype == torch.float32
    # And embeddings that are given.
    given = pipe.encode_prompt(prompt_embeds=expected, prompt_mask=torch.ones(expected[0].shape[:2]))[0]
    assert {embed.dtype for embed in given} == {torch.float32}
    assert all(map(torch.equal, given, embeds))
