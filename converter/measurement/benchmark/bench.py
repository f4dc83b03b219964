"""A whole benchmark: measure both models, and write the files of measurements."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from converter.checkpoint.writer import replace_file, write_error
from converter.console import SILENT, Reporter
from converter.conversion.release.manifest import SUMMARY_NAME
from converter.errors import OutputError
from converter.measurement.benchmark.assembly import Assembly
from converter.measurement.benchmark.changes import refuse_changed_files
from converter.measurement.benchmark.fidelity import compare_images, compare_weights
from converter.measurement.benchmark.identity import describe_identity
from converter.measurement.benchmark.image_files import IMAGE_KINDS
from converter.measurement.benchmark.journal import JOURNAL_NAME, Journal, is_image_key
from converter.measurement.benchmark.machine_probe import probe_machine
from converter.measurement.benchmark.measuring import Bench
from converter.measurement.benchmark.options import BenchOptions
from converter.measurement.benchmark.output_folder import refuse_output_folder
from converter.measurement.benchmark.repos import choose_image_settings, cut_texts
from converter.measurement.benchmark.subjects import Subject, find_summary, open_subjects
from converter.measurement.benchmark.trace_files import FLAT_FIELD, TRACES_FOLDER, remove_traces
from converter.measurement.benchmark.trajectory import TrajectoryMeasurement, measured_options
from converter.measurement.evidence.files import FORMATS, read_evidence_folder, write_evidence
from converter.measurement.evidence.names import (
    ABLATION_NAME,
    IMAGES_NAME,
    MATRIX_NAME,
    METRICS_NAME,
    ORIGINAL,
    QUANTIZED,
    WEIGHTS_NAME,
)
from converter.measurement.evidence.statistics import FEWEST_PAIRS
from converter.measurement.generation.devices import choose_device
from converter.measurement.generation.options import GenerateOptions
from converter.measurement.generation.places import pipeline_folders
from converter.measurement.prompts.suite import PromptSuite
from converter.models.int8_kernels import kernel_text

_IMAGE_FOLDERS = (*IMAGE_KINDS, FLAT_FIELD)


@dataclass(frozen=True)
class BenchReport:
    """The measurements of a benchmark."""

    output: Path
    evidence: Mapping[str, Mapping[str, Any]]
    """Contents of the files of measurements, by name."""
    images: int
    """Number of measured images, over models, modes and pairs."""
    resumed: int
    """Number of images among them that earlier runs measured."""
    failed: tuple[dict[str, Any], ...]
    """What could not be measured: model, mode, pair, attempt, prompt, reason."""
    elapsed_s: float

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files of measurements."""
        return tuple(self.evidence)

    @property
    def ok(self) -> bool:
        """Whether everything was measured."""
        return not self.failed

    def to_dict(self) -> dict[str, Any]:
        """Return what ``lensconv bench --json`` shows."""
        metrics = self.evidence[METRICS_NAME]
        return {
            "ok": self.ok,
            "output": str(self.output),
            "files": list(self.files),
            "images": self.images,
            "resumed": self.resumed,
            "failed": list(self.failed),
            "generation_time_s": {
                name: metrics["models"][name].get("generation_time_s") for name in (ORIGINAL, QUANTIZED)
            },
            "slowdown": self.evidence[MATRIX_NAME]["summary"].get("slowdown"),
            "elapsed_s": self.elapsed_s,
        }


