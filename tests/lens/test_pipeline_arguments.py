"""Arguments and results of the pipeline: embeddings, image types, sizes and callbacks."""

from __future__ import annotations

from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from converter.lens import LensPipelineOutput
from tests.lens import reference
from tests.lens.pipelines import (
    CHANNELS,
    OTHER_PROMPT,
    PROMPT,
    SIZE,
    STEPS,
    TOLERANCE,
    Reference,
    branches,
    calls_of,
    draw,
    embeddings,
    forbid_work,
    noise,
    reference_blank,
    reference_features,
    seen_at_first_call,
)


def test_embeddings_draw_what_their_prompts_draw(pipe: Any) -> None:
    expected = draw(pipe, negative_prompt="dog", latents=noise())
    assert torch.equal(draw(pipe, None, **embeddings(pipe), latents=noise()), expected)
    # Of int64, as tokenizers make masks.
    whole = embeddings(pipe)
    whole["prompt_mask"] = whole["prompt_mask"].long()
    assert {mask.dtype for mask in pipe.encode_prompt(**whole)[1::2]} == {torch.bool}
    assert torch.equal(draw(pipe, prompt=None, **whole, latents=noise()), expected)
    # They win over prompts.
    assert torch.equal(draw(pipe, OTHER_PROMPT, **whole, negative_prompt="cat", latents=noise()), expected)


def test_embeddings_and_prompts_go_together(pipe: Any) -> None:
    """Even where one is longer than the other."""
    whole = embeddings(pipe, PROMPT, "dog")
    expected = draw(pipe, negative_prompt="dog", latents=noise())
    positive = {name: whole[name] for name in ("prompt_embeds", "prompt_mask")}
    negative = {name: whole[name] for name in ("negative_prompt_embeds", "negative_prompt_mask")}
    assert torch.equal(draw(pipe, None, **positive, negative_prompt="dog", latents=noise()), expected)
    assert torch.equal(draw(pipe, PROMPT, **negative, latents=noise()), expected)
    # The three letters and what stands behind them, without the padding.
    embeds, mask = ([embed[:, :25] for embed in whole["negative_prompt_embeds"]], whole["negative_prompt_mask"][:, :25])
    assert mask.all()
    shorter = {"negative_prompt_embeds": embeds, "negative_prompt_mask": mask}
    torch.testing.assert_close(draw(pipe, PROMPT, **shorter, latents=noise()), expected, **TOLERANCE)
    blank = draw(pipe, None, **positive, latents=noise())
    torch.testing.assert_close(blank, draw(pipe, latents=noise()), **TOLERANCE)


def test_embeddings_are_not_repeated(pipe: Any) -> None:
    images = draw(pipe, None, **embeddings(pipe), num_images_per_prompt=2, latents=noise())
    assert len(images) == 1
    pair = embeddings(pipe, [PROMPT, OTHER_PROMPT], ["dog", "cat"])
    assert len(draw(pipe, None, **pair, num_images_per_prompt=3, latents=noise(2))) == 2


def test_embeddings_without_their_mask(pipe: Any) -> None:
    whole = embeddings(pipe)
    for name in ("prompt", "negative_prompt"):
        without = {key: value for key, value in whole.items() if key != f"{name}_mask"}
        with pytest.raises(ValueError, match=f"{name}_embeds need a {name}_mask"):
            draw(pipe, None, **without)


def test_numbers_of_negative_prompts_that_do_not_fit(pipe: Any) -> None:
    for prompts, negatives, message in (
        ([PROMPT] * 2, ["a", "b", "c"], "3 negative prompts for 2 prompts"),
        (PROMPT, ["a", "b"], "2 negative prompts for 1 prompts"),
        ([PROMPT] * 3, ["", ""], "2 negative prompts for 3 prompts"),
        (PROMPT, [], "0 negative prompts for 1 prompts"),
    ):
        with pytest.raises(ValueError, match=message):
            draw(pipe, prompts, negative_prompt=negatives)
    negative = {key: value for key, value in embeddings(pipe).items() if key.startswith("negative")}
    with pytest.raises(ValueError, match="for 1 images, the prompts for 2"):
        draw(pipe, [PROMPT] * 2, **negative)


