"""What a later benchmark of the same original takes over from the first one, so that the original draws it once.

Times are compared within pairs of adjacent processes only. So each benchmark draws the timed prompts with the original
again, unless it has too few pairs for a comparison. The journal's line comes after the file, and the sha256 in it
decides whether a file counts; so a run that was killed anywhere between continues.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from converter.checkpoint.checksum import file_sha256
from converter.checkpoint.writer import link_file, writing
from converter.measurement.benchmark.image_files import has_image
from converter.measurement.benchmark.journal import LOAD_KEY, TAKEN_OVER, Cell, is_image_key
from converter.measurement.benchmark.measuring import Bench
from converter.measurement.benchmark.pairing import timing_prompts
from converter.measurement.benchmark.trace_files import FLAT_KEY, flat_name, is_replayed, trace_file, trace_key
from converter.measurement.evidence.names import ORIGINAL
from converter.measurement.evidence.statistics import FEWEST_PAIRS


def take_over(first: Bench, later: Bench) -> None:
    """Take over what the first benchmark measured of the original alone, and what failed there in this run.

    What the first one does not have, or no longer has as it was measured, stays missing, and is measured again.

    Args:
        first: it is measured.
        later: the next one, of the same original, prompts, settings and machine.

    Raises:
        OutputError: a file cannot be written.
        DiskError: the disk is full.
    """
    for cell, key, image in _wanted(later):
        _take_figures(first, later, cell, key, image)
    if _measures_trajectories(later):
        for prompt in later.traced_prompts:
            _take_trace(first, later, prompt.id)


def count_taken_over(bench: Bench) -> int:
    """Return the number of images whose figures are those of another benchmark."""
    return sum(
        figures["worker"] == TAKEN_OVER and is_image_key(key) for (_, key), figures in bench.journal.measured.items()
    )


def _wanted(later: Bench) -> Iterator[tuple[Cell, str, str | None]]:
    """Yield cell, key and path of the image, if it is kept, of all that is missing and need not be measured again."""
    compares_times = later.options.pairs >= FEWEST_PAIRS
    timed = {prompt.id for prompt in timing_prompts(later.suite, later.options)} if compares_times else set()
    for mode in later.options.modes:
        cell = Cell(mode, 0, 0, ORIGINAL)
        for task in later.missing(cell):
            if task.key not in timed:
                yield cell, task.key, task.image
        if not compares_times and (cell, LOAD_KEY) not in later.journal.measured:
            yield cell, LOAD_KEY, None
    cell, flat = _picture_cell(later), later.output / flat_name(ORIGINAL)
    if _measures_trajectories(later) and not has_image(later.journal.measured.get((cell, FLAT_KEY), {}), flat):
        yield cell, FLAT_KEY, str(flat)


def _take_figures(first: Bench, later: Bench, cell: Cell, key: str, image: str | None) -> None:
    """Take over a line of the journal, after the image that belongs to it."""
    figures = first.journal.measured.get((cell, key))
    if (cell, key) in first.failed:
        later.failed[cell, key] = first.failed[cell, key]
        later.journal.take_over(cell, key, {"failed": first.failed[cell, key]})
    elif figures is not None and (image is None or _share(first, later, Path(image), figures.get("image_sha256"))):
        later.journal.take_over(cell, key, figures)


def _take_trace(first: Bench, later: Bench, prompt: str) -> None:
    """Take over a trajectory of the original, if its file is still there and the later benchmark needs it."""
    place = (_picture_cell(later), trace_key(prompt))
    figures, known = (bench.journal.measured.get(place) for bench in (first, later))
    blocks = later.options.trajectory_blocks
    if figures is None or is_replayed(later.journal, later.picture_mode, prompt, blocks=blocks):
        return
    is_shared = _share(first, later, trace_file(later.output, prompt), figures["sha256"])
    if is_shared and (known is None or known["sha256"] != figures["sha256"]):
        later.journal.take_over(*place, figures)


def _share(first: Bench, later: Bench, file: Path, digest: str | None) -> bool:
    """Give a file of the first benchmark its place in the later one; return whether it is there as it was measured."""
    if digest is None:
        return False
    if file_sha256(file) == digest:
        return True
    source = first.output / file.relative_to(later.output)
    if file_sha256(source) != digest:
        return False
    with writing(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
    link_file(source, file)
    return file_sha256(file) == digest


def _picture_cell(bench: Bench) -> Cell:
    return Cell(bench.picture_mode, 0, 0, ORIGINAL)


def _measures_trajectories(bench: Bench) -> bool:
    return bench.options.trajectory_prompts > 0 and bench.picture_mode in bench.options.modes
