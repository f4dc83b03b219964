"""What a worker is asked to do, and what it answers, as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

#: Seed of the image that tells how much seeds differ, less that of the prompt.
BASELINE_SEED_OFFSET = 1000

# Events of a worker, in their order; each is an object whose ``event`` says which it is.
LOADING = "loading"
LOADED = "loaded"
DRAWING = "drawing"
DRAWN = "drawn"
#: Loading or an image failed; the worker ends.
FAILED = "failed"
#: Something failed that says nothing of the model, such as a full disk; the benchmark ends.
ABORTED = "aborted"
PROBED = "probed"


@dataclass(frozen=True)
class Task:
    """One image."""

    key: str
    """By which the journal knows it; empty for one that is drawn to warm up."""
    settings: dict[str, Any]
    """Fields of ``Settings``."""
    image: str | None
    """Where its PNG goes, if it is kept."""


@dataclass(frozen=True)
class Job:
    """What one worker process does: load a pipeline, and draw images."""

    repo: str
    states: dict[str, list[int]]
    """Of the weight files, which must still be those that were hashed."""
    offload: str
    """As in ``GenerateOptions``."""
    device: str
    dtype: str
    tasks: list[Task]
    probe: bool = False
    """Only say what the machine is."""

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        """The reverse of ``to_json``."""
        content = json.loads(text)
        return cls(**{**content, "tasks": [Task(**task) for task in content["tasks"]]})
