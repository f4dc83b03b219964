"""Runs of the pipeline, compared with runs of the plain reference; its arguments, results and callbacks."""

from __future__ import annotations

import copy
import io
import re
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from converter.lens import LensGptOssEncoder, LensPipelineOutput
from tests.cases import check_cases
from tests.faults import raising
from tests.lens import pipelines, reference
from tests.lens.models import calls_of
from tests.lens.pipelines import OTHER_PROMPT, PROMPT, STEPS, TOLERANCE, Reference, branches, draw, embeddings, noise
from tests.lens.prompts import PREFIX, stop_the_clock

#: Negative prompts for two prompts, and how each of them is spelled if it is encoded.
NEGATIVES: dict[str, tuple[Any, list[str] | None]] = {
    "blank": ("", None),
    "spaces": (" \n", None),
    "none": (None, None),
    "blanks": (["", " "], None),
    "one": ("blurry", ["blurry", "blurry"]),
    "list of one": (["blurry"], ["blurry", "blurry"]),
    "mixed": ([None, "a dog, in the rain"], ["", "a dog, in the rain"]),
}


@pytest.mark.parametrize(
    ("kind", "scale", "images"),
    [
        *((kind, 4.0, 1) for kind in NEGATIVES),
        *((kind, scale, 1) for kind in ("blank", "one", "mixed") for scale in (1.0, 0.5, 0.0)),
        ("one", 4.0, 2),
        ("mixed", 4.0, 2),
    ],
)
def test_a_run_is_the_references(pipe: Any, kind: str, scale: float, images: int) -> None:
    """Prompts of different lengths; all negatives except blank ones go through the template.

    The reference encodes each alone. Images of one prompt stand next to each other.
    """
    prompts = [PROMPT, OTHER_PROMPT]
    negatives, spelled = NEGATIVES[kind]
    positive, negative = (
        pipelines.reference_features(pipe, np.repeat(texts, images).tolist()) if texts else pipelines.reference_blank(2)
        for texts in (prompts, spelled)
    )
    options = {"negative_prompt": negatives, "guidance_scale": scale, "num_images_per_prompt": images}
    found = draw(pipe, prompts, **options, latents=noise(2 * images))
    expected = Reference(pipe, positive, negative, scale).latents(noise(2 * images))
    torch.testing.assert_close(found, expected, **TOLERANCE)


def test_the_encoder_and_the_transformer_run_no_more_than_they_must(pipe: Any) -> None:
    """One call a step, with the lengths of texts where they differ, and never with a mask."""
    pair = {"prompt": [PROMPT, OTHER_PROMPT], "latents": noise(2)}
    for options, encoded, batch, lengths in (
        (pair, [2], 4, [49, 25, 0, 0]),
        ({**pair, "negative_prompt": "dog"}, [2, 1], 4, [49, 25, 25, 25]),
        ({**pair, "guidance_scale": 1}, [2], 2, [49, 25]),
        ({"latents": noise(), "negative_prompt": "dog", "guidance_scale": 1}, [1], 1, None),
        ({"latents": noise(), "negative_prompt": PROMPT}, [1, 1], 2, None),
        ({"latents": noise()}, [1], 2, [49, 0]),
    ):
        with calls_of(pipe.text_encoder) as texts, calls_of(pipe.transformer) as steps:
            draw(pipe, **options)
        assert [len(arguments["input_ids"]) for arguments in texts] == encoded
        shapes = [(len(call["hidden_states"]), call.get("text_lengths")) for call in steps]
        assert shapes == [(batch, lengths)] * STEPS, options
        assert not any("encoder_hidden_states_mask" in call for call in steps)


@pytest.mark.parametrize("maximum", [1, PREFIX])
def test_only_the_image_is_left_where_97_tokens_are_allowed(pipe: Any, maximum: int) -> None:
    expected = Reference(pipe, pipelines.reference_blank(1), pipelines.reference_blank(1), 1.0).latents(noise())
    found = draw(pipe, max_sequence_length=maximum, negative_prompt="dog", latents=noise())
    torch.testing.assert_close(found, expected, **TOLERANCE)


