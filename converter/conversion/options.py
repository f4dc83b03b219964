"""How to convert, as one value; the options of the command line are made from it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from converter.checkpoint.layout import DEFAULT_SHARD_BYTES
from converter.conversion.adapters.choice import AdapterChoice
from converter.conversion.recipe.recipe import ROUNDINGS

#: More threads than this wait for memory, not for a core.
MAXIMUM_JOBS = 16
#: The same where a device other than the CPU quantizes; so many keep it busy, with pieces that fit the default memory.
MAXIMUM_DEVICE_JOBS = 4
#: More connections than this gain nothing on one machine, and servers may refuse them.
MAXIMUM_CONNECTIONS = 32


@dataclass(frozen=True)
class ConvertOptions:
    """How to convert; source and output are not part of it."""

    components: tuple[str, ...] = ()
    """Which components of a pipeline repo; ``all`` stands for those that are worth it. By default its denoiser."""
    component_only: bool = field(
        default=False,
        metadata={"help": "Make a folder of the converted component alone, without the rest of its pipeline."},
    )
    variant: str | None = field(
        default=None,
        metadata={
            "help": "Variant of the weights to use, such as fp16; components without it use their plain weights.",
        },
    )
    settings: tuple[str, ...] = ()
    """Rules after the recipe's own, written ``GLOB=keep`` or ``GLOB=DTYPE``; the last match wins."""
    adapters: tuple[AdapterChoice, ...] = ()
    """LoRA adapters to add to the weights first, in this order; see ``parse_choice``."""
    jobs: int | None = field(
        default=None,
        metadata={"help": "Threads.  [default: one for each core, up to 16; with --device, up to 4]", "kind": "count"},
    )
    connections: int = field(
        default=4,
        metadata={
            "help": "Files of hf:// that are read at a time, each over one connection and by one thread.",
            "range": (1, MAXIMUM_CONNECTIONS),
        },
    )
    memory: int | None = field(
        default=None,
        metadata={
            "help": "Maximum memory for weights and results at one time; Python and torch need more.  "
            "[default: 256MB, or what the largest tensor needs]",
            "kind": "size",
        },
    )
    quantize_from: str = field(
        default="bfloat16",
        metadata={
            "help": "bfloat16: round weights to bfloat16 first, as when a model is loaded in it; float32: quantize the "
            "numbers in the file.",
            "choices": ("bfloat16", "float32"),
        },
    )
    rounding: str | None = field(
        default=None,
        metadata={
            "help": "nearest: the scales and codes of SDNQ; scale: search scales and zero points for the least squared "
            "error; calibrated: let codes make up for each other's errors, with inputs like those of --calibration. "
            "Files have the same size.  [default: what the recipe says, else nearest]",
            "choices": ROUNDINGS,
        },
    )
    calibration: Path | None = field(
        default=None,
        metadata={"help": "File with second moments of the inputs, for calibrated rounding.", "kind": "path"},
    )
    shard_bytes: int = field(
        default=DEFAULT_SHARD_BYTES,
        metadata={
            "help": "Maximum size of the tensors in one file.  [default: 5GB]",
            "kind": "size",
            "option": "--max-shard-size",
            "shown": False,
        },
    )
    device: str = field(default="cpu", metadata={"help": "Device to quantize on, by its name in torch, such as cuda."})
    allow_nonfinite: bool = field(
        default=False, metadata={"help": "Convert and count NaN and infinity instead of refusing them."}
    )
    force: bool = field(
        default=False,
        metadata={"help": "Convert although no loader reads the result correctly (scales quantized for all modules)."},
    )
    cache: bool = field(
        default=True,
        metadata={
            "help": "Do not use or keep what SDNQ planned, which makes later conversions of such a model faster. It is "
            "in the folder that LENSCONV_CACHE names.  [default: lensconv in the user's cache]",
            "option": "--no-cache",
        },
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace an existing checkpoint at OUT."})
    restart: bool = field(default=False, metadata={"help": "Delete the work of an interrupted run, and start over."})

    @property
    def workers(self) -> int:
        """Threads to use."""
        return self.jobs or min(len(os.sched_getaffinity(0)), MAXIMUM_JOBS if self.is_on_cpu else MAXIMUM_DEVICE_JOBS)

    @property
    def from_float32(self) -> bool:
        """Whether weights are quantized from float32, without rounding them to bfloat16 first."""
        return self.quantize_from == "float32"

    @property
    def is_on_cpu(self) -> bool:
        """Whether weights are quantized on the CPU, and torch is not needed for lensconv's kernel."""
        return self.device == "cpu"
