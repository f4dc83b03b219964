"""What ``--overwrite`` may replace."""

from __future__ import annotations

from pathlib import Path

from converter.checkpoint.source import INDEX_SUFFIX, PIPELINE_INDEX, WEIGHTS_SUFFIX, pipeline_components, read_json
from converter.conversion.release.manifest import (
    CONFIG_NAME,
    MANIFEST_NAME,
    QUANTIZATION_CONFIG_NAME,
    STATE_FOLDER,
    SUMMARY_NAME,
)
from converter.errors import InputError, OutputError, printable

#: Files beside the weights that a checkpoint may hold without a manifest that lists them.
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
    """Let ``--overwrite`` replace checkpoints, and no folder that holds anything else.

    Raises:
        OutputError: a file in the folder is no part of a checkpoint, or there are no weights.
    """
    where = printable(str(output))
    # What was noted about the old release goes with it.
    noted = output / STATE_FOLDER
    files = sorted(file for file in output.rglob("*") if not file.is_dir() and noted not in file.parents)
    if files and not any(file.suffix == WEIGHTS_SUFFIX for file in files):
        raise OutputError(f"{where}: holds no checkpoint, which is all that --overwrite replaces")
    known = {*_CHECKPOINT_FILES}
    components: tuple[str, ...] = ()
    try:
        if (output / MANIFEST_NAME).is_file():
            listed = read_json(output / MANIFEST_NAME).get("files")
            known |= {str(file.get("name")) for file in listed or () if isinstance(file, dict)}
        elif (output / PIPELINE_INDEX).is_file():
            components = pipeline_components(output)
    except InputError:
        # What cannot be understood vouches for nothing.
        components = ()
    for file in files:
        path = file.relative_to(output)
        is_weights = path.name.endswith((WEIGHTS_SUFFIX, INDEX_SUFFIX))
        if not (is_weights or path.as_posix() in known or (len(path.parts) > 1 and path.parts[0] in components)):
            raise OutputError(
                f"{file}: is no part of a checkpoint, and --overwrite would delete it",
                "Move it elsewhere, or choose another folder.",
            )
