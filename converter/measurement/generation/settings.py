"""The settings of an image: every default is chosen, every value is in range."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Any

from converter.errors import UsageError
from converter.measurement.generation.options import GenerateOptions
from converter.measurement.generation.repo import PipelineRepo
from converter.models.lens.resolutions import PIXELS_PER_TOKEN, RESOLUTIONS, choose_size, resolution

#: Size class of the published images.
DEFAULT_RESOLUTION = 1440
DEFAULT_ASPECT_RATIO = "1:1"
#: Autoencoders made for smaller images than this belong to models for tests.
_SMALLEST_REAL_SIDE = 1024


@dataclass(frozen=True)
class Settings:
    """Everything that an image depends on, except the weights and the machine."""

    prompt: str
    negative_prompt: str
    seed: int
    steps: int
    guidance: float
    height: int
    """Width in pixels."""
    width: int
    dtype: str
    date: str
    """Date that the text encoder is given."""
    compile: str = "none"
    """What is compiled, as in ``GenerateOptions``; compiled code rounds differently."""
    int8: str = "sdnq"
    """How quantized layers compute, as in ``GenerateOptions``."""

    @property
    def compiles(self) -> bool:
        """Whether the blocks of the transformer are compiled."""
        return self.compile == "blocks"

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of image tokens."""
        return self.height // PIXELS_PER_TOKEN, self.width // PIXELS_PER_TOKEN

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts to encode; the negative one is not needed without guidance, or if it is blank."""
        needs_negative = self.guidance != 1 and self.negative_prompt.strip()
        return (self.prompt, self.negative_prompt) if needs_negative else (self.prompt,)

    def to_evidence(self) -> dict[str, Any]:
        """Return what files of measurements say of the settings that all prompts share."""
        named = (
            (base, ratio)
            for base, table in RESOLUTIONS.items()
            for ratio, size in table.items()
            if size == (self.height, self.width)
        )
        base, ratio = next(named, (None, None))
        return {
            "base_resolution": base,
            "aspect_ratio": ratio,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "height": self.height,
            "width": self.width,
            "dtype": self.dtype,
            "date": self.date,
            "int8": self.int8,
            "compile": self.compile,
            "negative_prompt": self.negative_prompt,
        }


def choose_settings(repo: PipelineRepo, prompt: str, options: GenerateOptions) -> Settings:
    """Fill in what the caller did not choose.

    Raises:
        UsageError: a value is out of range, or two contradict each other.
    """
    refuse_undecodable(prompt, options.negative_prompt)
    if options.max_sequence_length is not None:
        raise UsageError("--max-sequence-length: Lens does not take it")
    try:
        day = date.fromisoformat(options.date).isoformat()
    except ValueError as error:
        raise UsageError(f"--date {options.date}: is not a date, as in 2026-05-23") from error
    height, width = _choose_size(repo, options)
    return Settings(
        prompt=prompt,
        negative_prompt=options.negative_prompt,
        seed=options.seed,
        steps=repo.default_steps if options.steps is None else options.steps,
        guidance=float(repo.default_guidance if options.guidance is None else options.guidance),
        height=height,
        width=width,
        dtype=options.dtype,
        date=day,
        int8=options.int8,
        compile=options.compile,
    )


def refuse_undecodable(prompt: str, negative_prompt: str) -> None:
    """Refuse prompts that contain halves of surrogate pairs, as a command line that is not UTF-8 does.

    Raises:
        UsageError: one does.
    """
    for name, text in (("prompt", prompt), ("negative-prompt", negative_prompt)):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"--{name}: is not text in UTF-8") from error


def _choose_size(repo: PipelineRepo, options: GenerateOptions) -> tuple[int, int]:
    has_class = options.base_resolution is not None or options.aspect_ratio is not None
    sides = options.height, options.width
    if sides == (None, None):
        natural = repo.vae.config.get("sample_size")
        if not has_class and type(natural) is int and PIXELS_PER_TOKEN <= natural < _SMALLEST_REAL_SIDE:
            side = natural // PIXELS_PER_TOKEN * PIXELS_PER_TOKEN
            return side, side
        return resolution(options.base_resolution or DEFAULT_RESOLUTION, options.aspect_ratio or DEFAULT_ASPECT_RATIO)
    if has_class or None in sides:
        raise UsageError("give --height and --width together, and without --base-resolution or --aspect-ratio")
    try:
        return choose_size(*sides, None, None)
    except ValueError as error:
        raise UsageError(f"--{error}") from error
