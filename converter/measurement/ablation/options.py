"""The options of an ablation as one value; the command line makes its options from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from converter.conversion.options import ConvertOptions
from converter.errors import UsageError
from converter.measurement.generation.options import check_values, option

#: The levels in the order of what they cost; each includes those before it.
WEIGHTS, VELOCITY, IMAGES = LEVELS = ("weights", "velocity", "images")


@dataclass(frozen=True)
class WeightOptions:
    """How the weights of an original are quantized to be measured, for `ablate` and `search`."""

    jobs: int | None = field(default=None, metadata={"help": "Threads.  [default: one for each core]", "kind": "count"})
    memory: int | None = field(
        default=None,
        metadata={
            "help": "Maximum memory for weights at one time while they are quantized; Python, torch and the model need "
            "more.  [default: 256MB, or what the largest tensor needs]",
            "kind": "size",
        },
    )
    quantize_from: str = option("bfloat16", "As for `convert`: bfloat16 or float32.", choices=("bfloat16", "float32"))
    restart: bool = option(False, "Delete the measurements of an earlier run.")

    @property
    def conversion(self) -> ConvertOptions:
        """The same as for a conversion."""
        return ConvertOptions(quantize_from=self.quantize_from, jobs=self.jobs, memory=self.memory)


@dataclass(frozen=True)
class AblateOptions(WeightOptions):
    """How to measure variants; prompts and ``GenerateOptions`` come in addition."""

    level: str = option(
        WEIGHTS,
        "What is measured: weights (errors of the weights, from the files alone), velocity (also the error of what "
        "the denoiser computes, for a few images of the original), images (also images of all prompts).",
        choices=LEVELS,
    )
    variants: Path | None = field(
        default=None,
        metadata={
            "help": "TOML file with the variants to measure.  [default: everything linear, all but one family, one "
            "family alone, and the same in int8]",
            "kind": "path",
        },
    )
    velocity_prompts: int = option(
        3, "Number of prompts, the first ones of the suite, whose velocity is compared.", range=(1, 10_000)
    )
    calls: int = option(
        6, "Number of denoising steps of each of these prompts in which the velocity is compared.", range=(1, 1000)
    )
    calibration: Path | None = field(
        default=None,
        metadata={
            "help": "File to write the second moments of the inputs of all layers to, gathered in the same steps; for "
            "`convert --rounding calibrated`. Not at the level of weights.",
            "kind": "path",
            "option": "--write-calibration",
        },
    )
    skip_baseline: bool = option(
        False,
        "Do not generate the baseline: images of the original with a second seed, which show how much images differ by "
        "the seed alone.",
        option="--no-baseline",
    )

    def __post_init__(self) -> None:
        """Refuse values out of range.

        Raises:
            UsageError: there is such a value.
        """
        check_values(self)
        if self.calibration is not None and self.level == WEIGHTS:
            raise UsageError(
                "--write-calibration: at the level of weights, no inputs are gathered", "Add --level velocity."
            )

    def includes(self, level: str) -> bool:
        """Whether a level is measured."""
        return LEVELS.index(level) <= LEVELS.index(self.level)
