"""Make the files of a benchmark whose images are measured: figures, and comparisons of images and weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converter.checkpoint.writer import replace_file
from converter.console import Reporter
from converter.conversion.release.manifest import SUMMARY_NAME
from converter.measurement.benchmark.assembly import Assembly
from converter.measurement.benchmark.changes import refuse_changed_files
from converter.measurement.benchmark.fidelity import compare_images, compare_weights
from converter.measurement.benchmark.preparing import PreparedBench
from converter.measurement.benchmark.subjects import Subject, find_summary
from converter.measurement.evidence.files import read_evidence_folder, write_evidence
from converter.measurement.evidence.names import IMAGES_NAME, MATRIX_NAME, QUANTIZED, WEIGHTS_NAME


def write_files(prepared: PreparedBench, reporter: Reporter) -> dict[str, dict[str, Any]]:
    """Write all files of measurements, after comparing images and weights, and read them again.

    Args:
        prepared: the benchmark, whose images are measured.
        reporter: shows progress and notes.

    Returns:
        Contents by file name.

    Raises:
        InputError: the weights changed while they were measured.
        OutputError: a file cannot be written.
        DiskError: the disk is full.
    """
    work = prepared.work
    for subject in prepared.subjects:
        refuse_changed_files(subject.states)
    contents = Assembly(work.journal, work.suite, work.settings, work.subjects, work.environment, work.options).files()
    for name, content in contents.items():
        write_evidence(work.output, name, content)
    copy_summary(work.subjects[QUANTIZED], work.output)
    images = compare_images(work.output, contents[MATRIX_NAME], reporter)
    comparisons: Mapping[str, dict[str, Any] | None] = {
        IMAGES_NAME: None if images is None else prepared.trajectories.add_to(images),
        WEIGHTS_NAME: compare_weights(work.subjects, reporter),
    }
    for name, found in comparisons.items():
        if found is not None:
            write_evidence(work.output, name, found)
    # Reading compares the files with each other and with the images.
    return read_evidence_folder(work.output)


def copy_summary(quantized: Subject, output: Path) -> None:
    """Copy the quantization summary of the release to the measurements, if it has one.

    Args:
        quantized: the release.
        output: the folder of the measurements.

    Raises:
        OutputError: it cannot be written.
    """
    file, copy = find_summary(quantized.repo), output / SUMMARY_NAME
    if file is not None and not (copy.exists() and copy.samefile(file)):
        replace_file(copy, file.read_bytes())