def bench(
    original: Path | str,
    quantized: Path | str,
    output: Path,
    suite: PromptSuite,
    options: BenchOptions | None = None,
    drawing: GenerateOptions | None = None,
    *,
    reporter: Reporter = SILENT,
) -> BenchReport:
    """Measure the original and the quantized model, and write the files of measurements.

    A run that was killed continues where it stopped, and tries failed images again.

    Args:
        original: a pipeline repo of Lens, or of diffusers that makes an image of a prompt: a folder, or
            ``hf://OWNER/NAME`` with an optional ``@REVISION``, of which the files that are needed are downloaded into
            the cache of huggingface_hub.
        quantized: another one, of the same class.
        output: folder for measurements and images; created if it does not exist.
        suite: the prompts.
        options: how to measure.
        drawing: how to generate images; the defaults are those of `generate`. The seed is that of each prompt. Adapters
            are added to the original; they must be those that the quantized model contains by its manifest.
        reporter: shows progress and notes.

    Raises:
        InputError: a repo cannot be used or changes, the two cannot be compared, or a value is out of range.
        DeviceError: this machine does not have the accelerator.
        OutputError: measurements cannot be written there, or the folder contains those of another benchmark.
        DiskError: the disk is full, or that of the cache is.
        HubError: the Hub refuses, or cannot be reached.
    """
    options, drawing = options or BenchOptions(), drawing or GenerateOptions()
    # A download may take an hour.
    choose_device(drawing.device)
    with pipeline_folders([original, quantized], reporter) as (first, second):
        return _measure(first, second, output, suite, options, drawing, reporter)


def _measure(
    original: Path,
    quantized: Path,
    output: Path,
    suite: PromptSuite,
    options: BenchOptions,
    drawing: GenerateOptions,
    reporter: Reporter,
) -> BenchReport:
    """Measure the repos in two folders; see ``bench``."""
    started = time.monotonic()
    folders = ("images", *(f"images/{kind}" for kind in _IMAGE_FOLDERS), TRACES_FOLDER)
    refuse_output_folder(output, original, folders)
    subjects = open_subjects(original, quantized, reporter, drawing.adapters)
    options = measured_options(options, subjects[0].repo)
    settings = [
        choose_image_settings(subjects[0].repo, prompt.prompt, replace(drawing, seed=prompt.seed))
        for prompt in suite.prompts
    ]
    with reporter.progress("describing the device", 1, "devices") as shown:
        environment = probe_machine(drawing.device, shown.refresh)
    if not any(subject.repo.has_packed_text_encoder for subject in subjects):
        environment.pop("mxfp4", None)
    by_name = {subject.name: subject for subject in subjects}
    identity = describe_identity(subjects, suite, settings[0], environment, options)
    with Journal(output, identity, restart=options.restart) as journal:
        if options.restart:
            _drop_earlier(output, quantized)
        elif journal.is_new:
            _refuse_foreign(output, quantized)
        _note_differences(subjects, reporter)
        _note_environment(environment, reporter)
        for text in dict.fromkeys(cut_texts(subjects[0].repo, settings)):
            reporter.note(text)
        work = Bench(output, by_name, suite, settings, options, drawing.device, environment, journal)
        trajectories = TrajectoryMeasurement(work)
        trajectories.announce(reporter)
        total = work.total
        missing = sum(len(work.missing(cell)) for cell in work.cells)
        if missing < total:
            reporter.note(f"{total - missing} of {total} images were measured by an earlier run")
        if missing:
            reporter.note(_plan_text(options))
        with reporter.progress("measuring", total, "images") as shown:
            shown.skip(total - missing)
            work.measure(shown)
        trajectories.measure(reporter)
        for subject in subjects:
            refuse_changed_files(subject.states)
        contents = Assembly(journal, suite, settings, by_name, environment, options).files()
        evidence = _write_files(output, contents, by_name, trajectories, reporter)
    # What fails after the pairs is a reason in image_fidelity.json.
    failed = tuple(
        {**asdict(cell), "prompt": key, "reason": reason}
        for (cell, key), reason in work.failed.items()
        if is_image_key(key)
    )
    return BenchReport(
        output=output,
        evidence=evidence,
        images=work.measured,
        resumed=total - missing,
        failed=failed,
        elapsed_s=time.monotonic() - started,
    )


