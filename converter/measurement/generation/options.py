"""The options of an image as one value; the command line makes its options from it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from converter.conversion.adapters.choice import AdapterChoice
from converter.errors import UsageError
from converter.models.lens.resolutions import ASPECT_RATIOS, RESOLUTIONS

OFFLOADS = ("none", "model", "sequential")
#: How layers that multiply in int8 compute: as SDNQ's, or as the chain of ``converter.models.lens.int8_chain``.
INT8_METHODS = ("sdnq", "chain")
#: What torch compiles: nothing, or the block that the transformer repeats.
COMPILES = ("none", "blocks")
#: The date in the conversation around a prompt, unless the caller names another. It is fixed: upstream uses the current
#: date, with which the same seed would give another image tomorrow. ComfyUI and mflux chose the same date.
PROMPT_DATE = "2026-05-23"
#: The largest seed that torch takes.
MAXIMUM_SEED = 2**64 - 1
#: More steps than any schedule needs.
MAXIMUM_STEPS = 1000


def option(default: Any, text: str, **metadata: Any) -> Any:
    """Make a field of a dataclass of options.

    Args:
        default: its value by default.
        text: its help on the command line.
        metadata: ``choices``, ``range``, ``kind`` or ``option``, which ``converter.cli.options`` describes.
    """
    return field(default=default, metadata={"help": text, **metadata})


@dataclass(frozen=True)
class GenerateOptions:
    """How to generate an image; the repo, the prompt and the output file come in addition."""

    negative_prompt: str = option("", "What to avoid in the image; refused where the pipeline does not use it.")
    seed: int = option(0, "Seed of the noise, which is the same on every device.", range=(0, MAXIMUM_SEED))
    steps: int | None = option(
        None,
        "Denoising steps.  [default: the pipeline's own; for Lens, by the repo's name: 20; Lens-Turbo 4, Lens-Base 50]",
        range=(1, MAXIMUM_STEPS),
    )
    guidance: float | None = option(
        None,
        "Guidance scale; 1 turns it off. It is guidance_scale of the pipeline's call; for Qwen-Image, true_cfg_scale.  "
        "[default: the pipeline's own; for Lens, by the repo's name: 5; Lens-Turbo 1]",
        range=(0.0, 1000.0),
    )
    base_resolution: int | None = option(
        None,
        "Lens only: side of a square image in pixels; images of other aspect ratios have about the same area.  "
        "[default: 1440; for a model of `synth --preset tiny`, its own size]",
        choices=tuple(RESOLUTIONS),
    )
    aspect_ratio: str | None = option(
        None, "Lens only: ratio of width to height.  [default: 1:1]", choices=ASPECT_RATIOS
    )
    height: int | None = option(
        None,
        "Height in pixels, for Lens a multiple of 16; use it with --width, instead of --base-resolution and "
        "--aspect-ratio.  [default: the pipeline's own]",
        kind="count",
    )
    width: int | None = option(None, "Width in pixels, for Lens a multiple of 16; use it with --height.", kind="count")
    max_sequence_length: int | None = option(
        None,
        "Most tokens of a prompt that are encoded, if the pipeline lets one choose.  [default: the pipeline's own]",
        kind="count",
    )
    device: str = option("auto", "auto (a GPU if there is one), cpu, cuda or cuda:N.")
    dtype: str = option("bfloat16", "Dtype of the computation.", choices=("bfloat16", "float32"))
    offload: str = option(
        "none",
        "What stays on the CPU until it runs: none (nothing), model (each component), sequential (each layer).",
        choices=OFFLOADS,
    )
    compile: str = option(
        "none",
        "What torch compiles: none (nothing), blocks (the repeated block of the denoiser, once for all blocks and "
        "steps, when it first runs).",
        choices=COMPILES,
    )
    int8: str = option(
        "sdnq",
        "Lens only: how quantized layers multiply in int8: sdnq (each by itself), chain (together with the operations "
        "before them, if the results agree; not yet measured on a GPU).",
        choices=INT8_METHODS,
    )
    features: Path | None = field(
        default=None,
        metadata={
            "help": "Lens only: folder to keep encoded prompts in; for prompts that are in it, the text encoder is not "
            "loaded.",
            "kind": "path",
        },
    )
    date: str = option(
        PROMPT_DATE,
        "Lens only: date, as YYYY-MM-DD, that is passed to the text encoder with the prompt; images depend on it.",
    )
    overwrite: bool = option(False, "Replace an existing file.")
    adapters: tuple[AdapterChoice, ...] = ()
    """LoRA adapters that are added to the weights of an original, in this order."""

    def __post_init__(self) -> None:
        """Refuse values out of range.

        Raises:
            UsageError: a value is out of range.
        """
        check_values(self)


def check_values(options: Any) -> None:
    """Compare the values of a dataclass with the ``choices`` and ``range`` in the metadata of its fields.

    Raises:
        UsageError: a value is not among them.
    """
    for item in fields(options):
        value, metadata = getattr(options, item.name), item.metadata
        option = f"--{item.name.replace('_', '-')} {value}"
        if value is None:
            continue
        if "choices" in metadata and value not in metadata["choices"]:
            raise UsageError(f"{option}: must be one of {', '.join(map(str, metadata['choices']))}")
        if "range" in metadata:
            least, most = metadata["range"]
            if not least <= value <= most:
                raise UsageError(f"{option}: must be between {least} and {most}")