def test_long_prompts_are_cut_at_512_tokens(pipe: Any) -> None:
    embeds, mask, _, negative_mask = pipe.encode_prompt("x" * 600, "short")
    assert ([embed.shape for embed in embeds], mask.tolist()) == ([(1, 415, 64)] * 4, [[True] * 415])
    # The negative prompt is padded to the same length.
    assert negative_mask.tolist() == [[True] * 27 + [False] * 388]
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
    """Or a seed would not mean what it means upstream. Generators of a list draw an image each."""
    prompts, generators = [PROMPT, OTHER_PROMPT], [torch.Generator(), torch.Generator()]
    for images, generator, latents in (
        (prompts, torch.Generator().manual_seed(11), noise(2, seed=11)),
        (prompts, generators, torch.cat((noise(seed=3), noise(seed=4)))),
        (prompts[:1], generators[:1], noise(seed=3)),
        (prompts[:1], generators[1], noise(seed=4)),
    ):
        for seed, one in enumerate(generators, 3):
            one.manual_seed(seed)
        given = latents.clone()
        assert torch.equal(draw(pipe, images, generator=generator), draw(pipe, images, latents=given))
        assert torch.equal(given, latents)


def test_bfloat16_is_near_float32(folder: Path, pipe: Any) -> None:
    """Within 4 % of the length of the latents, from the same features and noise.

    As upstream, it divides a timestep by 1000 after rounding it. The reference in float32 is told the sigmas that come
    of that; the tiny transformer takes their rounding for another time, and is then 10 % off.
    """
    half, whole = pipelines.load(folder, dtype=torch.bfloat16), embeddings(pipe)
    exact = reference.sigmas(24, STEPS)[:-1]
    rounded = [float(torch.tensor(1000 * sigma).bfloat16() / 1000) for sigma in exact]
    assert rounded != torch.tensor(exact).bfloat16().tolist()

    class Rounded(Reference):
        def branch(self, latents: torch.Tensor, sigma: float, texts: pipelines.Branch) -> torch.Tensor:
            return super().branch(latents, rounded[exact.index(sigma)], texts)

    for scale in (1.0, 4.0):
        with calls_of(half.transformer) as seen:
            found = draw(half, None, **whole, latents=noise(), guidance_scale=scale)
        assert {tensor.dtype for call in seen for tensor in (call["hidden_states"], call["timestep"], found)} == {
            half.dtype
        }
        assert [call["timestep"].unique().tolist() for call in seen] == [[sigma] for sigma in rounded]
        expected = Rounded(pipe, *branches(whole), scale).latents(noise())
        assert (found.float() - expected).norm() / expected.norm() < 0.04


def test_features_take_the_dtype_of_the_transformer(folder: Path, pipe: Any) -> None:
    """Encoders are in bfloat16 as a rule, whatever the transformer is in."""
    encoder = LensGptOssEncoder.from_pretrained(folder / "text_encoder", dtype=torch.bfloat16)
    mixed = pipelines.load(folder, text_encoder=encoder, vae=copy.deepcopy(pipe.vae).to(torch.bfloat16))
    found = mixed.encode_prompt(PROMPT)[0]
    expected, _ = pipelines.reference_features(mixed, [PROMPT])
    # And embeddings that are given.
    given = pipe.encode_prompt(prompt_embeds=expected, prompt_mask=torch.ones(expected[0].shape[:2]))[0]
    for ours, theirs, passed in zip(found, expected, given, strict=True):
        assert theirs.dtype == torch.bfloat16
        assert torch.equal(ours, theirs.float())
        assert torch.equal(passed, theirs.float())
    latents = draw(mixed, latents=noise())
    assert latents.dtype == torch.float32
    # So is the decoder, perhaps.
    images = [draw(model, latents=noise(), output_type="np") for model in (mixed, pipe)]
    assert np.abs(images[0] - images[1]).mean() < 0.05
    embeds, mask, *_ = pipe.encode_prompt(**embeddings(pipe), device=torch.device("meta"))
    assert all(tensor.is_meta for tensor in (*embeds, mask))


def test_embeddings_stand_for_their_prompts(pipe: Any) -> None:
    """Alone or beside prompts, over which they win, and of any length; they are not repeated."""
    whole = embeddings(pipe)
    positive = {name: value for name, value in whole.items() if name.startswith("prompt")}
    negative = {name: value for name, value in whole.items() if name.startswith("negative")}
    # The three letters and what stands behind them, without the padding.
    embeds, mask = whole["negative_prompt_embeds"], whole["negative_prompt_mask"]
    assert mask.sum() == 25
    short = {"negative_prompt_embeds": [embed[:, :25] for embed in embeds], "negative_prompt_mask": mask[:, :25]}
    # Of int64, as tokenizers make masks.
    numbers = {**whole, "prompt_mask": whole["prompt_mask"].long()}
    assert {mask.dtype for mask in pipe.encode_prompt(**numbers)[1::2]} == {torch.bool}
    expected = draw(pipe, negative_prompt="dog", latents=noise())
    for options in (
        *(whole, numbers, {**whole, "prompt": OTHER_PROMPT, "negative_prompt": "cat"}),
        *({**positive, "negative_prompt": "dog"}, {**negative, "prompt": PROMPT}, {**short, "prompt": PROMPT}),
        {**whole, "num_images_per_prompt": 2},
    ):
        found = draw(pipe, **{"prompt": None, "latents": noise(), **options})
        torch.testing.assert_close(found, expected, **TOLERANCE)
    blank = draw(pipe, None, **positive, latents=noise())
    torch.testing.assert_close(blank, draw(pipe, latents=noise()), **TOLERANCE)
    pair = embeddings(pipe, [PROMPT, OTHER_PROMPT], ["dog", "cat"])
    assert len(draw(pipe, None, **pair, num_images_per_prompt=3, latents=noise(2))) == 2


