"""How to draw, as one value; the command line makes its options from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from converter.models.lens.resolutions import ASPECT_RATIOS, RESOLUTIONS

DTYPES = ("bfloat16", "float32")
OFFLOADS = ("none", "model", "sequential")
#: The day that prompts are told unless the caller names another. A fixed one: with the current day, which upstream
#: tells, the same seed would draw another image tomorrow. ComfyUI and mflux fixed the same.
PROMPT_DATE = "2026-05-23"
#: torch takes no larger seed.
MAXIMUM_SEED = 2**64 - 1
#: More steps than any schedule asks for.
MAXIMUM_STEPS = 1000


@dataclass(frozen=True)
class GenerateOptions:
    """How to draw; the repo, the prompt and the image's place are not among it."""

    negative_prompt: str = field(default="", metadata={"help": "What to keep away from."})
    seed: int = field(
        default=0,
        metadata={"help": "Of the noise, which is the same on every device.", "range": (0, MAXIMUM_SEED)},
    )
    steps: int | None = field(
        default=None,
        metadata={"help": "Steps.  [default: 20; Lens-Turbo 4, Lens-Base 50]", "range": (1, MAXIMUM_STEPS)},
    )
    guidance: float | None = field(
        default=None,
        metadata={"help": "Guidance scale; 1 is none.  [default: 5; Lens-Turbo 1]", "range": (0.0, 1000.0)},
    )
    base_resolution: int | None = field(
        default=None,
        metadata={"help": "Size class.  [default: 1440; a tiny model's own size]", "choices": tuple(RESOLUTIONS)},
    )
    aspect_ratio: str | None = field(
        default=None, metadata={"help": "Width to height.  [default: 1:1]", "choices": ASPECT_RATIOS}
    )
    height: int | None = field(
        default=None, metadata={"help": "Height in pixels in place of a size class, a multiple of 16.", "kind": "count"}
    )
    width: int | None = field(default=None, metadata={"help": "Likewise, the width.", "kind": "count"})
    device: str = field(default="auto", metadata={"help": "auto (a GPU, if there is one), cpu, cuda or cuda:N."})
    dtype: str = field(default="bfloat16", metadata={"help": "What to compute in.", "choices": DTYPES})
    offload: str = field(
        default="none",
        metadata={
            "help": "What stays on the CPU until it is needed: none, each model, or each layer.",
            "choices": OFFLOADS,
        },
    )
    features: Path | None = field(
        default=None,
        metadata={
            "help": "Folder that keeps encoded prompts; the text encoder is not loaded for those it has.",
            "kind": "path",
        },
    )
    date: str = field(
        default=PROMPT_DATE, metadata={"help": "Day that the text encoder is told, YYYY-MM-DD; images depend on it."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace a file that is in the image's place."})
