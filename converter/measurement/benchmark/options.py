"""How to measure, as one value; the command line makes its options from it."""

from __future__ import annotations

from dataclasses import dataclass, field

from converter.errors import UsageError

#: Modes by their names on the command line, with the offloading that each stands for.
MODES = {"standard": "none", "offload": "model", "sequential": "sequential"}
#: Seconds; loading 30 GB from a slow disk and drawing on a CPU take long.
_TIMEOUT = 3600.0


@dataclass(frozen=True)
class BenchOptions:
    """How to measure; what is drawn, and how, is not among it."""

    mode: str = field(
        default="standard,offload",
        metadata={
            "help": "Where weights are: standard (all on the device), offload (each model on the CPU until it runs), "
            "sequential (each layer); several with commas."
        },
    )
    repeats: int = field(
        default=1,
        metadata={"help": "How often everything is measured, each time in new processes.", "range": (1, 100)},
    )
    timeout: float = field(
        default=_TIMEOUT,
        metadata={"help": "Seconds after which loading, or one image, counts as hanging.", "range": (1.0, 1e6)},
    )
    skip_baseline: bool = field(
        default=False,
        metadata={
            "help": "Do not draw the original with a second seed, by which differences are judged.",
            "option": "--no-baseline",
        },
    )
    restart: bool = field(default=False, metadata={"help": "Drop what an earlier run measured."})

    def __post_init__(self) -> None:
        """Refuse modes that do not exist.

        Raises:
            UsageError: one of them does not.
        """
        if not self.modes:
            raise UsageError(f"--mode: names none of {', '.join(MODES)}")

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes, in the order of ``MODES``."""
        names = [name.strip() for name in self.mode.split(",") if name.strip()]
        for name in names:
            if name not in MODES:
                raise UsageError(f"--mode {name}: is none of {', '.join(MODES)}")
        return tuple(name for name in MODES if name in names)
