"""A sweep: several quantized models of one original, each measured as a benchmark; the original is drawn once."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.checkpoint.files import is_plain_name
from converter.console import SILENT, Reporter
from converter.errors import OutputError, UsageError, printable
from converter.hub.addresses import is_address, parse_address
from converter.measurement.benchmark.bench import addresses_of, measuring_place, note_differences, note_shared, run
from converter.measurement.benchmark.journal import JOURNAL_NAME
from converter.measurement.benchmark.options import BenchOptions
from converter.measurement.benchmark.preparing import PreparedBench, prepare
from converter.measurement.benchmark.report import BenchReport
from converter.measurement.benchmark.trace_files import remove_traces
from converter.measurement.evidence.files import write_evidence
from converter.measurement.evidence.names import SWEEP_NAME, SWEEP_TABLE_NAME
from converter.measurement.evidence.sweep import describe_sweep, read_sweep
from converter.measurement.generation.options import GenerateOptions
from converter.measurement.generation.places import pipeline_folders
from converter.measurement.prompts.suite import PromptSuite


@dataclass(frozen=True)
class SweepReport:
    """The measurements of a sweep."""

    output: Path
    models: Mapping[str, BenchReport]
    """Of each quantized model, by the name of its folder of measurements."""
    content: Mapping[str, Any]
    """Content of ``sweep.json``."""
    elapsed_s: float

    @property
    def ok(self) -> bool:
        """Whether everything was measured."""
        return all(report.ok for report in self.models.values())

    def to_dict(self) -> dict[str, Any]:
        """Return what ``lensconv bench --json`` shows of several quantized models."""
        return {
            "ok": self.ok,
            "output": str(self.output),
            "files": [SWEEP_NAME],
            "models": [
                {"name": name, **report.to_dict(), "taken_over": report.taken_over}
                for name, report in self.models.items()
            ],
            "elapsed_s": self.elapsed_s,
        }


def sweep(
    original: Path | str,
    quantized: Sequence[Path | str],
    output: Path,
    suite: PromptSuite,
    options: BenchOptions | None = None,
    drawing: GenerateOptions | None = None,
    *,
    ray: str | None = None,
    reporter: Reporter = SILENT,
) -> SweepReport:
    """Measure the original and several quantized models, and compare them in ``sweep.json``.

    Each model gets a folder of measurements, as ``bench`` makes it, with the name of its repo. What is measured of the
    original alone is measured for the first model and taken over for the others. The timed prompts are the exception:
    with three or more pairs, the original draws them again beside each model, since only times of adjacent processes
    are compared. A run that was killed continues where it stopped.

    Args:
        original: as for ``bench``.
        quantized: at least one; the folders, or the repos of the addresses, have different names.
        output: folder for ``sweep.json`` and the folders of measurements; created if it does not exist.
        suite: the prompts.
        options: how to measure.
        drawing: how to generate images, as for ``bench``.
        ray: as for ``bench``.
        reporter: shows progress and notes.

    Raises:
        UsageError: two models have the same name or are the same, or a name cannot be that of a folder.
        LensconvError: as for ``bench``. All models are checked before the first image is generated.
    """
    started = time.monotonic()
    options, drawing = options or BenchOptions(), drawing or GenerateOptions()
    members = name_members(quantized)
    named = [original, *quantized]
    with (
        measuring_place(ray, drawing.device, reporter) as cluster,
        pipeline_folders(named, reporter) as (first, *folders),
    ):
        _refuse_same(folders)
        _refuse_output(output, folders)
        places = {output / name: folder for name, folder in zip(members, folders, strict=True)}
        addresses = addresses_of(named, [first, *folders])
        with prepare(first, places, suite, options, drawing, reporter, cluster, addresses) as prepared:
            reports = _measure(prepared, reporter)
    write_evidence(output, SWEEP_NAME, describe_sweep(output, members))
    models = dict(zip(members, reports, strict=True))
    return SweepReport(output, models, read_sweep(output), time.monotonic() - started)


def name_members(quantized: Sequence[Path | str]) -> list[str]:
    """Return the names of the folders of measurements: those of the repos.

    Args:
        quantized: folders and addresses.

    Raises:
        UsageError: there are none, two have the same name, or a name cannot be that of a folder.
    """
    if not quantized:
        raise UsageError("no quantized model is named", "Name at least one.")
    found: dict[str, Path | str] = {}
    for place in quantized:
        name = _name(place)
        # Text that cannot be shown cannot be in a file of measurements either.
        if not is_plain_name(name) or printable(name) != name or name in (SWEEP_NAME, SWEEP_TABLE_NAME):
            raise UsageError(
                f"{printable(str(place))}: its measurements cannot be in a folder called {printable(name)!r}",
                "Rename the folder of the model.",
            )
        if name in found:
            raise UsageError(
                f"{found[name]} and {place} have the same name, {name}",
                "Each model gets a folder of measurements with its name. Name each model once, or rename one.",
            )
        found[name] = place
    return [*found]


def _name(place: Path | str) -> str:
    if isinstance(place, str) and is_address(place):
        return parse_address(place).repo_id.rpartition("/")[2]
    # The path of the folder as it is given, but with a name where it ends with dots.
    path = Path(place)
    return path.name if path.name not in ("", "..") else path.resolve().name


def _refuse_same(folders: Sequence[Path]) -> None:
    """Refuse a repo that was named twice, for example by a link."""
    for number, folder in enumerate(folders):
        for other in folders[:number]:
            if folder.exists() and other.exists() and folder.samefile(other):
                raise UsageError(f"{other} and {folder} are the same folder", "Name each model once.")


def _refuse_output(output: Path, folders: Sequence[Path]) -> None:
    """Refuse a folder that is not one of a sweep.

    Raises:
        OutputError: it is inside a quantized model, or contains the measurements of one benchmark.
    """
    for folder in folders:
        if output.resolve().is_relative_to(folder.resolve()):
            raise OutputError(f"{output}: is inside {folder}", "Choose another folder with --out.")
    if (output / JOURNAL_NAME).exists():
        raise OutputError(
            f"{output}: contains the measurements of one quantized model", "Choose another folder with --out."
        )


def _measure(prepared: Sequence[PreparedBench], reporter: Reporter) -> list[BenchReport]:
    """Measure one model after the other. The first one's traces stay until all models have repeated them."""
    first, reports = prepared[0], []
    note_shared(first, reporter)
    for number, member in enumerate(prepared, 1):
        reporter.note(f"{member.work.output.name} ({number} of {len(prepared)})")
        note_differences(member.subjects, reporter)
        reports.append(run(member, reporter, None if member is first else first))
    for member in prepared:
        remove_traces(member.work.output)
    return reports
