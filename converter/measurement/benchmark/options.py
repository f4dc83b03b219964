"""The options of a benchmark as one value; the command line makes its options from it."""

from __future__ import annotations

from dataclasses import dataclass

from converter.errors import UsageError
from converter.measurement.evidence.names import STANDARD
from converter.measurement.generation.options import check_values, option

#: Kinds of offloading, by the names of the modes on the command line.
MODES = {"standard": "none", "offload": "model", "sequential": "sequential"}


@dataclass(frozen=True)
class BenchOptions:
    """How to measure; prompts and ``GenerateOptions`` come in addition."""

    mode: str = option(
        "standard,offload",
        "Where the weights are: standard (all on the device), offload (each component on the CPU until it runs, as "
        "with `generate --offload model`), sequential (each layer); separate several with commas.",
    )
    pairs: int = option(
        4,
        "Number of pairs of processes, one for each model. Which model is first alternates, so use an even number. "
        "Times are compared with three or more pairs.",
        range=(1, 100),
    )
    timing_prompts: int = option(
        3,
        "Number of prompts whose times are compared, the first ones of the suite. The first pair generates images of "
        "all prompts, the others only of these. 0 is all.",
        range=(0, 10_000),
    )
    timeout: float = option(3600.0, "Seconds after which loading, or one image, counts as hanging.", range=(1.0, 1e6))
    trajectory_prompts: int = option(
        3,
        "Lens only: number of prompts, the first ones of the suite, along whose trajectories the velocity error of the "
        "quantized model is measured, after all pairs; and both models generate an image of an empty prompt. 0 skips "
        "both.",
        range=(0, 10_000),
    )
    trajectory_blocks: bool = option(
        False,
        "Lens only: also measure the error after each block of the transformer, in the first, the middle and the last "
        "step.",
    )
    skip_baseline: bool = option(
        False,
        "Do not generate the baseline: images of the original with a second seed, which show how much "
        "images differ by the seed alone.",
        option="--no-baseline",
    )
    restart: bool = option(False, "Delete the measurements of an earlier run.")

    def __post_init__(self) -> None:
        """Refuse unknown modes and values out of range.

        Raises:
            UsageError: there is such a value.
        """
        check_values(self)
        if not self._mode_names or not self._mode_names <= MODES.keys():
            raise UsageError(f"--mode {self.mode}: must be one or more of {', '.join(MODES)}")
        if self.timing_prompts == 1 and self._mode_names != {STANDARD}:
            raise UsageError(
                "--timing-prompts 1: the first prompt of the modes with offloading is cold, and is not compared",
                "Use at least 2, or --mode standard.",
            )

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes, in the order of ``MODES``."""
        return tuple(name for name in MODES if name in self._mode_names)

    @property
    def _mode_names(self) -> set[str]:
        return {name.strip() for name in self.mode.split(",") if name.strip()}
