"""Short runs of tiny pipelines, and the same runs by the plain reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from converter.lens import LensPipeline
from tests.faults import raising
from tests.lens import reference
from tests.lens.models import calls_of
from tests.lens.prompts import DAY, LAYERS, PREFIX, conversation

#: Tokens down and across; the sides differ, so that exchanging them shows.
GRID = (4, 6)
SIZE = {"height": 64, "width": 96}
STEPS = 3
CHANNELS = 128
PROMPT, OTHER_PROMPT = "a red cube on a wooden table", "sea"
#: How far float32 may stray over a whole run: sums are taken in another order. Latents have a spread of about one, and
#: another negative prompt, seed or scale moves them by more than 0.1.
TOLERANCE = {"rtol": 0.0, "atol": 2e-4}


def load(folder: Path, **options: Any) -> Any:
    """A pipeline of its own, in float32 if nothing else is asked for."""
    return quiet(LensPipeline.from_pretrained(folder, **({"dtype": torch.float32} | options)))


def quiet(pipe: Any) -> Any:
    """Without a progress bar, and on a day that does not change."""
    pipe.set_progress_bar_config(disable=True)
    pipe.prompt_date = DAY
    return pipe


def noise(images: int = 1, seed: int = 1) -> torch.Tensor:
    """Latents to start from, ``[images, tokens, channels]``."""
    return torch.randn(images, GRID[0] * GRID[1], CHANNELS, generator=torch.Generator().manual_seed(seed))


def draw(pipe: Any, prompt: Any = PROMPT, **options: Any) -> Any:
    """The images of a short run on a small canvas; latents unless something else is asked for."""
    defaults = {"num_inference_steps": STEPS, "output_type": "latent", **SIZE}
    return pipe(prompt, **(defaults | options)).images


def picture(pipe: Any, **options: Any) -> bytes:
    """The bytes of the pixels of one image."""
    (image,) = draw(pipe, negative_prompt="dog", output_type="pil", latents=noise(), **options)
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
        self, pipe: Any, positive: Branch, negative: Branch, scale: float, state: reference.State | None = None
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


def seen_at_first_call(pipe: Any, monkeypatch: pytest.MonkeyPatch, **options: Any) -> dict[str, Any]:
    """What the transformer is first called with; the run ends there, so that large images cost nothing."""
    monkeypatch.setattr(pipe.transformer, "forward", raising(InterruptedError()))
    with calls_of(pipe.transformer) as calls, pytest.raises(InterruptedError):
        pipe(**{"prompt": PROMPT, **options})
    return calls[0]


def embeddings(pipe: Any, prompt: Any = PROMPT, negative: Any = "dog") -> dict[str, Any]:
    names = ("prompt_embeds", "prompt_mask", "negative_prompt_embeds", "negative_prompt_mask")
    return dict(zip(names, pipe.encode_prompt(prompt, negative), strict=True))


def branches(whole: dict[str, Any]) -> tuple[Branch, Branch]:
    """The same for the reference."""
    embeds, mask, negative_embeds, negative_mask = whole.values()
    return (embeds, mask), (negative_embeds, negative_mask)
