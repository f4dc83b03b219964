"""The job of a worker and the events that it answers with, as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

#: Added to the seed of a prompt for its baseline, the image that shows how much seeds differ.
BASELINE_SEED_OFFSET = 1000

# Events of a worker, in their order; each is an object with one of these as its ``event``.
LOADING = "loading"
LOADED = "loaded"
GENERATING = "generating"
GENERATED = "generated"
#: Loading or an image failed; the worker ends.
FAILED = "failed"
#: Something failed that has nothing to do with the model, such as a full disk; the benchmark ends.
ABORTED = "aborted"
PROBED = "probed"


@dataclass(frozen=True)
class Task:
    """One image, or the steps of a trajectory that are repeated."""

    key: str
    """Its key in the journal; empty for a first image that only warms up."""
    settings: dict[str, Any]
    """Fields of ``Settings``."""
    image: str | None
    """Path of its PNG; None if it is not kept."""
    trace: str | None = None
    """Path of the file for its trajectory; None if it is not recorded."""
    replay: str | None = None
    """Path of the original's trajectory whose steps are repeated; None if an image is generated."""
    blocks: bool = False
    """Whether hidden states after blocks are recorded, too."""

    def to_json(self) -> str:
        """Return the task as one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Task:
        """Parse what ``to_json`` returned."""
        return cls(**json.loads(text))


@dataclass(frozen=True)
class Job:
    """The work of one worker process: load a pipeline, and generate images."""

    repo: str
    states: dict[str, list[int]]
    """States of the weight files, which must still be those that were hashed."""
    offload: str
    """As in ``GenerateOptions``."""
    device: str
    dtype: str
    tasks: list[Task]
    adapters: list[tuple[str, float]] = field(default_factory=list)
    """Files and scales of LoRA adapters that are added to the weights while they are loaded, in this order."""
    adapted: list[str] = field(default_factory=list)
    """The components to which they are added."""
    probe: bool = False
    """Only describe the machine."""

    def to_json(self) -> str:
        """Return the job as one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        """Parse what ``to_json`` returned."""
        content = json.loads(text)
        return cls(**{**content, "tasks": [Task(**task) for task in content["tasks"]]})