def _write_files(
    output: Path,
    contents: Mapping[str, Mapping[str, Any]],
    subjects: Mapping[str, Subject],
    trajectories: TrajectoryMeasurement,
    reporter: Reporter,
) -> dict[str, dict[str, Any]]:
    """Write all files of measurements, after comparing images and weights, and read them again.

    Args:
        output: the folder of measurements.
        contents: what ``Assembly`` made, by file name.
        subjects: the models, by name.
        trajectories: adds its figures to those of the images.
        reporter: shows progress and notes.
    """
    for name, content in contents.items():
        write_evidence(output, name, content)
    _copy_summary(subjects[QUANTIZED], output)
    images = compare_images(output, contents[MATRIX_NAME], reporter)
    comparisons = {
        IMAGES_NAME: None if images is None else trajectories.add_to(images),
        WEIGHTS_NAME: compare_weights(subjects, reporter),
    }
    for name, found in comparisons.items():
        if found is not None:
            write_evidence(output, name, found)
    # Reading compares the files with each other and with the images.
    return read_evidence_folder(output)


def _plan_text(options: BenchOptions) -> str:
    """How many processes a benchmark starts."""
    modes, pairs = len(options.modes), options.pairs
    text = f"{2 * pairs * modes} processes are planned: {pairs} for each model and mode"
    if pairs < FEWEST_PAIRS:
        return f"{text}; times are compared with at least {FEWEST_PAIRS}"
    return f"{text}; a pair that something else disturbs is measured once more"


def _refuse_foreign(output: Path, quantized: Path) -> None:
    """Refuse a folder with files of another benchmark, which would be mixed with those of this one.

    Raises:
        OutputError: there is such a file.
    """
    for file in _own_files(output, quantized):
        if file.exists():
            raise OutputError(
                f"{file}: belongs to an earlier benchmark, but {JOURNAL_NAME} is missing",
                "Choose another folder with --out, or delete its measurements with --restart.",
            )


def _own_files(output: Path, quantized: Path) -> list[Path]:
    """Paths of the files that a benchmark writes; the summary of a release belongs to the release."""
    is_release = output.resolve() == quantized.resolve()
    others = (ABLATION_NAME, *((SUMMARY_NAME,) if is_release else ()))
    return [output / name for name in FORMATS if name not in others]


def _note_environment(environment: Mapping[str, Any], reporter: Reporter) -> None:
    """Say when the text encoder takes more memory, or quantized layers more time, than on other machines."""
    if environment.get("mxfp4") == "unpacked":
        reporter.note("the MXFP4 text encoder cannot stay packed here, and is unpacked; `lensconv generate` says why")
    if environment["cuda"] is None:
        return
    if environment["int8_kernel"] != "triton":
        found = kernel_text(environment["int8_kernel"])
        reporter.note(f"{found}, not with SDNQ's Triton kernel; `lensconv generate` says why")
    if not environment["sdnq_compiles"]:
        reporter.note("SDNQ does not compile its functions, so images of the quantized model take longer")


def _note_differences(subjects: Sequence[Subject], reporter: Reporter) -> None:
    """Say when more differs than what was quantized, since quantization is not the cause of that."""
    first, second = (subject.components for subject in subjects)
    quantized = [*subjects[1].repo.quantizations] or [subjects[1].repo.denoiser]
    others = [name for name in first if name not in quantized and first[name] != second[name]]
    if others:
        reporter.note(
            f"the repos differ in more than the {' and the '.join(quantized)}: {', '.join(others)}; figures include "
            "these differences"
        )


def _drop_earlier(output: Path, quantized: Path) -> None:
    """Delete the files of measurements and the images of an earlier run, but no files of a release."""
    try:
        for file in _own_files(output, quantized):
            file.unlink(missing_ok=True)
        for kind in _IMAGE_FOLDERS:
            for image in (output / "images" / kind).glob("*.png"):
                image.unlink()
    except OSError as error:
        raise write_error(output, error) from error
    remove_traces(output)


def _copy_summary(quantized: Subject, output: Path) -> None:
    """Copy the quantization summary of the release to the measurements."""
    file, copy = find_summary(quantized.repo), output / SUMMARY_NAME
    if file is not None and not (copy.exists() and copy.samefile(file)):
        replace_file(copy, file.read_bytes())
