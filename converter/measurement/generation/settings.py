"""What an image depends on, resolved: every default chosen, every value in range."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

from converter.errors import UsageError
from converter.measurement.generation.options import DTYPES, MAXIMUM_SEED, MAXIMUM_STEPS, OFFLOADS, GenerateOptions
from converter.measurement.generation.repo import PipelineRepo
from converter.models.lens.resolutions import PIXELS_PER_TOKEN, resolution

#: Size class of the published images.
DEFAULT_RESOLUTION = 1440
DEFAULT_ASPECT_RATIO = "1:1"
#: Autoencoders made for smaller images than this belong to models that are made for tests.
_SMALLEST_REAL_SIDE = 1024


@dataclass(frozen=True)
class Settings:
    """What an image depends on, but for the weights and the machine."""

    prompt: str
    negative_prompt: str
    seed: int
    steps: int
    guidance: float
    height: int
    """In pixels."""
    width: int
    dtype: str
    date: str
    """Day that the text encoder is told."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of image tokens."""
        return self.height // PIXELS_PER_TOKEN, self.width // PIXELS_PER_TOKEN

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts to encode: without guidance, or with nothing in it, the negative one is not needed."""
        needs_negative = self.guidance != 1 and self.negative_prompt.strip()
        return (self.prompt, self.negative_prompt) if needs_negative else (self.prompt,)

    def to_dict(self) -> dict[str, Any]:
        """As the image's metadata and ``--json`` show it."""
        return asdict(self)


def choose_settings(repo: PipelineRepo, prompt: str, options: GenerateOptions) -> Settings:
    """Fill in what the caller left open.

    Raises:
        UsageError: a value is out of range, or two do not go together.
    """
    for name, text in (("prompt", prompt), ("negative-prompt", options.negative_prompt)):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"--{name}: is no text in UTF-8") from error
    steps = repo.default_steps if options.steps is None else options.steps
    guidance = repo.default_guidance if options.guidance is None else options.guidance
    _check_range("seed", options.seed, 0, MAXIMUM_SEED)
    _check_range("steps", steps, 1, MAXIMUM_STEPS)
    _check_range("guidance", guidance, 0, 1000)
    for name, value, choices in (("dtype", options.dtype, DTYPES), ("offload", options.offload, OFFLOADS)):
        if value not in choices:
            raise UsageError(f"--{name} {value}: is none of {', '.join(choices)}")
    try:
        day = date.fromisoformat(options.date).isoformat()
    except ValueError as error:
        raise UsageError(f"--date {options.date}: is no day, as in 2026-05-23") from error
    height, width = _choose_size(repo, options)
    return Settings(
        prompt=prompt,
        negative_prompt=options.negative_prompt,
        seed=options.seed,
        steps=steps,
        guidance=float(guidance),
        height=height,
        width=width,
        dtype=options.dtype,
        date=day,
    )


def _check_range(name: str, value: float, least: float, most: float) -> None:
    if not (math.isfinite(value) and least <= value <= most):
        raise UsageError(f"--{name} {value}: must be between {least} and {most}")


def _choose_size(repo: PipelineRepo, options: GenerateOptions) -> tuple[int, int]:
    has_class = options.base_resolution is not None or options.aspect_ratio is not None
    sides = options.height, options.width
    if sides != (None, None):
        if has_class or None in sides:
            raise UsageError("give --height and --width together, and no --base-resolution or --aspect-ratio with them")
        for name, side in zip(("height", "width"), sides, strict=True):
            if side is None or side < PIXELS_PER_TOKEN or side % PIXELS_PER_TOKEN:
                raise UsageError(f"--{name} {side}: must be a multiple of {PIXELS_PER_TOKEN} pixels")
        return options.height or 0, options.width or 0
    natural = repo.vae.config.get("sample_size")
    if not has_class and type(natural) is int and PIXELS_PER_TOKEN <= natural < _SMALLEST_REAL_SIDE:
        side = natural // PIXELS_PER_TOKEN * PIXELS_PER_TOKEN
        return side, side
    try:
        return resolution(options.base_resolution or DEFAULT_RESOLUTION, options.aspect_ratio or DEFAULT_ASPECT_RATIO)
    except ValueError as error:
        raise UsageError(str(error)) from error
