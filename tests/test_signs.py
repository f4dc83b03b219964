"""The model of ``synth --preset signs``: what ships, what it draws, and how it is trained."""

from __future__ import annotations

import json
import random
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from converter.checkpoint.source import open_checkpoint
from converter.errors import UsageError
from converter.lens import LensPipeline
from converter.measurement.comparison.text_accuracy import LEGIBLE, find_readers
from converter.measurement.prompts.suite import read_suite
from converter.models.lens.layout import LensConfig, lens_tensors
from converter.models.lens.sampling import latent_pixels, unpatchify
from converter.synthesis import signs
from converter.synthesis.synthesize import synthesize
from scripts.signs import autoencoder as autoencoder_module
from scripts.signs.autoencoder import encode_signs, patchify, train_autoencoder
from scripts.signs.denoiser import train_denoiser
from scripts.signs.drawing import SIDE, draw_sign
from scripts.signs.features import make_examples
from scripts.signs.pictures import picture_batch
from scripts.signs.table import markdown_table
from scripts.signs.vocabulary import (
    HELD_OUT_WORDS,
    TRAINING_WORDS,
    held_out_signs,
    parse_prompt,
    training_sign,
    varied_sign,
)
from tests.conftest import ROOT

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signs") / "Lens"
    synthesize(folder, preset="signs")
    return folder


@pytest.fixture(scope="module")
def pipeline(repo: Path) -> Any:
    pipeline = LensPipeline.from_pretrained(repo, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_the_layout_is_the_real_one_within_the_limits(repo: Path) -> None:
    assert len(resources.files("converter.synthesis").joinpath(signs.WEIGHTS).read_bytes()) <= 6_000_000
    transformer, vae = (open_checkpoint(repo / part) for part in ("transformer", "vae"))
    shapes = {name: tensor.entry.shape for name, tensor in transformer.tensors.items()}
    real = {name for name, _ in lens_tensors(LensConfig(num_layers=4))}
    assert shapes == dict(lens_tensors(signs.TRANSFORMER))
    assert shapes.keys() == real
    assert transformer.bytes_by_dtype.keys() == {"F32"}
    numbers = [np.prod(tensor.entry.shape) for part in (transformer, vae) for tensor in part.tensors.values()]
    assert sum(numbers) < 2.9e6


def test_pictures_show_what_the_prompts_say(pipeline: Any) -> None:
    """Nearer to the truth than to any other sign, and near enough to be read."""
    wanted = held_out_signs(4)
    drawn = pipeline(
        [sign.prompt for sign in wanted],
        height=SIDE,
        width=SIDE,
        num_inference_steps=12,
        guidance_scale=1,
        generator=torch.Generator().manual_seed(5),
        output_type="np",
    ).images
    truths = [np.asarray(draw_sign(sign)) / 255 for sign in wanted]
    distances = np.array([[np.abs(image - truth).mean() for truth in truths] for image in drawn])
    assert list(distances.argmin(axis=1)) == [0, 1, 2, 3]
    assert distances.diagonal().max() < 0.04
    readers = find_readers()
    pages = [(np.round(255 * image)).astype(np.uint8) for image in drawn]
    read = [readers.read("RapidOCR", page, [sign.text])[0] for sign, page in zip(wanted, pages, strict=True)]
    assert all(reading.error_rate is not None and reading.error_rate <= LEGIBLE for reading in read)


def test_training_never_draws_what_the_evaluation_asks_for() -> None:
    rng = random.Random(7)  # noqa: S311 - words, not secrets
    assert not set(HELD_OUT_WORDS) & set(TRAINING_WORDS)
    drawn = [sign for _ in range(3000) for sign in (training_sign(rng), varied_sign(rng))]
    assert not {word for sign in drawn for word in sign.text.split()} & set(HELD_OUT_WORDS)
    evaluated = held_out_signs(50)
    suite = [parse_prompt(prompt.prompt) for prompt in read_suite("signs").prompts]
    assert len({sign.text for sign in evaluated}) == 50
    assert all(sign.text.split()[0] in HELD_OUT_WORDS for sign in (*evaluated, *suite))
    assert [prompt.required_text for prompt in read_suite("signs").prompts] == [(sign.text,) for sign in suite]


@pytest.mark.long
def test_training_is_reproducible(pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoencoder_module, "_MEASURED", 8)

    def train(folder: Path, steps: int) -> dict[str, torch.Tensor]:
        losses: list[float] = []
        autoencoder = train_autoencoder(1, 3, CPU, lambda _stage, _step, loss: losses.append(loss))
        examples = make_examples(4, 3, autoencoder, pipeline.tokenizer, pipeline.text_encoder, CPU)
        model = train_denoiser(
            examples, steps, 3, CPU, lambda _stage, _step, loss: losses.append(loss), folder / "saved"
        )
        assert all(np.isfinite(losses))
        return {**model.state_dict(), **autoencoder.state_dict()}

    first, second = train(tmp_path, 2), train(tmp_path, 2)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_latents_are_what_the_pipeline_decodes(pipeline: Any) -> None:
    latents = torch.arange(2 * 32 * 4 * 6.0).reshape(2, 32, 4, 6)
    assert torch.equal(unpatchify(patchify(latents)), latents)
    pictures = picture_batch(held_out_signs(4), CPU)
    tokens = encode_signs(pipeline.vae, pictures)
    with torch.no_grad():
        decoded = pipeline.vae.decode(latent_pixels(tokens, (8, 8), pipeline.vae), return_dict=False)[0]
    assert (decoded - pictures).abs().mean() < 0.05


@pytest.mark.parametrize("options", [{"seed": 1}, {"layers": 2}])
def test_trained_weights_cannot_be_changed(options: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="its weights are trained"):
        synthesize(tmp_path / "out", preset="signs", **options)  # type: ignore[arg-type]  # either option


def test_the_docs_show_what_was_measured() -> None:
    found = json.loads((ROOT / "benchmarks" / "signs.json").read_text("utf-8"))
    assert markdown_table(found) in (ROOT / "docs" / "signs.md").read_text("utf-8")
    original = found["models"][0]
    assert original["model"] == "original"
    assert original["legible_percent"] >= 80
