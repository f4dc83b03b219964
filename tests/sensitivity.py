"""Originals that are loaded once, with few small images, for tests of ablation and search."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from converter.checkpoint.source import Checkpoint
from converter.measurement.benchmark.repos import ImageSettings, choose_image_settings
from converter.measurement.generation.options import GenerateOptions
from converter.measurement.sensitivity.loaded import LoadedOriginal, load_original, open_original
from converter.measurement.sensitivity.scan import scan
from converter.measurement.sensitivity.storage import Storage

#: Small and few, so that an image takes a tenth of a second.
SMALL: dict[str, Any] = {"device": "cpu", "steps": 3, "height": 64, "width": 64}
PROMPTS = ("a red cube", "two cats")


def load(
    folder: Path, prompts: Sequence[str] = PROMPTS, **options: Any
) -> tuple[LoadedOriginal, dict[str, ImageSettings]]:
    """An original, and settings of small images of prompts by the prompts."""
    chosen = GenerateOptions(**{**SMALL, **options})
    repo = open_original(folder)
    settings = {prompt: choose_image_settings(repo, prompt, chosen) for prompt in prompts}
    return load_original(repo, list(settings.values()), chosen), settings


def fill_spool(checkpoint: Checkpoint, found: Iterable[Storage], spool: Path) -> None:
    """Quantize weights, and write the files with their parts."""
    quantized = {storage.source: [storage] for storage in found if storage.quantized is not None}
    missing = {source: several for source, several in quantized.items() if not several[0].spool_file(spool).exists()}
    scan(checkpoint, missing, spool=spool)
