"""The repos that a benchmark measures: those of Lens, and others that `generate` draws with.

Each kind is opened, and has its settings chosen, as `generate` does it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from converter.checkpoint.files import read_json
from converter.checkpoint.source import PIPELINE_INDEX
from converter.errors import UsageError, printable
from converter.measurement.generation.options import GenerateOptions
from converter.measurement.generation.pipeline_loading import OpenPipeline, load_tokenizers, open_other_pipeline
from converter.measurement.generation.pipeline_settings import PipelineSettings, choose_pipeline_settings
from converter.measurement.generation.prompt_lengths import cut_prompts
from converter.measurement.generation.repo import PipelineRepo, names_another_pipeline, open_pipeline
from converter.measurement.generation.settings import Settings, choose_settings

MeasuredRepo: TypeAlias = PipelineRepo | OpenPipeline
#: The settings of one image.
ImageSettings: TypeAlias = Settings | PipelineSettings


def open_measured(folder: Path) -> MeasuredRepo:
    """Open a repo.

    Raises:
        InputError: it is not one that `generate` draws with.
    """
    return open_other_pipeline(folder) if names_another_pipeline(folder) else open_pipeline(folder)


def open_both(original: Path, quantized: Path) -> tuple[MeasuredRepo, MeasuredRepo]:
    """Open two repos of one pipeline.

    Raises:
        InputError: one is not what `generate` draws with, or their classes differ.
    """
    first = open_measured(original)
    index = quantized / PIPELINE_INDEX
    name = read_json(index).get("_class_name") if index.is_file() else None
    if name not in (None, first.class_name):
        raise UsageError(
            f"{quantized} is for {printable(str(name))}, and {original} for {first.class_name}",
            "Give the original and what was made from it.",
        )
    return first, open_measured(quantized)


def choose_image_settings(repo: MeasuredRepo, prompt: str, options: GenerateOptions) -> ImageSettings:
    """Fill in what the caller did not choose.

    Args:
        repo: the original.
        prompt: what the image shows.
        options: what was chosen.

    Raises:
        UsageError: a value is out of range, or the pipeline does not take it.
    """
    if isinstance(repo, PipelineRepo):
        return choose_settings(repo, prompt, options)
    return choose_pipeline_settings(repo.pipeline, prompt, options)


def describe_settings(repo: MeasuredRepo, settings: ImageSettings) -> dict[str, Any]:
    """Return what files of measurements say of the settings that all prompts share.

    Args:
        repo: the original.
        settings: of an image of it.
    """
    found = settings.to_evidence()
    if not isinstance(repo, PipelineRepo):
        call = repo.pipeline.call
        found["guidance_argument"] = call.guidance
        if not (call.takes("height") and call.takes("width")):
            found["fixed_size"] = True
    return found


def cut_texts(repo: MeasuredRepo, settings: Sequence[ImageSettings]) -> Iterator[str]:
    """Say which prompts a pipeline of diffusers cuts, and where.

    Args:
        repo: the original.
        settings: of all images.

    Raises:
        UnsupportedCheckpoint: a tokenizer cannot be loaded.
    """
    if isinstance(repo, OpenPipeline):
        tokenizers = load_tokenizers(repo)
        for found in settings:
            if isinstance(found, PipelineSettings):
                yield from cut_prompts(tokenizers, found)


def lens_only(repo: MeasuredRepo) -> str:
    """Why trajectories are not measured; empty for Lens."""
    return f"measured for Lens only, not for {repo.class_name}" if isinstance(repo, OpenPipeline) else ""
