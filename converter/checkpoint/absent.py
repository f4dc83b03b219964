"""Errors for a path at which no weights can be opened; they say what is there instead."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from converter.checkpoint.weights import (
    FOREIGN_SUFFIXES,
    PICKLE_SUFFIXES,
    WEIGHTS_SUFFIX,
    is_one_of_shards,
    is_weight_name,
    variants_in,
)
from converter.errors import InputError, MissingInput, UnsupportedCheckpoint


def no_weights(folder: Path, names: Sequence[str]) -> InputError:
    """The error for a folder in which no weights can be chosen.

    Args:
        folder: the folder, which has no ``model_index.json``.
        names: names of the files and folders in it.
    """
    if variants := variants_in(names):
        reason = f"contains only variants of the weights: {', '.join(variants)}"
        return MissingInput(folder, reason, "Name one with --variant. A checkpoint to verify needs plain names.")
    present = [name for name in names if name.endswith(WEIGHTS_SUFFIX)]
    if present:
        reason = f"contains {len(present)} safetensors files and no index"
        are_shards = any(map(is_one_of_shards, present))
        return MissingInput(folder, reason, "Download the index too." if are_shards else "Give one of the files.")
    pickles = [name for name in names if name.endswith(PICKLE_SUFFIXES)]
    if pickles:
        return pickle_error(folder / pickles[0])
    foreign = [name for name in names if name.endswith(FOREIGN_SUFFIXES)]
    if foreign:
        reason = f"{folder}: contains {foreign[0]} and no safetensors weights"
        return UnsupportedCheckpoint(reason, "Use the checkpoint that it was made from.")
    folders = [name for name in names if _contains_weights(folder / name)]
    if folders:
        plural = len(folders) > 1
        reason = (
            f"{'folders' if plural else 'folder'} {', '.join(folders)} {'contain' if plural else 'contains'} weights"
        )
        return MissingInput(
            folder,
            f"has no model_index.json; its {reason}",
            f"Give {'one of them' if plural else 'that folder'}, or download model_index.json.",
        )
    return MissingInput(folder, "contains no safetensors weights", "Check the path.")


def _contains_weights(folder: Path) -> bool:
    try:
        return any(is_weight_name(file.name) or file.suffix == WEIGHTS_SUFFIX for file in folder.iterdir())
    except OSError:
        # A file, or a folder that may not be read.
        return False


def pickle_error(file: Path) -> UnsupportedCheckpoint:
    """The error for a file that may contain a pickle."""
    return UnsupportedCheckpoint(
        f"{file}: may contain a pickle, which can run code when it is opened; lensconv never opens one",
        "Convert it to safetensors first.",
    )
