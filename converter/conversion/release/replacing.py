"""What ``--overwrite`` may replace."""

from __future__ import annotations

from pathlib import Path

from converter.checkpoint.ignored import is_litter
from converter.checkpoint.source import PIPELINE_INDEX, pipeline_components
from converter.checkpoint.staging import Replacing
from converter.checkpoint.weights import INDEX_SUFFIX, WEIGHTS_SUFFIX
from converter.conversion.release.manifest import (
    CONFIG_NAME,
    MANIFEST_NAME,
    QUANTIZATION_CONFIG_NAME,
    STATE_FOLDER,
    SUMMARY_NAME,
    listed_names,
)
from converter.errors import InputError, OutputError

#: Files next to the weights that a checkpoint may contain without a manifest that lists them.
_CHECKPOINT_FILES = (
    CONFIG_NAME,
    MANIFEST_NAME,
    QUANTIZATION_CONFIG_NAME,
    SUMMARY_NAME,
    PIPELINE_INDEX,
    "generation_config.json",
    "README.md",
    ".gitattributes",
)


def refuse_what_is_no_checkpoint(output: Path) -> None:
    """Let ``--overwrite`` replace checkpoints, and refuse folders with other files.

    Raises:
        OutputError: a file in the folder does not belong to a checkpoint, or the folder contains no weights.
    """
    # Notes about the old release are deleted with it, and so is what programs left there for themselves.
    noted = output / STATE_FOLDER
    files = sorted(
        file
        for file in output.rglob("*")
        if not file.is_dir() and noted not in file.parents and not is_litter(file.relative_to(output).as_posix())
    )
    if files and not any(file.suffix == WEIGHTS_SUFFIX for file in files):
        raise OutputError(f"{output}: contains no checkpoint, and --overwrite replaces only checkpoints")
    known = {*_CHECKPOINT_FILES}
    components: tuple[str, ...] = ()
    try:
        listed = listed_names(output)
        if listed is not None:
            known |= listed
        elif (output / PIPELINE_INDEX).is_file():
            components = tuple(pipeline_components(output))
    except InputError:
        # A file that cannot be understood does not show that the other files belong to a checkpoint.
        components = ()
    for file in files:
        path = file.relative_to(output)
        is_weights = path.name.endswith((WEIGHTS_SUFFIX, INDEX_SUFFIX))
        if not (is_weights or path.as_posix() in known or (len(path.parts) > 1 and path.parts[0] in components)):
            raise OutputError(
                f"{file}: does not belong to a checkpoint, and --overwrite would delete it",
                "Move it elsewhere, or choose another folder.",
            )


def removal_order(file: Path) -> int:
    """When a file is removed: what the others are known by comes after them, and what is always known comes last."""
    last = (PIPELINE_INDEX, MANIFEST_NAME)
    if file.suffix == WEIGHTS_SUFFIX:
        return len(last) + 1
    return last.index(file.name) + 1 if file.name in last else 0


#: What ``--overwrite`` allows.
REPLACING_CHECKPOINTS = Replacing(refuse_what_is_no_checkpoint, removal_order)
