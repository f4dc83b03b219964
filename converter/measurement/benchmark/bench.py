"""A whole benchmark: measure both models, and write the files of measurements."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from converter.cluster.cluster import Cluster
from converter.cluster.nodes import named_cluster
from converter.cluster.resources import in_words
from converter.console import SILENT, Reporter
from converter.errors import OutputError
from converter.hub.addresses import SCHEME, is_address, parse_address
from converter.measurement.benchmark.finishing import write_files
from converter.measurement.benchmark.journal import is_image_key
from converter.measurement.benchmark.node_machines import choose_nodes
from converter.measurement.benchmark.node_measuring import measure_on_nodes, measure_trajectories
from converter.measurement.benchmark.options import BenchOptions
from converter.measurement.benchmark.preparing import PreparedBench, prepare
from converter.measurement.benchmark.report import BenchReport
from converter.measurement.benchmark.repos import cut_texts
from converter.measurement.benchmark.sharing import count_taken_over, take_over
from converter.measurement.benchmark.subjects import Subject
from converter.measurement.benchmark.trace_files import remove_traces
from converter.measurement.evidence.names import SWEEP_NAME
from converter.measurement.evidence.statistics import FEWEST_PAIRS
from converter.measurement.generation.devices import choose_device
from converter.measurement.generation.options import GenerateOptions
from converter.measurement.generation.places import pipeline_folders
from converter.measurement.prompts.suite import PromptSuite
from converter.models.int8_kernels import kernel_text


def bench(
    original: Path | str,
    quantized: Path | str,
    output: Path,
    suite: PromptSuite,
    options: BenchOptions | None = None,
    drawing: GenerateOptions | None = None,
    *,
    ray: str | None = None,
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
        ray: address of a cluster of Ray on whose nodes is measured, or ``local``; this machine when None. Repos are at
            the same paths there, or addresses.
        reporter: shows progress and notes.

    Raises:
        InputError: a repo cannot be used or changes, the two cannot be compared, or a value is out of range.
        DeviceError: this machine does not have the accelerator.
        OutputError: measurements cannot be written there, or the folder contains those of another benchmark.
        DiskError: the disk is full, or that of the cache is.
        HubError: the Hub refuses, or cannot be reached.
        ClusterError: there is no cluster, its nodes differ, or none is left.
    """
    options, drawing = options or BenchOptions(), drawing or GenerateOptions()
    # A release may have one from its card.
    if (output / SWEEP_NAME).exists() and output.resolve() != Path(quantized).resolve():
        raise OutputError(
            f"{output}: contains the measurements of several quantized models", "Choose a folder in it with --out."
        )
    with (
        measuring_place(ray, drawing.device, reporter) as cluster,
        pipeline_folders([original, quantized], reporter) as (first, second),
        prepare(
            first,
            {output: second},
            suite,
            options,
            drawing,
            reporter,
            cluster,
            addresses_of([original, quantized], [first, second]),
        ) as (prepared,),
    ):
        note_differences(prepared.subjects, reporter)
        note_shared(prepared, reporter)
        report = run(prepared, reporter)
        remove_traces(output)
        return report


def run(prepared: PreparedBench, reporter: Reporter, first: PreparedBench | None = None) -> BenchReport:
    """Measure what is missing, and write the files of measurements. Traces of the original stay.

    Args:
        prepared: the benchmark.
        reporter: shows progress and notes.
        first: a benchmark of the same original that is measured, from which figures and images are taken over.

    Raises: as ``bench``.
    """
    started = time.monotonic()
    work = prepared.work
    prepared.trajectories.announce(reporter)
    resumed = work.total - _count_missing(prepared)
    if resumed:
        reporter.note(f"{resumed} of {work.total} images were measured by an earlier run")
    if first is not None:
        take_over(first.work, work)
        reporter.note(f"{count_taken_over(work)} images of the original are taken over from {first.work.output.name}")
    missing = _count_missing(prepared)
    if missing:
        reporter.note(_plan_text(work.options))
        if prepared.nodes is not None:
            reporter.note(f"on {in_words(prepared.nodes.cluster.nodes)}; only the timed prompts are generated alone")
    with reporter.progress("measuring", work.total, "images") as shown:
        shown.skip(work.total - missing)
        if prepared.nodes is None:
            work.measure(shown)
        else:
            measure_on_nodes(work, prepared.nodes, shown)
    if prepared.nodes is None:
        prepared.trajectories.measure(reporter)
    else:
        measure_trajectories(work, prepared.trajectories, prepared.nodes, reporter)
    evidence = write_files(prepared, reporter)
    # What fails after the pairs is a reason in image_fidelity.json.
    failed = tuple(
        {**asdict(cell), "prompt": key, "reason": reason}
        for (cell, key), reason in work.failed.items()
        if is_image_key(key)
    )
    elapsed = time.monotonic() - started
    return BenchReport(work.output, evidence, work.measured, resumed, failed, elapsed, count_taken_over(work))