def test_images_come_as_they_are_asked_for(pipe: Any) -> None:
    prompts, latents = [PROMPT, OTHER_PROMPT], noise(2)
    run = Reference(pipe, reference_features(pipe, prompts), reference_blank(2), 4.0)
    pixels = run.pixels(draw(pipe, prompts, latents=latents))
    images = draw(pipe, prompts, latents=latents, output_type="pil")
    assert [(type(image), image.mode, image.size) for image in images] == [(PIL.Image.Image, "RGB", (96, 64))] * 2
    assert np.array_equal(np.stack(images), reference.to_uint8(pixels).numpy())
    numbers = draw(pipe, prompts, latents=latents, output_type="np")
    assert (numbers.dtype, numbers.shape) == (np.float32, (2, 64, 96, 3))
    expected = ((pixels.clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(numbers, expected, atol=1e-6)
    assert (numbers.min(), numbers.max()) == (0, 1)
    # The default.
    assert isinstance(pipe(PROMPT, **SIZE, num_inference_steps=1).images[0], PIL.Image.Image)


def test_results_come_as_an_object_or_a_tuple(pipe: Any) -> None:
    options = {**SIZE, "num_inference_steps": 1, "latents": noise(), "output_type": "latent"}
    found = pipe(PROMPT, **options)
    assert type(found) is LensPipelineOutput
    (images,) = pipe(PROMPT, **options, return_dict=False)
    assert torch.equal(images, found.images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_type": "pt"}, "output_type 'pt' is not one of pil, np, latent"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt is 0"),
        ({"enable_reasoner": True}, "enable_reasoner"),
        ({"callback_on_step_end_tensor_inputs": ["latents", "noise"]}, "noise is not one of latents, prompt_embeds"),
        ({"height": 100}, "height 100 is not a multiple of 16"),
        ({"width": 8}, "width 8 is not a multiple of 16"),
        ({"height": 0}, "height 0 is not"),
        ({"width": -16}, "width -16 is not"),
        ({"base_resolution": 512, "aspect_ratio": "1:1"}, "base_resolution 512"),
        ({"base_resolution": 1024, "aspect_ratio": "1:3"}, "aspect_ratio '1:3'"),
        ({"prompt": None}, "give prompt or prompt_embeds"),
        ({"prompt": []}, "no prompts were given"),
        ({"max_sequence_length": 0}, "max_sequence_length is 0"),
    ],
)
def test_arguments_are_checked_before_any_work(
    pipe: Any, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    forbid_work(pipe, monkeypatch)
    with pytest.raises(ValueError, match=message):
        draw(pipe, **options)


def test_a_negative_prompt_that_is_none(pipe: Any) -> None:
    mixed = pipe.encode_prompt(["cat", "cat"], [None, "dog"])
    assert torch.equal(mixed[2][0], pipe.encode_prompt(["cat", "cat"], ["", "dog"])[2][0])


@pytest.mark.parametrize(
    ("options", "grid"),
    [
        ({}, (64, 64)),
        ({"height": 512}, (64, 64)),
        ({"width": 512}, (64, 64)),
        ({"height": 64, "width": 96}, (4, 6)),
        ({"height": 64, "width": 96, "base_resolution": 1440}, (4, 6)),
        ({"height": 64, "width": 96, "aspect_ratio": "1:1"}, (4, 6)),
        ({"base_resolution": 1440}, (64, 64)),
        ({"height": 64, "width": 96, "base_resolution": 1024, "aspect_ratio": "16:9"}, (48, 86)),
        ({"height": 100, "base_resolution": 1024, "aspect_ratio": "1:1"}, (64, 64)),
        *(
            ({"base_resolution": base, "aspect_ratio": aspect}, (height // 16, width // 16))
            for aspect, sizes in reference.BUCKETS.items()
            for base, (height, width) in sizes.items()
        ),
    ],
)
def test_sizes_of_images(
    pipe: Any, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], grid: tuple[int, int]
) -> None:
    """Of two sides if both are given, of the table before that, and of 1024 pixels otherwise."""
    seen = seen_at_first_call(pipe, monkeypatch, **options, guidance_scale=1)
    assert [tuple(shape) for shape in seen["img_shapes"]] == [(1, *grid)]
    assert seen["hidden_states"].shape == (1, grid[0] * grid[1], CHANNELS)


def test_callbacks_see_every_step(pipe: Any) -> None:
    seen: list[tuple[int, float]] = []
    shown: list[dict[str, Any]] = []

    def callback(given: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> None:
        assert given is pipe
        assert pipe.num_timesteps == STEPS
        assert pipe.guidance_scale == 4.0
        assert pipe.do_classifier_free_guidance
        assert pipe.current_timestep == timestep
        seen.append((step, float(timestep)))
        shown.append(tensors)

    whole = embeddings(pipe)
    names = ["negative_prompt_embeds", "latents", "prompt_embeds"]
    found = draw(
        pipe, None, **whole, latents=noise(), callback_on_step_end=callback, callback_on_step_end_tensor_inputs=names
    )
    assert [step for step, _ in seen] == list(range(STEPS))
    sigmas = reference.sigmas(24, STEPS)
    assert [timestep for _, timestep in seen] == pytest.approx([1000 * sigma for sigma in sigmas[:-1]], rel=1e-6)
    run = Reference(pipe, *branches(whole), 4.0)
    for step, tensors in enumerate(shown):
        assert list(tensors) == names
        expected = run.latents(noise(), sigmas[: step + 2])
        torch.testing.assert_close(tensors["latents"], expected, **TOLERANCE)
        for name in ("prompt_embeds", "negative_prompt_embeds"):
            assert all(map(torch.equal, tensors[name], whole[name]))
    assert torch.equal(shown[-1]["latents"], found)
    assert pipe.current_timestep is None


def test_latents_are_shown_by_default(pipe: Any) -> None:
    names: list[list[str]] = []
    draw(pipe, callback_on_step_end=lambda _pipe, _step, _timestep, tensors: names.append(list(tensors)))
    assert names == [["latents"]] * STEPS


@pytest.mark.parametrize("scale", [4.0, 1.0])
@pytest.mark.parametrize("name", ["latents", "prompt_embeds", "negative_prompt_embeds"])
def test_what_a_callback_changes_is_used(pipe: Any, name: str, scale: float) -> None:
    """After the first step, from where the reference goes on with the change. At 1, negative ones are None."""
    whole = embeddings(pipe)
    sigmas = reference.sigmas(24, STEPS)
    run = Reference(pipe, *branches(whole), scale)
    changed: Any = noise(seed=9) if name == "latents" else [2 * embed.flip(1) for embed in whole[name]]
    middle = run.latents(noise(), sigmas[:2])
    if name == "latents":
        middle = changed
    elif name == "prompt_embeds":
        run.positive = changed, run.positive[1]
    else:
        run.negative = changed, run.negative[1]
    expected = run.latents(middle, sigmas[1:])

    def callback(_pipe: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        assert list(tensors) == [name]
        if name == "negative_prompt_embeds" and scale == 1 and step == 0:
            assert tensors[name] is None
        return {name: changed} if step == 0 else {}

    options = {**whole, "latents": noise(), "guidance_scale": scale}
    found = draw(pipe, None, **options, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=[name])
    torch.testing.assert_close(found, expected, **TOLERANCE)
    if name != "negative_prompt_embeds" or scale != 1:
        assert (found - draw(pipe, None, **options)).abs().max() > 0.1


def test_a_callback_can_switch_guidance_off(pipe: Any) -> None:
    """As diffusers' users do from some step on, to save time."""
    positive = reference_features(pipe, [PROMPT])
    sigmas = reference.sigmas(24, STEPS)
    middle = Reference(pipe, positive, reference_blank(1), 4.0).latents(noise(), sigmas[:2])
    expected = Reference(pipe, positive, reference_blank(1), 1.0).latents(middle, sigmas[1:])

    def callback(running: Any, *_: Any) -> dict[str, Any]:
        running._guidance_scale = 1.0
        return {}

    with calls_of(pipe.transformer) as calls:
        found = draw(pipe, latents=noise(), callback_on_step_end=callback)
    torch.testing.assert_close(found, expected, **TOLERANCE)
    assert [len(arguments["hidden_states"]) for arguments in calls] == [2, 1, 1]


def test_a_callback_can_stop_the_run(pipe: Any) -> None:
    sigmas = reference.sigmas(24, STEPS)
    steps: list[int] = []

    def callback(running: Any, step: int, *_: Any) -> None:
        steps.append(step)
        running._interrupt = step == 1
        assert running.interrupt is (step == 1)

    found = draw(pipe, latents=noise(), callback_on_step_end=callback)
    assert steps == [0, 1]
    run = Reference(pipe, reference_features(pipe, [PROMPT]), reference_blank(1), 4.0)
    torch.testing.assert_close(found, run.latents(noise(), sigmas[:3]), **TOLERANCE)
    # The next run knows nothing of it.
    torch.testing.assert_close(draw(pipe, latents=noise()), run.latents(noise()), **TOLERANCE)
