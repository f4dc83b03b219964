"""The recorded calls of an original, which an interrupted run may have left."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from converter.checkpoint.checksum import file_sha256
from converter.cluster.sharing import Work
from converter.console import Progress, Reporter
from converter.measurement.benchmark.repos import ImageSettings
from converter.measurement.sensitivity.call_files import count_calls
from converter.measurement.sensitivity.journal import RecordedCalls, SensitivityJournal
from converter.measurement.sensitivity.placed import Originals


def find_calls(
    originals: Originals,
    prompts: Mapping[str, ImageSettings],
    count: int,
    file: Path,
    journal: SensitivityJournal,
    reporter: Reporter,
) -> int:
    """Find the original's calls of all prompts in a file, as an interrupted run recorded them, or record them now.

    Args:
        originals: where the original runs.
        prompts: settings of the images, by the ids of their prompts.
        count: how many steps of each prompt are recorded.
        file: of the work folder, where an interrupted run has left them, and where they are kept.
        journal: says which ones those are.
        reporter: is told if the original computes other numbers now.

    Returns:
        The number of calls.

    Raises: as ``record_calls``, ``read_calls`` and ``write_calls``.
    """
    noted = journal.calls
    is_same = noted is not None and noted.prompts == list(prompts)
    if noted is not None and is_same and file_sha256(file) == noted.sha256:
        return count_calls(file)
    digests = list[str]()
    originals.run(
        Work({"": [count]}), lambda original, steps: digests.append(original.record(prompts, steps)), Progress()
    )
    recorded = RecordedCalls(list(prompts), digests[-1])
    if is_same and recorded != noted:
        reporter.note(
            "the original computes other numbers than in the earlier run, perhaps with other threads; each figure "
            "is from a comparison with those of its own run"
        )
    journal.note_calls(recorded)
    return count_calls(file)
