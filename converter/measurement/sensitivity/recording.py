"""The recorded calls of an original, which an interrupted run may have left."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from converter.checkpoint.checksum import file_sha256
from converter.checkpoint.writer import writing
from converter.console import Reporter
from converter.measurement.benchmark.repos import ImageSettings
from converter.measurement.sensitivity.call_files import read_calls, write_calls
from converter.measurement.sensitivity.calls import Call, record_calls
from converter.measurement.sensitivity.journal import RecordedCalls, SensitivityJournal
from converter.measurement.sensitivity.loaded import LoadedOriginal


def find_calls(
    loaded: LoadedOriginal,
    prompts: Mapping[str, ImageSettings],
    count: int,
    file: Path,
    journal: SensitivityJournal,
    reporter: Reporter,
) -> list[Call]:
    """Return the original's calls of all prompts, as an interrupted run recorded them or recorded now.

    Args:
        loaded: the original, unchanged.
        prompts: settings of the images, by the ids of their prompts.
        count: how many steps of each prompt are recorded.
        file: where an interrupted run has left them, and where they are kept.
        journal: says which ones those are.
        reporter: is told if the original computes other numbers now.

    Raises: as ``record_calls``, ``read_calls`` and ``write_calls``.
    """
    noted = journal.calls
    is_same = noted is not None and noted.prompts == list(prompts)
    if noted is not None and is_same and file_sha256(file) == noted.sha256:
        return read_calls(file)
    calls = record_calls(loaded, prompts, count)
    with writing(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
    recorded = RecordedCalls(list(prompts), write_calls(calls, file))
    if is_same and recorded != noted:
        reporter.note(
            "the original computes other numbers than in the earlier run, perhaps with other threads; each figure "
            "is from a comparison with those of its own run"
        )
    journal.note_calls(recorded)
    return calls
