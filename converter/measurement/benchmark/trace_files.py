"""Where trajectories and the flat field are: in the folder of measurements, and in the journal."""

from __future__ import annotations

import shutil
from pathlib import Path

from converter.checkpoint.writer import writing
from converter.measurement.benchmark.journal import Cell, Journal
from converter.measurement.evidence.names import QUANTIZED
from converter.measurement.generation.memory import DTYPE_BYTES
from converter.measurement.generation.repo import PipelineRepo
from converter.measurement.generation.settings import Settings
from converter.models.lens.layout import LensConfig

#: Folder of the traces in that of the measurements. It is removed at the end.
TRACES_FOLDER = ".trajectory"
#: Kind of the images of an empty prompt, and the name of their folder.
FLAT_FIELD = "flat-field"
#: Key of a flat field in the journal; prompts do not have such an id.
FLAT_KEY = "(flat field)"
#: Seed of both images of an empty prompt.
FLAT_SEED = 0
#: Most text tokens of a prompt, as in ``predict_memory``.
_TEXT_TOKENS = 415


def trace_file(output: Path, prompt: str) -> Path:
    """The file of the original's trajectory of a prompt."""
    return output / TRACES_FOLDER / f"{prompt}.safetensors"


def trace_key(prompt: str) -> str:
    """The key of the original's trajectory in the journal."""
    return f"(trace) {prompt}"


def replay_key(prompt: str) -> str:
    """The key of the quantized model's errors along it."""
    return f"(trajectory) {prompt}"


def flat_name(model: str) -> str:
    """The path of an image of an empty prompt, in the folder of measurements."""
    return f"images/{FLAT_FIELD}/{FLAT_FIELD}-{FLAT_SEED}-{model}.png"


def is_replayed(journal: Journal, mode: str, prompt: str, *, blocks: bool) -> bool:
    """Whether errors along the trajectory of a prompt are measured, with those after blocks if they are asked for."""
    figures = journal.measured.get((Cell(mode, 0, 0, QUANTIZED), replay_key(prompt)))
    return figures is not None and (not blocks or "blocks" in figures)


def remove_traces(output: Path) -> None:
    """Remove all traces in a folder of measurements.

    Raises:
        OutputError: they cannot be removed.
    """
    folder = output / TRACES_FOLDER
    if folder.exists():
        with writing(folder):
            shutil.rmtree(folder)


def trace_bytes(repo: PipelineRepo, settings: Settings) -> int:
    """Return the most bytes that a trace takes, without hidden states after blocks, which add little.

    Args:
        repo: the original.
        settings: of the image.

    Raises:
        UnsupportedCheckpoint: the config of the transformer cannot be used.
    """
    config = LensConfig.from_dict(repo.transformer.config, str(repo.transformer.folder))
    samples = 1 if settings.guidance == 1 else 2
    latents = settings.grid[0] * settings.grid[1] * config.in_channels
    features = samples * _TEXT_TOKENS * config.enc_hidden_dim * len(config.selected_layer_index)
    return int(DTYPE_BYTES[settings.dtype] * (2 * settings.steps * latents + features))
