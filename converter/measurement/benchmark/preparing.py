"""Open everything that benchmarks need, before the first image: repos, settings, the machine, and journals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from converter.checkpoint.writer import write_error
from converter.cluster.cluster import Cluster
from converter.console import Reporter
from converter.conversion.release.manifest import SUMMARY_NAME
from converter.errors import OutputError
from converter.measurement.benchmark.identity import describe_identity
from converter.measurement.benchmark.image_files import IMAGE_KINDS
from converter.measurement.benchmark.journal import JOURNAL_NAME, Journal
from converter.measurement.benchmark.machine_probe import probe_machine
from converter.measurement.benchmark.measuring import Bench
from converter.measurement.benchmark.node_machines import agreed_machine, choose_nodes
from converter.measurement.benchmark.node_places import Nodes
from converter.measurement.benchmark.node_repos import SharedRepo, find_on_nodes
from converter.measurement.benchmark.options import BenchOptions
from converter.measurement.benchmark.output_folder import refuse_output_folder
from converter.measurement.benchmark.repos import ImageSettings, choose_image_settings
from converter.measurement.benchmark.subjects import Subject, open_subjects
from converter.measurement.benchmark.trace_files import FLAT_FIELD, TRACES_FOLDER, remove_traces
from converter.measurement.benchmark.trajectory import TrajectoryMeasurement, measured_options
from converter.measurement.evidence.files import FORMATS
from converter.measurement.evidence.names import ABLATION_NAME
from converter.measurement.generation.options import GenerateOptions
from converter.measurement.prompts.suite import PromptSuite

_IMAGE_FOLDERS = (*IMAGE_KINDS, FLAT_FIELD)


@dataclass(frozen=True)
class PreparedBench:
    """A benchmark of two models that were opened, and whose journal is held."""

    subjects: tuple[Subject, Subject]
    """The original and the quantized model."""
    work: Bench
    trajectories: TrajectoryMeasurement
    nodes: Nodes | None = None
    """Where it is measured; on this machine when None."""


@contextmanager
def prepare(
    original: Path,
    places: Mapping[Path, Path],
    suite: PromptSuite,
    options: BenchOptions,
    drawing: GenerateOptions,
    reporter: Reporter,
    cluster: Cluster | None = None,
    addresses: Mapping[Path, str] = MappingProxyType({}),
) -> Iterator[tuple[PreparedBench, ...]]:
    """Open the original and all quantized models, and then the journals of their benchmarks.

    Args:
        original: a pipeline repo.
        places: the quantized models, by the folders of their measurements.
        suite: the prompts.
        options: how to measure.
        drawing: how to generate images.
        reporter: shows progress and notes.
        cluster: on whose nodes is measured; on this machine when None.
        addresses: of the folders that were downloaded.

    Raises: as ``bench``. Nothing is written before all models are checked.
    """
    for output in places:
        folders = ("images", *(f"images/{kind}" for kind in _IMAGE_FOLDERS), TRACES_FOLDER)
        refuse_output_folder(output, original, folders)
    if cluster is not None:
        drawing = replace(drawing, device=choose_nodes(cluster, drawing.device))
    known: dict[tuple[int, int], str] = {}
    opened = [open_subjects(original, quantized, reporter, drawing.adapters, known) for quantized in places.values()]
    repo = opened[0][0].repo
    options = measured_options(options, repo)
    settings = [
        choose_image_settings(repo, prompt.prompt, replace(drawing, seed=prompt.seed)) for prompt in suite.prompts
    ]
    nodes = None
    if cluster is None:
        with reporter.progress("describing the device", 1, "devices") as shown:
            environment = probe_machine(drawing.device, shown.refresh)
    else:
        environment = agreed_machine(cluster, drawing.device, reporter)
        subjects = [opened[0][0], *(quantized for _, quantized in opened)]
        shared = [SharedRepo.of(subject, addresses.get(subject.repo.folder, "")) for subject in subjects]
        nodes = Nodes(cluster, find_on_nodes(cluster, shared), drawing.device)
    with ExitStack() as journals:
        found = [
            journals.enter_context(_open(output, subjects, suite, settings, options, drawing.device, environment))
            for output, subjects in zip(places, opened, strict=True)
        ]
        yield tuple(replace(prepared, nodes=nodes) for prepared in found)


@contextmanager
def _open(
    output: Path,
    subjects: tuple[Subject, Subject],
    suite: PromptSuite,
    settings: Sequence[ImageSettings],
    options: BenchOptions,
    device: str,
    environment: Mapping[str, Any],
) -> Iterator[PreparedBench]:
    """Open the journal of one benchmark."""
    environment = dict(environment)
    if not any(subject.repo.has_packed_text_encoder for subject in subjects):
        environment.pop("mxfp4", None)
    identity = describe_identity(subjects, suite, settings[0], environment, options)
    quantized = subjects[1].repo.folder
    with Journal(output, identity, restart=options.restart) as journal:
        if options.restart:
            drop_earlier(output, quantized)
        elif journal.is_new:
            _refuse_foreign(output, quantized)
        by_name = {subject.name: subject for subject in subjects}
        work = Bench(output, by_name, suite, settings, options, device, environment, journal)
        yield PreparedBench(subjects, work, TrajectoryMeasurement(work))


def own_files(output: Path, quantized: Path) -> list[Path]:
    """Return the paths of the files that a benchmark writes; the summary of a release belongs to the release.

    Args:
        output: the folder of the measurements.
        quantized: the release.
    """
    is_release = output.resolve() == quantized.resolve()
    others = (ABLATION_NAME, *((SUMMARY_NAME,) if is_release else ()))
    return [output / name for name in FORMATS if name not in others]


def drop_earlier(output: Path, quantized: Path) -> None:
    """Delete the files of measurements and the images of an earlier run, but no files of a release.

    Args:
        output: the folder of the measurements.
        quantized: the release.

    Raises:
        OutputError: they cannot be deleted.
    """
    try:
        for file in own_files(output, quantized):
            file.unlink(missing_ok=True)
        for kind in _IMAGE_FOLDERS:
            for image in (output / "images" / kind).glob("*.png"):
                image.unlink()
    except OSError as error:
        raise write_error(output, error) from error
    remove_traces(output)


def _refuse_foreign(output: Path, quantized: Path) -> None:
    """Refuse a folder with files of another benchmark, which would be mixed with those of this one.

    Raises:
        OutputError: there is such a file.
    """
    for file in own_files(output, quantized):
        if file.exists():
            raise OutputError(
                f"{file}: belongs to an earlier benchmark, but {JOURNAL_NAME} is missing",
                "Choose another folder with --out, or delete its measurements with --restart.",
            )