@contextmanager
def measuring_place(ray: str | None, device: str, reporter: Reporter) -> Iterator[Cluster | None]:
    """Connect to the cluster on which is measured, for the block; None for this machine, if it has the device.

    Args:
        ray: as for ``bench``.
        device: as in ``GenerateOptions``.
        reporter: is told what is waited for.

    Raises:
        DeviceError: this machine does not have the device.
        ClusterError: there is no cluster, or its nodes have other versions.
    """
    if ray is None:
        # A download may take an hour.
        choose_device(device)
    with named_cluster(ray, reporter) as cluster:
        if cluster is not None:
            choose_nodes(cluster, device)
        yield cluster


def addresses_of(places: Sequence[Path | str], folders: Sequence[Path]) -> dict[Path, str]:
    """Return the addresses among places, without revisions, by the folders into which they were downloaded."""
    return {
        folder: f"{SCHEME}{parse_address(str(place)).repo_id}"
        for place, folder in zip(places, folders, strict=True)
        if is_address(str(place))
    }


def note_differences(subjects: Sequence[Subject], reporter: Reporter) -> None:
    """Say when more differs than what was quantized, since quantization is not the cause of that.

    Args:
        subjects: the original and the quantized model.
        reporter: shows the note.
    """
    first, second = (subject.components for subject in subjects)
    quantized = [*subjects[1].repo.quantizations] or [subjects[1].repo.denoiser]
    others = [name for name in first if name not in quantized and first[name] != second[name]]
    if others:
        reporter.note(
            f"the repos differ in more than the {' and the '.join(quantized)}: {', '.join(others)}; figures include "
            "these differences"
        )


def note_shared(prepared: PreparedBench, reporter: Reporter) -> None:
    """Say what is special about the machine and the prompts, which all benchmarks of an original share.

    Args:
        prepared: one of them.
        reporter: shows the notes.
    """
    note_environment(prepared.work.environment, reporter)
    for text in dict.fromkeys(cut_texts(prepared.subjects[0].repo, prepared.work.settings)):
        reporter.note(text)


def note_environment(environment: Mapping[str, Any], reporter: Reporter) -> None:
    """Say when the text encoder takes more memory, or quantized layers more time, than on other machines.

    Args:
        environment: the machine and the versions.
        reporter: shows the notes.
    """
    if environment.get("mxfp4") == "unpacked":
        reporter.note("the MXFP4 text encoder cannot stay packed here, and is unpacked; `lensconv generate` says why")
    if environment["cuda"] is None:
        return
    if environment["int8_kernel"] != "triton":
        found = kernel_text(environment["int8_kernel"])
        reporter.note(f"{found}, not with SDNQ's Triton kernel; `lensconv generate` says why")
    if not environment["sdnq_compiles"]:
        reporter.note("SDNQ does not compile its functions, so images of the quantized model take longer")


def _count_missing(prepared: PreparedBench) -> int:
    return sum(len(prepared.work.missing(cell)) for cell in prepared.work.cells)


def _plan_text(options: BenchOptions) -> str:
    """How many processes a benchmark starts."""
    modes, pairs = len(options.modes), options.pairs
    text = f"{2 * pairs * modes} processes are planned: {pairs} for each model and mode"
    if pairs < FEWEST_PAIRS:
        return f"{text}; times are compared with at least {FEWEST_PAIRS}"
    return f"{text}; a pair that something else disturbs is measured once more"