def test_images_come_as_they_are_asked_for(pipe: Any) -> None:
    prompts, latents = [PROMPT, OTHER_PROMPT], noise(2)
    run = Reference(pipe, pipelines.reference_features(pipe, prompts), pipelines.reference_blank(2), 4.0)
    pixels = run.pixels(draw(pipe, prompts, latents=latents))
    images = draw(pipe, prompts, latents=latents, output_type="pil")
    assert [(type(image), image.mode, image.size) for image in images] == [(PIL.Image.Image, "RGB", (96, 64))] * 2
    assert np.array_equal(np.stack(images), reference.to_uint8(pixels).numpy())
    numbers = draw(pipe, prompts, latents=latents, output_type="np")
    assert (numbers.dtype, numbers.shape) == (np.float32, (2, 64, 96, 3))
    expected = ((pixels.clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(numbers, expected, atol=1e-6)
    assert (numbers.min(), numbers.max()) == (0, 1)


def test_results_come_as_an_object_or_a_tuple(pipe: Any) -> None:
    """Of PIL images, if nothing else is asked for."""
    options = {**pipelines.SIZE, "num_inference_steps": 1, "latents": noise()}
    found = pipe(PROMPT, **options)
    assert [type(found), *map(type, found.images)] == [LensPipelineOutput, PIL.Image.Image]
    assert pipe(PROMPT, **options, return_dict=False) == (found.images,)


NAMES = "callback_on_step_end_tensor_inputs"


def test_arguments_are_checked_before_any_work_or_make_a_size(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two sides if both are given, of the table before that, and of 1024 pixels otherwise."""

    def outcome(options: dict[str, Any]) -> Any:
        with calls_of(pipe.text_encoder) as texts, monkeypatch.context() as patches:
            try:
                seen = pipelines.seen_at_first_call(pipe, patches, **options, guidance_scale=1)
            except ValueError as error:
                assert texts == []
                return str(error)
        ((_, height, width),) = seen["img_shapes"]
        assert seen["hidden_states"].shape == (1, height * width, pipelines.CHANNELS)
        return seen["img_shapes"]

    check_cases("image_arguments.jsonl", outcome)


EMBEDS, MASK = [torch.zeros(1, 30, 64)] * 4, torch.ones(1, 30)


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (2, {"negative_prompt": ["a", "b", "c"]}, "3 negative prompts for 2 prompts; give one, or one for each"),
        (1, {"negative_prompt": ["a", "b"]}, "2 negative prompts for 1 prompts; give one, or one for each"),
        (3, {"negative_prompt": ["", ""]}, "2 negative prompts for 3 prompts; give one, or one for each"),
        (1, {"negative_prompt": []}, "0 negative prompts for 1 prompts; give one, or one for each"),
        (1, {"prompt_embeds": EMBEDS}, "prompt_embeds need a prompt_mask"),
        (1, {"negative_prompt_embeds": EMBEDS}, "negative_prompt_embeds need a negative_prompt_mask"),
        (
            2,
            {"negative_prompt_embeds": EMBEDS, "negative_prompt_mask": MASK},
            "the negative prompts are for 1 images, the prompts for 2",
        ),
        (1, {"latents": torch.zeros(1, 32, 8, 12)}, "latents have shape [1, 32, 8, 12], not [1, 24, 128]"),
        (2, {"latents": noise()}, "latents have shape [1, 24, 128], not [2, 24, 128]"),
        (1, {"generator": [torch.Generator()] * 2}, "2 generators for 1 images; give one, or one for each"),
        (2, {"generator": [torch.Generator()]}, "1 generators for 2 images; give one, or one for each"),
    ],
)
def test_arguments_that_do_not_fit_each_other(pipe: Any, images: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        draw(pipe, [PROMPT] * images, **options)


def test_callbacks_see_every_step(pipe: Any) -> None:
    """And so does whoever looks at the progress bar."""
    seen: list[Any] = []
    shown: list[dict[str, Any]] = []

    def callback(given: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> None:
        assert (given, pipe.current_timestep, pipe.scheduler.begin_index) == (pipe, timestep, 0)
        assert (pipe.num_timesteps, pipe.guidance_scale, pipe.do_classifier_free_guidance) == (STEPS, 4.0, True)
        seen.append((step, float(timestep)))
        shown.append(tensors)

    whole, bar = embeddings(pipe), io.StringIO()
    names = ["negative_prompt_embeds", "latents", "prompt_embeds"]
    pipe.set_progress_bar_config(file=bar, mininterval=0)
    found = draw(pipe, None, **whole, latents=noise(), callback_on_step_end=callback, **{NAMES: names})
    pipe.set_progress_bar_config(disable=True)
    assert set(re.findall(r"\d+/\d+", bar.getvalue())) == {f"{step}/{STEPS}" for step in range(STEPS + 1)}
    sigmas = reference.sigmas(24, STEPS)
    assert seen == [(step, pytest.approx(1000 * sigma, rel=1e-6)) for step, sigma in enumerate(sigmas[:-1])]
    run = Reference(pipe, *branches(whole), 4.0)
    for step, tensors in enumerate(shown):
        assert list(tensors) == names
        torch.testing.assert_close(tensors["latents"], run.latents(noise(), sigmas[: step + 2]), **TOLERANCE)
        for name in ("prompt_embeds", "negative_prompt_embeds"):
            assert all(map(torch.equal, tensors[name], whole[name]))
    assert torch.equal(shown[-1]["latents"], found)
    assert pipe.current_timestep is None


def test_a_run_that_fails_leaves_no_timestep_to_the_next(pipe: Any) -> None:
    with pytest.raises(InterruptedError):
        draw(pipe, callback_on_step_end=raising(InterruptedError()))
    assert pipe.current_timestep == 1000
    with pytest.raises(ValueError, match="no prompts"):
        draw(pipe, [])
    assert pipe.current_timestep is None


@pytest.mark.parametrize("scale", [4.0, 1.0])
@pytest.mark.parametrize(
    "name", ["latents", "prompt_embeds", "negative_prompt_embeds", "_guidance_scale", "_interrupt"]
)
def test_what_a_callback_changes_is_used(pipe: Any, name: str, scale: float) -> None:
    """After the first step, from where the reference goes on with the change, and in this run only.

    At a scale of 1, negative embeddings are None. diffusers' users switch guidance off from some step on, to save time.
    """
    whole, sigmas = embeddings(pipe), reference.sigmas(24, STEPS)
    run = Reference(pipe, *branches(whole), scale)
    middle = run.latents(noise(), sigmas[:2])
    batch = following = 1 if scale == 1 else 2
    changed: Any = {"latents": noise(seed=9), "_guidance_scale": 1.0, "_interrupt": True}.get(name)
    if name == "latents":
        middle = changed
    elif name == "prompt_embeds":
        changed = [2 * embed.flip(1) for embed in whole[name]]
        run.positive = changed, run.positive[1]
    elif name == "negative_prompt_embeds":
        changed = [2 * embed.flip(1) for embed in whole[name]]
        run.negative = changed, run.negative[1]
    elif name == "_guidance_scale":
        run.scale, following = 1.0, 1
    stops = name == "_interrupt"
    expected = middle if stops else run.latents(middle, sigmas[1:])
    is_tensor = not name.startswith("_")

    def callback(running: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any] | None:
        # Latents are shown where nothing is named.
        assert list(tensors) == [name if is_tensor else "latents"]
        if step > 0:
            return {}
        if is_tensor:
            assert (tensors[name] is None) == (name == "negative_prompt_embeds" and scale == 1)
            return {name: changed}
        setattr(running, name, changed)
        assert running.interrupt is stops
        return None

    options = {**whole, "latents": noise(), "guidance_scale": scale}
    unchanged = draw(pipe, None, **options)
    named = {NAMES: [name]} if is_tensor else {}
    with calls_of(pipe.transformer) as calls:
        found = draw(pipe, None, **options, callback_on_step_end=callback, **named)
    torch.testing.assert_close(found, expected, **TOLERANCE)
    assert [len(arguments["hidden_states"]) for arguments in calls] == [batch] + [following] * (0 if stops else 2)
    assert torch.equal(draw(pipe, None, **options), unchanged)
