"""The images of a benchmark: their kinds, seeds, files, and keys in the journal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converter.checkpoint.checksum import file_sha256
from converter.measurement.benchmark.job import BASELINE_SEED_OFFSET
from converter.measurement.evidence.names import ORIGINAL, QUANTIZED
from converter.measurement.prompts.suite import SuitePrompt

#: The original's images with a second seed.
BASELINE = "baseline"
#: Kinds of images: those of both models, and the baseline.
IMAGE_KINDS = (ORIGINAL, QUANTIZED, BASELINE)


def image_seed(kind: str, prompt: SuitePrompt) -> int:
    """The seed of an image.

    Args:
        kind: one of ``IMAGE_KINDS``.
        prompt: the prompt of the image.
    """
    return prompt.seed + (BASELINE_SEED_OFFSET if kind == BASELINE else 0)


def image_name(kind: str, prompt: SuitePrompt) -> str:
    """The path of an image in the folder of measurements; arguments as for ``image_seed``."""
    model = ORIGINAL if kind == BASELINE else kind
    return f"images/{kind}/{prompt.id}-{image_seed(kind, prompt)}-{model}.png"


def image_key(kind: str, prompt: SuitePrompt) -> str:
    """The key of an image in the journal; arguments as for ``image_seed``. Ids of prompts have no plus sign."""
    return f"{prompt.id}+{BASELINE_SEED_OFFSET}" if kind == BASELINE else prompt.id


def has_image(figures: Mapping[str, Any], image: Path) -> bool:
    """Whether a file is the image that was measured.

    Args:
        figures: of the image, from the journal.
        image: the file.
    """
    digest = figures.get("image_sha256")
    return digest is not None and digest == file_sha256(image)
