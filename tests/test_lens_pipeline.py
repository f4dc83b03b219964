"""The pipeline, held against a second one that is made of the plain reference, and its arithmetic alone."""

from __future__ import annotations

import importlib
import inspect
import json
import shutil
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.torch import load_file, save_file
from torch.nn.utils.rnn import pad_sequence

from converter import convert
from converter.lens import LensGptOssEncoder, LensPipeline, LensPipelineOutput, LensTransformer2DModel
from converter.models.lens.resolutions import ASPECT_RATIOS, RESOLUTIONS, resolution
from converter.models.lens.sampling import (
    denormalize,
    guide,
    noise_schedule,
    to_uint8,
    to_unit_range,
    unpack_latents,
    unpatchify,
)
from tests import lens_reference as reference
from tests.conftest import names_in
from tests.test_lens_prompts import LAYERS, MXFP4, PREFIX, conversation, notices, pack_experts, stop_the_clock

DAY = date(2026, 5, 23)
#: Tokens down and across; the sides differ, so that exchanging them shows.
GRID = (4, 6)
SIZE = {"height": 64, "width": 96}
STEPS = 3
CHANNELS = 128
PROMPT, OTHER_PROMPT = "a red cube on a wooden table", "sea"
#: How far float32 may stray over a whole run: sums are taken in another order. Latents have a spread of about one, and
#: another negative prompt, seed or scale moves them by more than 0.1.
TOLERANCE = {"rtol": 0.0, "atol": 2e-4}

#: Height, width, and tokens down and across, by base resolution and aspect; copied from the facts.
BUCKETS: dict[tuple[int, str], tuple[int, int, int, int]] = {
    (1024, "1:2"): (1472, 736, 92, 46),
    (1024, "9:16"): (1376, 768, 86, 48),
    (1024, "2:3"): (1248, 832, 78, 52),
    (1024, "3:4"): (1152, 864, 72, 54),
    (1024, "1:1"): (1024, 1024, 64, 64),
    (1024, "4:3"): (864, 1152, 54, 72),
    (1024, "3:2"): (832, 1248, 52, 78),
    (1024, "16:9"): (768, 1376, 48, 86),
    (1024, "2:1"): (736, 1472, 46, 92),
    (1440, "1:2"): (2080, 1040, 130, 65),
    (1440, "9:16"): (1936, 1088, 121, 68),
    (1440, "2:3"): (1760, 1168, 110, 73),
    (1440, "3:4"): (1616, 1216, 101, 76),
    (1440, "1:1"): (1440, 1440, 90, 90),
    (1440, "4:3"): (1216, 1616, 76, 101),
    (1440, "3:2"): (1168, 1760, 73, 110),
    (1440, "16:9"): (1088, 1936, 68, 121),
    (1440, "2:1"): (1040, 2080, 65, 130),
}
#: mu by tokens and steps, and the first and last sigmas; copied from the facts.
SCHEDULES: list[tuple[int, int, float, list[float], list[float]]] = [
    (1024, 4, 2.03069, [1, 0.95809, 0.88398, 0.7175, 0], []),
    (4096, 4, 2.29118, [1, 0.96738, 0.90814, 0.7672, 0], []),
    (4096, 20, 2.198022, [1, 0.99419, 0.98781, 0.98078], [0.5002, 0.3216, 0]),
    (4096, 50, 2.023351, [1], [0]),
    (4232, 20, 2.210492, [1], [0]),
    (8100, 4, 1.827754, [1, 0.94913, 0.86149, 0.67462, 0], []),
    (8100, 20, 1.827754, [1, 0.99161, 0.98245, 0.97241], [0.40867, 0.24663, 0]),
    (8228, 4, 1.84942, [1], [0]),
    (8228, 50, 1.84942, [1], [0]),
]
#: ``model_index.json`` of microsoft/Lens, without its version of diffusers.
MODEL_INDEX: dict[str, Any] = {
    "_class_name": "LensPipeline",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "LensGptOssEncoder"],
    "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    "transformer": ["diffusers", "LensTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKLFlux2"],
}
#: Arguments and defaults of upstream's ``__call__``, in their order.
ARGUMENTS: dict[str, Any] = {
    "negative_prompt": "",
    "height": None,
    "width": None,
    "base_resolution": None,
    "aspect_ratio": None,
    "num_inference_steps": 50,
    "guidance_scale": 4.0,
    "num_images_per_prompt": 1,
    "generator": None,
    "latents": None,
    "prompt_embeds": None,
    "prompt_mask": None,
    "negative_prompt_embeds": None,
    "negative_prompt_mask": None,
    "output_type": "pil",
    "return_dict": True,
    "callback_on_step_end": None,
    "callback_on_step_end_tensor_inputs": ["latents"],
    "max_sequence_length": 512,
    "enable_reasoner": False,
}


