"""How to convert, as one value; the command line makes its options from it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from converter.checkpoint.layout import DEFAULT_SHARD_BYTES

#: More threads than this wait for memory, not for a core.
MAXIMUM_JOBS = 16


@dataclass(frozen=True)
class ConvertOptions:
    """How to convert; what to convert and into what is not among it."""

    component: str | None = None
    """Which component of a pipeline repo; its denoiser by default."""
    settings: tuple[str, ...] = ()
    """Rules beside the recipe's, written ``GLOB=keep`` or ``GLOB=DTYPE``; the last match wins."""
    jobs: int | None = field(
        default=None, metadata={"help": "Threads.  [default: one for each core, up to 16]", "kind": "count"}
    )
    memory: int | None = field(
        default=None,
        metadata={
            "help": "Weights and results in memory at a time.  [default: 256MB, or what the largest tensor needs]",
            "kind": "size",
        },
    )
    quantize_from: str = field(
        default="bfloat16",
        metadata={
            "help": "bfloat16 rounds weights first, as a loader does; float32 quantizes what the file holds.",
            "choices": ("bfloat16", "float32"),
        },
    )
    shard_bytes: int = field(
        default=DEFAULT_SHARD_BYTES,
        metadata={
            "help": "Most bytes of tensors in a file.  [default: 5GB]",
            "kind": "size",
            "option": "--max-shard-size",
            "shown": False,
        },
    )
    device: str = field(default="cpu", metadata={"help": "Where to quantize, by torch's name for it."})
    allow_nonfinite: bool = field(
        default=False, metadata={"help": "Convert and count NaN and infinity instead of refusing them."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace a checkpoint that is in OUT's place."})
    restart: bool = field(default=False, metadata={"help": "Drop what an interrupted run has done."})

    @property
    def workers(self) -> int:
        """Threads to use."""
        return self.jobs or min(len(os.sched_getaffinity(0)), MAXIMUM_JOBS)
