"""The options of a search as one value; the command line makes its options from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from converter.errors import UsageError
from converter.measurement.ablation.options import WeightOptions
from converter.measurement.generation.options import check_values, option

#: Where harms come from, in the order of what they cost.
SCORES = (WEIGHTS, INPUTS, GRADIENTS, MEASURED) = ("weights", "inputs", "gradients", "measured")
#: Scores whose harms are squares of relative errors of the velocity, so that they predict one.
PREDICTING = (GRADIENTS, MEASURED)


@dataclass(frozen=True)
class SearchOptions(WeightOptions):
    """What to search for, and how; prompts and ``GenerateOptions`` come in addition."""

    budget: int | None = field(
        default=None,
        metadata={
            "help": "Largest footprint of the denoiser, such as 3.9GB; the recipe with the least harm within it is "
            "chosen.",
            "kind": "size",
        },
    )
    error: float | None = option(
        None,
        "Largest predicted velocity error, such as 0.05; the smallest recipe below it is chosen.",
        range=(0.0, 1e6),
    )
    front: int | None = option(
        None,
        "Number of recipes, for budgets spread evenly from the smallest to the largest footprint.",
        range=(2, 1000),
    )
    candidates: str = option(
        "uint4,int5,int6,int8,BF16",
        "Ways to store a module: dtypes of SDNQ, each also with +svd or +hadamard; BF16 is not quantized.",
    )
    score: str = option(
        GRADIENTS,
        "Where the harm of a module comes from: weights (their errors alone), inputs (errors weighted by the inputs of "
        "the layer), gradients (effect of the errors on the denoiser's output, by backward passes), measured (each "
        "module and candidate tried by itself).",
        choices=SCORES,
    )
    scores: Path | None = field(
        default=None,
        metadata={"help": "scores.json of an earlier search, to use its scores instead of measuring.", "kind": "path"},
    )
    rules_file: Path | None = field(
        default=None,
        metadata={
            "help": "TOML file with rules: what must be kept, have so many bits, or be the same.",
            "kind": "path",
            "option": "--rules",
        },
    )
    rules: tuple[str, ...] = ()
    """Rules as on the command line: ``GLOB=keep``, ``GLOB=include``, ``GLOB>=DTYPE`` or ``GLOB,GLOB=same``."""
    calibration_prompts: int = option(
        4, "Number of prompts, the first ones of the suite, by which harms are measured.", range=(1, 10_000)
    )
    calls: int = option(
        6, "Number of denoising steps of each of these prompts by which harms are measured.", range=(1, 1000)
    )
    probes: int = option(4, "Backward passes for each of these steps, for gradients.", range=(1, 1000))
    checkpointing: bool = option(
        False, "For gradients, compute blocks again in the backward pass, which takes time and saves memory."
    )
    check: bool = option(
        False,
        "Convert with each recipe found, compare its size with the predicted one, and compare its velocity error with "
        "that of uniform recipes, for the other prompts of the suite.",
    )
    overwrite: bool = option(False, "Replace existing recipes.")

    def __post_init__(self) -> None:
        """Refuse values out of range.

        Raises:
            UsageError: there is such a value, or not exactly one of budget, error and front was given.
        """
        check_values(self)
        goals = [name for name in ("budget", "error", "front") if getattr(self, name) is not None]
        if len(goals) != 1:
            reason = (
                f"{' and '.join(f'--{name}' for name in goals)} cannot be combined" if goals else "nothing to reach"
            )
            raise UsageError(reason, "Give one of --budget, --error and --front.")
        if self.budget is not None and self.budget < 1:
            raise UsageError(f"--budget {self.budget}: must be at least one byte")
        if self.error is not None and self.scores is None:
            require_prediction(self.score)


def require_prediction(score: str) -> None:
    """Refuse ``--error`` where harms predict none.

    Raises:
        UsageError: they come from ``score``, by which modules can only be ranked.
    """
    if score not in PREDICTING:
        raise UsageError(
            f"--error: scores by {score} rank modules, but predict no error of the velocity",
            f"Use --budget, or --score {' or '.join(PREDICTING)}.",
        )
