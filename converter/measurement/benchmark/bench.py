"""A benchmark from beginning to end: both models are measured, and the files of measurements written."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from converter.checkpoint.writer import replace_file, write_error
from converter.console import SILENT, Reporter
from converter.conversion.release.manifest import SUMMARY_NAME
from converter.errors import OutputError, printable
from converter.measurement.benchmark.assembly import Assembly
from converter.measurement.benchmark.changes import refuse_changed_files
from converter.measurement.benchmark.fidelity import compare_images, compare_weights
from converter.measurement.benchmark.journal import Journal
from converter.measurement.benchmark.measuring import IMAGE_KINDS, Bench, probe_machine
from converter.measurement.benchmark.options import BenchOptions
from converter.measurement.benchmark.subjects import ORIGINAL, QUANTIZED, Subject, open_subjects
from converter.measurement.evidence.files import FORMATS, read_evidence_folder, write_evidence
from converter.measurement.evidence.names import IMAGES_NAME, MATRIX_NAME, METRICS_NAME, WEIGHTS_NAME
from converter.measurement.generation.options import GenerateOptions
from converter.measurement.generation.settings import Settings, choose_settings
from converter.measurement.prompts.suite import PromptSuite


@dataclass(frozen=True)
class BenchReport:
    """What was measured."""

    output: Path
    files: tuple[str, ...]
    """The files of measurements that were written."""
    evidence: Mapping[str, Mapping[str, Any]]
    """Their contents, by their names."""
    images: int
    """Measured in all, over models, modes and repeats."""
    resumed: int
    """Of these, by earlier runs."""
    failed: tuple[dict[str, Any], ...]
    """What could not be measured: model, mode, repeat, prompt, reason."""
    elapsed_s: float

    @property
    def ok(self) -> bool:
        """Whether everything was measured."""
        return not self.failed

    def to_dict(self) -> dict[str, Any]:
        """As ``lensconv bench --json`` shows it."""
        models = self.evidence[METRICS_NAME]["models"]
        return {
            "ok": self.ok,
            "output": str(self.output),
            "files": list(self.files),
            "images": self.images,
            "resumed": self.resumed,
            "failed": list(self.failed),
            "generation_time_s": {name: models[name].get("generation_time_s") for name in (ORIGINAL, QUANTIZED)},
            "slowdown": self.evidence[METRICS_NAME].get("slowdown"),
            "elapsed_s": self.elapsed_s,
        }


def bench(
    original: Path,
    quantized: Path,
    output: Path,
    suite: PromptSuite,
    options: BenchOptions | None = None,
    drawing: GenerateOptions | None = None,
    *,
    reporter: Reporter = SILENT,
) -> BenchReport:
    """Measure the original against the quantized model, and write what was measured.

    A run that was killed goes on where it was; what failed is tried again.

    Args:
        original: a pipeline repo.
        quantized: another one, of the same class.
        output: folder for measurements and images; made if it is not there.
        suite: the prompts.
        options: how to measure.
        drawing: how to draw; the defaults suit the original's variant. Its seed is that of each prompt.
        reporter: shows progress and notes.

    Raises:
        InputError: a repo is not what it should be or changes, the two are no pair, or a value is out of range.
        DeviceError: there is no such accelerator.
        OutputError: measurements cannot be written there, or others are there.
        DiskError: there is no space.
    """
    started = time.monotonic()
    options, drawing = options or BenchOptions(), drawing or GenerateOptions()
    _refuse_place(output, original)
    with reporter.progress("looking at the device", 1, "devices") as shown:
        environment = probe_machine(drawing.device, options.timeout, shown.refresh)
    subjects = open_subjects(original, quantized, reporter)
    settings = [
        choose_settings(subjects[0].repo, prompt.prompt, replace(drawing, seed=prompt.seed)) for prompt in suite.prompts
    ]
    by_name = {subject.name: subject for subject in subjects}
    identity = _identity(subjects, suite, settings[0], environment)
    with Journal(output, identity, restart=options.restart) as journal:
        if options.restart:
            _drop_earlier(output, quantized)
        elif journal.is_new:
            _refuse_foreign(output, quantized)
        _note_differences(subjects, reporter)
        work = Bench(output, by_name, suite, settings, options, drawing.device, journal)
        total = sum(len(work.tasks(cell)) for cell in work.cells)
        missing = sum(len(work.missing(cell)) for cell in work.cells)
        if missing < total:
            reporter.note(f"{total - missing} of {total} images were measured by an earlier run")
        with reporter.progress("measuring", total, "images") as shown:
            shown.skip(total - missing)
            work.measure(shown)
        for subject in subjects:
            refuse_changed_files(subject.states)
        evidence = Assembly(journal, suite, settings, by_name, environment).files()
        for name, content in evidence.items():
            write_evidence(output, name, content)
        _copy_summary(subjects[1], output)
        comparisons = {
            IMAGES_NAME: compare_images(output, evidence[MATRIX_NAME], reporter),
            WEIGHTS_NAME: compare_weights(by_name, reporter),
        }
        for name, found in comparisons.items():
            if found is not None:
                write_evidence(output, name, found)
                evidence[name] = found
        # What a reader would refuse is not given to one.
        read_evidence_folder(output)
    failed = tuple(
        {"model": cell.model, "mode": cell.mode, "repeat": cell.repeat, "prompt": key, "reason": reason}
        for (cell, key), reason in work.failed.items()
    )
    return BenchReport(
        output=output,
        files=tuple(name for name in FORMATS if (output / name).exists()),
        evidence=evidence,
        images=total - len(failed),
        resumed=total - missing,
        failed=failed,
        elapsed_s=time.monotonic() - started,
    )


def _refuse_place(output: Path, original: Path) -> None:
    """Refuse to write into the original, through links, or where no folder can be.

    Raises:
        OutputError: it would be.
    """
    where = printable(str(output))
    if output.resolve().is_relative_to(original.resolve()):
        raise OutputError(f"{where}: lies inside the original repo", "Measure into another folder.")
    if output.exists() and not output.is_dir():
        raise OutputError(f"{where}: is no folder", "Choose another name.")
    for place in (output / "images", *(output / "images" / kind for kind in IMAGE_KINDS)):
        if place.is_symlink():
            raise OutputError(f"{place}: is a link, which may lead elsewhere", "Remove it.")


def _refuse_foreign(output: Path, quantized: Path) -> None:
    """Refuse a folder that holds files of another benchmark, which would stand beside those of this one.

    Raises:
        OutputError: it does.
    """
    for name in FORMATS:
        # A release holds a summary of its own.
        is_own = name == SUMMARY_NAME and output.resolve() == quantized.resolve()
        if (output / name).exists() and not is_own:
            raise OutputError(
                f"{output / name}: is of another benchmark, whose journal is not here",
                "Measure into another folder, or drop it with --restart.",
            )


def _identity(
    subjects: Sequence[Subject], suite: PromptSuite, settings: Settings, environment: Mapping[str, Any]
) -> dict[str, Any]:
    """All that figures depend on. One that differs makes another benchmark."""
    shared = asdict(settings)
    del shared["prompt"], shared["seed"]
    return {
        "sources": {subject.name: subject.components for subject in subjects},
        "suite": suite.sha256,
        "settings": shared,
        "environment": dict(environment),
    }


def _note_differences(subjects: Sequence[Subject], reporter: Reporter) -> None:
    """Say when more than the transformer differs, so that nobody blames quantization for it."""
    first, second = (subject.components for subject in subjects)
    others = [name for name in first if name != "transformer" and first[name] != second[name]]
    if others:
        reporter.note(
            f"the repos differ in more than the transformer: {', '.join(others)}; figures are of both together"
        )


def _drop_earlier(output: Path, quantized: Path) -> None:
    """Remove the files of measurements and the images of an earlier run, but nothing of a release."""
    try:
        for name in FORMATS:
            if name != SUMMARY_NAME or output.resolve() != quantized.resolve():
                (output / name).unlink(missing_ok=True)
        for kind in IMAGE_KINDS:
            for image in (output / "images" / kind).glob("*.png"):
                image.unlink()
    except OSError as error:
        raise write_error(output, error) from error


def _copy_summary(quantized: Subject, output: Path) -> None:
    """Put what the release says of its quantization beside the measurements."""
    file, copy = quantized.repo.folder / SUMMARY_NAME, output / SUMMARY_NAME
    if file.is_file() and not (copy.exists() and copy.samefile(file)):
        replace_file(copy, file.read_bytes())