@pytest.fixture(scope="module")
def folder(tiny_repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline in float32."""
    folder = tmp_path_factory.mktemp("pipeline") / "tiny"
    shutil.copytree(tiny_repo, folder)
    # The statistics that are drawn are nearly those of no norm at all, and leaving it out would hardly show.
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    generator = torch.Generator().manual_seed(5)
    state["bn.running_mean"] = torch.randn(CHANNELS, generator=generator)
    state["bn.running_var"] = 0.05 + 2 * torch.rand(CHANNELS, generator=generator)
    save_file(state, weights, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def quantized_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What lensconv makes of it."""
    output = tmp_path_factory.mktemp("pipeline") / "quantized"
    convert(folder, output)
    return output


def load(folder: Path, **options: Any) -> Any:
    """A pipeline of its own, in float32 if nothing else is asked for."""
    return quiet(LensPipeline.from_pretrained(folder, **({"dtype": torch.float32} | options)))


def quiet(pipe: Any) -> Any:
    """Without a progress bar, and on a day that does not change."""
    pipe.set_progress_bar_config(disable=True)
    pipe.prompt_date = DAY
    return pipe


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Any:
    """For tests that leave it as it is."""
    return load(folder)


def noise(images: int = 1, seed: int = 1) -> torch.Tensor:
    """Latents to start from, ``[images, tokens, channels]``."""
    return torch.randn(images, GRID[0] * GRID[1], CHANNELS, generator=torch.Generator().manual_seed(seed))


def draw(pipe: Any, prompt: Any = PROMPT, **options: Any) -> Any:
    """The images of a short run on a small canvas; latents unless something else is asked for."""
    defaults = {"num_inference_steps": STEPS, "output_type": "latent", **SIZE}
    return pipe(prompt, **(defaults | options)).images


def same_seed() -> dict[str, torch.Generator]:
    return {"generator": torch.Generator().manual_seed(11)}


def picture(pipe: Any, **options: Any) -> bytes:
    """The bytes of the pixels of one image."""
    (image,) = draw(pipe, negative_prompt="dog", output_type="pil", **(same_seed() | options))
    assert image.size == (SIZE["width"], SIZE["height"])
    return bytes(image.tobytes())


Branch = tuple[list[torch.Tensor], torch.Tensor | None]


def reference_features(pipe: Any, prompts: Sequence[str]) -> Branch:
    """Features and mask; each prompt goes alone through the layers of the encoder, and is padded afterwards."""
    by_prompt = []
    for prompt in prompts:
        ids = torch.tensor([pipe.tokenizer.encode(conversation(prompt, DAY))])
        residuals = reference.gpt_oss_residuals(pipe.text_encoder, ids, torch.ones_like(ids), LAYERS)
        by_prompt.append([residual[0, PREFIX:] for residual in residuals])
    embeds = [pad_sequence(list(layer), batch_first=True) for layer in zip(*by_prompt, strict=True)]
    mask = pad_sequence([torch.ones(len(layers[0]), dtype=torch.bool) for layers in by_prompt], batch_first=True)
    return embeds, mask


def reference_blank(images: int) -> Branch:
    """The image alone: no text tokens at all."""
    return [torch.zeros(images, 0, 64)] * len(LAYERS), None


class Reference:
    """A run of the pipeline's models by the plain reference.

    Args:
        pipe: whose weights are used, in float32.
        positive: features of the prompts.
        negative: features of the negative prompts.
        scale: of the guidance.
        state: weights of the transformer, if others than the pipeline's.
    """

    def __init__(
        self,
        pipe: Any,
        positive: Branch,
        negative: Branch,
        scale: float,
        state: reference.State | None = None,
    ) -> None:
        self.pipe = pipe
        self.positive, self.negative, self.scale = positive, negative, scale
        self.state = state or pipe.transformer.state_dict()

    def branch(self, latents: torch.Tensor, sigma: float, texts: Branch) -> torch.Tensor:
        timestep = torch.full((len(latents),), sigma)
        config = self.pipe.transformer.config
        return reference.transformer_forward(self.state, config, latents, *texts, timestep, GRID)

    def velocity(self, latents: torch.Tensor, sigma: float) -> torch.Tensor:
        conditional = self.branch(latents, sigma, self.positive)
        return reference.guided(conditional, self.branch(latents, sigma, self.negative), self.scale)

    def latents(self, start: torch.Tensor, sigmas: Sequence[float] | None = None) -> torch.Tensor:
        with torch.no_grad():
            return reference.sample(self.velocity, start, sigmas or reference.sigmas(GRID[0] * GRID[1], STEPS))

    def pixels(self, latents: torch.Tensor) -> torch.Tensor:
        """In -1 to 1, and beyond."""
        vae = self.pipe.vae
        statistics = vae.bn.running_mean, vae.bn.running_var
        with torch.no_grad():
            decoded: torch.Tensor = vae.decode(reference.decode_latents(latents, *GRID, *statistics, 1e-4)).sample
        return decoded


def seen_at_first_call(pipe: Any, **options: Any) -> dict[str, Any]:
    """What the transformer is called with first; the run ends there, so that large images cost nothing."""

    class Seen(Exception):
        pass

    def stop(_module: Any, _positional: Any, arguments: dict[str, Any]) -> NoReturn:
        raise Seen(arguments)

    handle = pipe.transformer.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with pytest.raises(Seen) as caught:
            pipe(PROMPT, **options)
    finally:
        handle.remove()
    arguments: dict[str, Any] = caught.value.args[0]
    return arguments


def forbid_work(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test when a model of the pipeline runs."""

    def fail(*_: Any, **__: Any) -> NoReturn:
        pytest.fail("a model runs")

    for model in (pipe.text_encoder, pipe.transformer, pipe.vae):
        monkeypatch.setattr(model, "forward", fail)
    monkeypatch.setattr(pipe.vae, "decode", fail)


# The table of sizes.


def test_sizes_are_those_of_the_facts() -> None:
    assert {(base, aspect): size for base, sizes in RESOLUTIONS.items() for aspect, size in sizes.items()} == {
        key: bucket[:2] for key, bucket in BUCKETS.items()
    }
    for aspect, sizes in reference.BUCKETS.items():
        for base, size in sizes.items():
            assert resolution(base, aspect) == size
    assert tuple(ASPECT_RATIOS) == tuple(reference.BUCKETS)


def test_sizes_that_the_table_lacks() -> None:
    with pytest.raises(ValueError, match="base_resolution 512 is not one of 1024, 1440"):
        resolution(512, "1:1")
    with pytest.raises(ValueError, match=r"aspect_ratio '5:4' is not one of 1:2, .*2:1"):
        resolution(1024, "5:4")


# Noise levels.


def scheduled(scheduler: Any, tokens: int, steps: int) -> torch.Tensor:
    sigmas, mu = noise_schedule(tokens, steps)
    scheduler.set_timesteps(sigmas=sigmas, mu=mu)
    torch.testing.assert_close(scheduler.timesteps, 1000 * scheduler.sigmas[:-1])
    levels: torch.Tensor = scheduler.sigmas
    return levels


@pytest.fixture(scope="module")
def scheduler(folder: Path) -> Any:
    return FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")


@pytest.mark.parametrize(("tokens", "steps", "mu", "first", "last"), SCHEDULES)
def test_noise_levels_of_the_facts(
    scheduler: Any, tokens: int, steps: int, mu: float, first: list[float], last: list[float]
) -> None:
    assert noise_schedule(tokens, steps)[1] == pytest.approx(mu, abs=1e-6)
    levels = scheduled(scheduler, tokens, steps).tolist()
    assert len(levels) == steps + 1
    assert levels[: len(first)] == pytest.approx(first, abs=1e-5)
    # The facts give the last ones to four or five places.
    assert levels[len(levels) - len(last) :] == pytest.approx(last, abs=5e-5)


@given(tokens=st.integers(1, 9000) | st.integers(4290, 4310), steps=st.integers(1, 100))
def test_noise_levels_are_the_references(scheduler: Any, tokens: int, steps: int) -> None:
    """On both sides of 4300 tokens, from which on the number of steps does not count."""
    assert noise_schedule(tokens, steps)[1] == pytest.approx(reference.mu(tokens, steps), rel=1e-12)
    assert scheduled(scheduler, tokens, steps).tolist() == pytest.approx(reference.sigmas(tokens, steps), abs=1e-6)


# Guidance.


def velocities(values: st.SearchStrategy[float]) -> st.SearchStrategy[Any]:
    return arrays.arrays(np.float32, (2, 3, 4), elements=values)


NUMBERS = st.just(0.0) | st.floats(-100, 100, width=32)


@given(
    conditional=velocities(NUMBERS),
    unconditional=velocities(NUMBERS),
    scale=st.sampled_from([0.0, 0.5, 1.0, 4.0, 5.0, -1.0]),
)
def test_guidance_is_the_references(conditional: np.ndarray, unconditional: np.ndarray, scale: float) -> None:
    pair = torch.from_numpy(conditional), torch.from_numpy(unconditional)
    found = guide(*pair, scale)
    torch.testing.assert_close(found, reference.guided(*pair, scale), rtol=1e-6, atol=0)
    assert found.isfinite().all()


def test_guidance_keeps_the_length_of_the_conditional_velocity() -> None:
    conditional, unconditional = noise(2, seed=3), 7 * noise(2, seed=4)
    found = guide(conditional, unconditional, 4.0)
    torch.testing.assert_close(found.norm(dim=-1), conditional.norm(dim=-1))
    expected = unconditional + 4 * (conditional - unconditional)
    cosine = torch.nn.functional.cosine_similarity(found, expected, dim=-1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine))
    # Token by token: the length of one is not that of another.
    assert conditional.norm(dim=-1).std() > 0.1


def test_guidance_at_one_leaves_the_conditional_velocity() -> None:
    conditional, unconditional = noise(seed=3), noise(seed=4)
    torch.testing.assert_close(guide(conditional, unconditional, 1.0), conditional, rtol=1e-5, atol=1e-6)


def test_guidance_of_nothing() -> None:
    zero, other = torch.zeros(1, 2, 4), torch.ones(1, 2, 4)
    for conditional, unconditional, scale in ((zero, zero, 4.0), (zero, other, 4.0), (other, zero, 0.0)):
        assert torch.equal(guide(conditional, unconditional, scale), zero)
    # 2 * other - other * 2 cancels out, and a length of zero is not stretched to that of the conditional one.
    assert torch.equal(guide(other, 2 * other, 2.0), zero)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_guidance_computes_in_its_own_dtype(dtype: torch.dtype) -> None:
    conditional, unconditional = noise(seed=3).to(dtype), noise(seed=4).to(dtype)
    found = guide(conditional, unconditional, 4.0)
    assert found.dtype == dtype
    expected = reference.guided(conditional, unconditional, 4.0)
    torch.testing.assert_close(found, expected, rtol=2 * torch.finfo(dtype).eps, atol=0)


# From latents to pixels.


@settings(max_examples=30)
@given(batch=st.integers(1, 2), channels=st.integers(1, 3), height=st.integers(1, 4), width=st.integers(1, 4))
def test_packing_and_unpacking_are_inverse(batch: int, channels: int, height: int, width: int) -> None:
    pixels = torch.arange(batch * channels * 4 * height * width).reshape(batch, channels, 2 * height, 2 * width)
    # Channels, rows of a patch and columns of a patch make a token.
    packed = pixels.unflatten(-1, (-1, 2)).unflatten(2, (-1, 2)).permute(0, 2, 4, 1, 3, 5).flatten(3, 5).flatten(1, 2)
    assert packed.shape == (batch, height * width, channels * 4)
    patches = unpack_latents(packed, height, width)
    assert patches.shape == (batch, channels * 4, height, width)
    assert torch.equal(unpatchify(patches), pixels)
    for image, channel, row, column in np.ndindex(*pixels.shape):
        # Tokens lie row by row; a token holds its channels, of each two rows, of each two columns.
        token = (row // 2) * width + column // 2
        place = channel * 4 + (row % 2) * 2 + column % 2
        assert packed[image, token, place] == pixels[image, channel, row, column]
        assert patches[image, place, row // 2, column // 2] == pixels[image, channel, row, column]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_latents_are_denormalized_and_then_unpatched(dtype: torch.dtype) -> None:
    mean, variance = noise(seed=5)[0, 0].to(dtype), noise(seed=6)[0, 0].square().to(dtype)
    variance[0] = 0
    found = unpatchify(denormalize(unpack_latents(noise(2), *GRID).to(dtype), mean, variance, 1e-4))
    assert found.dtype == dtype
    assert found.shape == (2, 32, 8, 12)
    expected = reference.decode_latents(noise(2), *GRID, mean, variance, 1e-4)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_levels_are_cut_not_rounded(dtype: torch.dtype) -> None:
    values = torch.cat([torch.linspace(-1.5, 1.5, 3001), torch.tensor([-1.0, 0.0, 1.0])]).to(dtype)
    image = torch.stack([values, values.flip(0), values * 0.3]).reshape(1, 3, 4, -1)
    found = to_uint8(image)
    assert found.dtype == np.uint8
    assert found.shape == (1, 4, 751, 3)
    assert np.array_equal(found, reference.to_uint8(image).numpy())
    if dtype == torch.float32:
        # 127.5 and 254.9 would be rounded up.
        levels = torch.tensor([0.0, 127.4 / 127.5, 1.0, -1.0]).reshape(1, 1, 1, 4).expand(1, 3, 1, 4)
        assert to_uint8(levels)[0, 0, :, 0].tolist() == [127, 254, 255, 0]


def test_unit_range_is_clamped() -> None:
    pixels = torch.tensor([-3.0, -1.0, -0.5, 0.0, 1.0, 2.0])
    assert to_unit_range(pixels).tolist() == [0.0, 0.0, 0.25, 0.5, 1.0, 1.0]


# Whole runs.


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
    """Two prompts of different lengths; all negatives but wholly blank ones go through the template."""
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


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_scales_below_one_are_guidance_too(pipe: Any, scale: float) -> None:
    drawn = [draw(pipe, latents=noise(), negative_prompt=text, guidance_scale=scale) for text in ("cat", "dog")]
    assert not torch.allclose(*drawn, **TOLERANCE)


def test_the_encoder_and_the_transformer_run_no_more_than_they_must(pipe: Any) -> None:
    runs: list[tuple[str, int]] = []

    def note(name: str) -> Callable[..., None]:
        return lambda _module, _positional, arguments: runs.append((name, len(next(iter(arguments.values())))))

    handles = [
        model.register_forward_pre_hook(note(name), with_kwargs=True)
        for name, model in (("encoder", pipe.text_encoder), ("transformer", pipe.transformer))
    ]
    try:
        draw(pipe, [PROMPT, OTHER_PROMPT], latents=noise(2))
        assert runs == [("encoder", 2)] + [("transformer", 4)] * STEPS
        runs.clear()
        draw(pipe, [PROMPT, OTHER_PROMPT], latents=noise(2), negative_prompt="dog")
        assert runs == [("encoder", 2), ("encoder", 1)] + [("transformer", 4)] * STEPS
        runs.clear()
        draw(pipe, latents=noise(), negative_prompt="dog", guidance_scale=1)
        assert runs == [("encoder", 1)] + [("transformer", 1)] * STEPS
    finally:
        for handle in handles:
            handle.remove()


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


# Noise and latents.


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


# Embeddings in place of prompts.


def embeddings(pipe: Any, prompt: Any = PROMPT, negative: Any = "dog") -> dict[str, Any]:
    names = ("prompt_embeds", "prompt_mask", "negative_prompt_embeds", "negative_prompt_mask")
    return dict(zip(names, pipe.encode_prompt(prompt, negative), strict=True))


def branches(whole: dict[str, Any]) -> tuple[Branch, Branch]:
    """The same for the reference."""
    return (
        (whole["prompt_embeds"], whole["prompt_mask"]),
        (whole["negative_prompt_embeds"], whole["negative_prompt_mask"]),
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
    with pytest.raises(ValueError, match="give prompt or prompt_embeds"):
        draw(pipe, None)


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
    with pytest.raises(ValueError, match="for 1 images of 2"):
        draw(pipe, [PROMPT] * 2, **negative)


# What comes out.


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
    ],
)
def test_arguments_are_checked_before_any_work(
    pipe: Any, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    forbid_work(pipe, monkeypatch)
    with pytest.raises(ValueError, match=message):
        draw(pipe, **options)


def test_prompts_that_are_none(pipe: Any) -> None:
    with pytest.raises(ValueError, match="there are no prompts"):
        draw(pipe, [])
    with pytest.raises(ValueError, match="max_sequence_length is 0"):
        draw(pipe, max_sequence_length=0)
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
        *(({"base_resolution": base, "aspect_ratio": aspect}, size[2:]) for (base, aspect), size in BUCKETS.items()),
    ],
)
def test_sizes_of_images(pipe: Any, options: dict[str, Any], grid: tuple[int, int]) -> None:
    """Of two sides if both are given, of the table before that, and of 1024 pixels otherwise."""
    seen = seen_at_first_call(pipe, **options, guidance_scale=1)
    assert [tuple(shape) for shape in seen["img_shapes"]] == [(1, *grid)]
    assert seen["hidden_states"].shape == (1, grid[0] * grid[1], CHANNELS)


# Callbacks.


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

    found = draw(
        pipe,
        None,
        **whole,
        latents=noise(),
        guidance_scale=scale,
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=[name],
    )
    torch.testing.assert_close(found, expected, **TOLERANCE)
    if name != "negative_prompt_embeds" or scale != 1:
        unchanged = draw(pipe, None, **whole, latents=noise(), guidance_scale=scale)
        assert (found - unchanged).abs().max() > 0.1


def test_a_callback_can_switch_guidance_off(pipe: Any) -> None:
    """As diffusers' users do from some step on, to save time."""
    positive = reference_features(pipe, [PROMPT])
    sigmas = reference.sigmas(24, STEPS)
    middle = Reference(pipe, positive, reference_blank(1), 4.0).latents(noise(), sigmas[:2])
    expected = Reference(pipe, positive, reference_blank(1), 1.0).latents(middle, sigmas[1:])

    batches: list[int] = []

    def callback(running: Any, *_: Any) -> dict[str, Any]:
        running._guidance_scale = 1.0
        return {}

    handle = pipe.transformer.register_forward_pre_hook(
        lambda _module, _positional, arguments: batches.append(len(arguments["hidden_states"])), with_kwargs=True
    )
    try:
        found = draw(pipe, latents=noise(), callback_on_step_end=callback)
    finally:
        handle.remove()
    torch.testing.assert_close(found, expected, **TOLERANCE)
    assert batches == [2, 1, 1]


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


# Weights that are not where they compute.


def offload_by_model(pipe: Any) -> bool:
    pipe.enable_model_cpu_offload(device="cpu")
    return all(hasattr(model, "_hf_hook") for model in (pipe.text_encoder, pipe.transformer, pipe.vae))


def offload_by_layer(pipe: Any) -> bool:
    pipe.enable_sequential_cpu_offload(device="cpu")
    models = (pipe.text_encoder, pipe.transformer, pipe.vae)
    return all(parameter.is_meta for model in models for parameter in model.parameters())


def offload_by_group(pipe: Any, **options: Any) -> bool:
    cpu = torch.device("cpu")
    pipe.enable_group_offload(onload_device=cpu, offload_device=cpu, **options)
    return all(
        any(hasattr(module, "_diffusers_hook") for module in model.modules()) for model in (pipe.transformer, pipe.vae)
    )


def offload_by_blocks(pipe: Any) -> bool:
    return offload_by_group(pipe, offload_type="block_level", num_blocks_per_group=2)


def offload_by_leaves(pipe: Any) -> bool:
    return offload_by_group(pipe, offload_type="leaf_level")


@pytest.mark.parametrize("kind", ["folder", "quantized_folder"])
@pytest.mark.parametrize("offload", [offload_by_model, offload_by_layer, offload_by_blocks, offload_by_leaves])
def test_offloading_changes_no_bit(request: pytest.FixtureRequest, kind: str, offload: Callable[[Any], bool]) -> None:
    source = request.getfixturevalue(kind)
    expected = picture(load(source))
    pipe = load(source)
    assert offload(pipe)
    # The second run finds its models where the first one left them.
    assert [picture(pipe), picture(pipe)] == [expected, expected]


def test_models_are_sent_back_after_a_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the models in turn, the next one sends the one before it back; nobody comes after the last."""
    pipe = load(folder)
    assert offload_by_model(pipe)
    order: list[str] = []

    def noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*values: Any, **options: Any) -> Any:
            order.append(name)
            return function(*values, **options)

        return call

    monkeypatch.setattr(pipe.vae, "decode", noted("decode", pipe.vae.decode))
    monkeypatch.setattr(pipe, "maybe_free_model_hooks", noted("free", pipe.maybe_free_model_hooks))
    picture(pipe)
    assert order == ["decode", "free"]


def test_offloading_by_layer_can_follow_offloading_by_model(folder: Path) -> None:
    pipe = load(folder)
    expected = picture(pipe)
    assert offload_by_model(pipe)
    assert picture(pipe) == expected
    assert offload_by_layer(pipe)
    assert picture(pipe) == expected


# Folders.


@pytest.mark.parametrize("kind", ["folder", "quantized_folder"])
def test_a_saved_pipeline_is_one_of_microsofts(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> None:
    source = request.getfixturevalue(kind)
    pipe = load(source)
    expected = picture(pipe)
    pipe.save_pretrained(tmp_path / "saved")
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    index.pop("_diffusers_version")
    index.pop("_name_or_path", None)
    assert index == MODEL_INDEX
    assert names_in(tmp_path / "saved") == ["model_index.json", *sorted(MODEL_INDEX.keys() - {"_class_name"})]
    encoder = json.loads((tmp_path / "saved" / "text_encoder" / "config.json").read_text())
    assert encoder["architectures"] == ["GptOssForCausalLM"]
    loaded = quiet(DiffusionPipeline.from_pretrained(tmp_path / "saved", dtype=torch.float32))
    assert type(loaded) is LensPipeline
    assert type(loaded.text_encoder) is LensGptOssEncoder
    assert picture(loaded) == expected


def test_a_pipeline_works_without_a_text_encoder(folder: Path, pipe: Any, tmp_path: Path) -> None:
    alone = load(folder, text_encoder=None, tokenizer=None)
    assert alone.text_encoder is alone.tokenizer is None
    whole = embeddings(pipe)
    expected = draw(pipe, None, **whole, latents=noise())
    assert torch.equal(draw(alone, None, **whole, latents=noise()), expected)
    positive = {key: value for key, value in whole.items() if key.startswith("prompt")}
    blank = draw(pipe, None, **positive, latents=noise())
    assert torch.equal(draw(alone, None, **positive, latents=noise()), blank)
    for prompt, options in ((PROMPT, {}), (None, {**positive, "negative_prompt": "dog"})):
        with pytest.raises(ValueError, match="no text encoder; give prompt_embeds"):
            draw(alone, prompt, **options)
    alone.save_pretrained(tmp_path / "saved")
    assert names_in(tmp_path / "saved") == ["model_index.json", "scheduler", "transformer", "vae"]
    loaded = quiet(DiffusionPipeline.from_pretrained(tmp_path / "saved", dtype=torch.float32))
    assert torch.equal(draw(loaded, None, **whole, latents=noise()), expected)


def test_a_text_encoder_may_come_later(folder: Path, pipe: Any) -> None:
    late = load(folder, text_encoder=None, tokenizer=None)
    late.tokenizer = pipe.tokenizer
    late.text_encoder = LensGptOssEncoder.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    assert torch.equal(draw(late, latents=noise()), draw(pipe, latents=noise()))


def test_the_pipeline_looks_like_upstreams(pipe: Any) -> None:
    assert (pipe.vae_scale_factor, pipe.latent_channels) == (16, 128)
    assert (pipe.txt_offset, pipe.default_sample_size) == (97, 1024)
    assert pipe.text_encoder._lens_selected_layers == LAYERS
    assert LensPipeline.model_cpu_offload_seq == "text_encoder->transformer->vae"
    assert LensPipeline._callback_tensor_inputs == ["latents", "prompt_embeds", "negative_prompt_embeds"]
    components = ["self", "scheduler", "vae", "text_encoder", "tokenizer", "transformer"]
    assert list(inspect.signature(LensPipeline.__init__).parameters) == components
    parameters = inspect.signature(LensPipeline.__call__).parameters
    assert list(parameters)[: len(ARGUMENTS) + 2] == ["self", "prompt", *ARGUMENTS]
    defaults = {name: parameters[name].default for name in ARGUMENTS}
    names = defaults["callback_on_step_end_tensor_inputs"]
    assert {**defaults, "callback_on_step_end_tensor_inputs": list(names)} == ARGUMENTS


def test_a_packed_text_encoder_is_announced_by_the_pipeline(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = tmp_path / "packed"
    shutil.copytree(folder, source)
    weights, config = source / "text_encoder" / "model.safetensors", source / "text_encoder" / "config.json"
    packed, dense = pack_experts(load_file(weights))
    # As in the real checkpoint: 411 tensors, and one more for each of 48 stacks of experts.
    assert (len(dense), len(packed)) == (411, 459)
    save_file(packed, weights, metadata={"format": "pt"})
    config.write_text(json.dumps({**json.loads(config.read_text()), "quantization_config": MXFP4}))
    pipe = load(source)
    (notice,) = notices(caplog)
    assert "it is unpacked" in notice
    found = pipe.text_encoder.state_dict()
    assert found.keys() == dense.keys()
    assert all(torch.equal(found[name].bfloat16(), tensor) for name, tensor in dense.items())
    assert draw(pipe, latents=noise()).isfinite().all()


# Adapters.


def test_an_adapter_is_loaded_and_unloaded(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    targets = ["img_qkv", "to_out.0", "txt_mlp.w1"]
    peft: Any = importlib.import_module("peft")
    config = peft.LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, target_modules=targets)
    model = LensTransformer2DModel.from_pretrained(folder / "transformer")
    peft.get_peft_model(model, config).save_pretrained(tmp_path)
    pipe = load(folder)
    state = pipe.transformer.state_dict()
    before = draw(pipe, latents=noise())
    adapter = load_file(tmp_path / "adapter_model.safetensors")
    adapted = dict(state)
    for name, down in adapter.items():
        if name.endswith(".lora_A.weight"):
            weight = name.removeprefix("base_model.model.").replace(".lora_A", "")
            # The adapter's scale is alpha over its rank, 2.
            adapted[weight] = state[weight] + 2 * adapter[name.replace("lora_A", "lora_B")] @ down
    assert len(adapter) == 2 * len(targets) * pipe.transformer.config.num_layers
    run = Reference(pipe, reference_features(pipe, [PROMPT]), reference_blank(1), 4.0, adapted)
    expected = run.latents(noise())
    pipe.load_lora_weights(tmp_path)
    found = draw(pipe, latents=noise())
    torch.testing.assert_close(found, expected, **TOLERANCE)
    assert (found - before).abs().max() > 0.1
    assert torch.equal(draw(pipe, latents=noise(), attention_kwargs={"scale": 0.0}), before)
    pipe.unload_lora_weights()
    assert torch.equal(draw(pipe, latents=noise()), before)
    assert pipe.transformer.state_dict().keys() == state.keys()


# Halves.


def test_sigma_is_divided_in_the_dtype_of_the_latents(folder: Path, pipe: Any) -> None:
    half = load(folder, dtype=torch.bfloat16)
    for model, dtype in ((half, torch.bfloat16), (pipe, torch.float32)):
        seen: list[dict[str, Any]] = []
        handle = model.transformer.register_forward_pre_hook(
            lambda _module, _positional, arguments, seen=seen: seen.append(arguments), with_kwargs=True
        )
        try:
            images = draw(model, latents=noise(), num_inference_steps=8)
        finally:
            handle.remove()
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


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")
def test_a_component_that_is_set_later_keeps_its_name_in_the_index(folder: Path, tmp_path: Path) -> None:
    pipe = load(folder)
    pipe.text_encoder, pipe.tokenizer = pipe.text_encoder, pipe.tokenizer
    pipe.transformer = torch.compile(pipe.transformer)
    pipe.save_pretrained(tmp_path / "saved")
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    assert {name: index[name] for name in MODEL_INDEX} == MODEL_INDEX


def test_a_fresh_pipeline_can_be_asked_how_it_is(folder: Path) -> None:
    pipe = load(folder, text_encoder=None, tokenizer=None)
    assert (pipe.current_timestep, pipe.interrupt, pipe.num_timesteps) == (None, False, 0)
    assert (pipe.attention_kwargs, pipe.do_classifier_free_guidance) == (None, False)
