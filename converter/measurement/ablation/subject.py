"""The original that is measured: its denoiser on disk, the checksums of its weights, and how it draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from converter._version import __version__
from converter.checkpoint.checksum import file_sha256
from converter.checkpoint.header import Header
from converter.checkpoint.source import Checkpoint
from converter.cluster.cluster import Cluster
from converter.cluster.resources import in_words
from converter.console import Reporter
from converter.conversion.options import ConvertOptions
from converter.conversion.release.manifest import ReleaseFile
from converter.errors import MissingInput
from converter.libraries import package_versions, quantization_environment
from converter.measurement.benchmark.changes import file_states, refuse_changed_files
from converter.measurement.benchmark.machine_probe import probe_machine
from converter.measurement.benchmark.node_machines import agreed_machine, choose_nodes
from converter.measurement.benchmark.node_places import Nodes
from converter.measurement.benchmark.node_repos import SharedFile, SharedRepo, find_on_nodes
from converter.measurement.benchmark.repos import ImageSettings, MeasuredRepo, choose_image_settings, cut_texts
from converter.measurement.benchmark.subjects import Subject, hash_weights, identify_repo
from converter.measurement.evidence.names import ORIGINAL
from converter.measurement.evidence.weights import TRANSFORMER
from converter.measurement.generation.options import GenerateOptions
from converter.measurement.prompts.suite import PromptSuite, SuitePrompt
from converter.measurement.sensitivity.figures import Figures
from converter.measurement.sensitivity.journal import SensitivityJournal
from converter.measurement.sensitivity.loaded import load_original, open_original, refuse_options
from converter.measurement.sensitivity.node_original import OriginalsOnNodes
from converter.measurement.sensitivity.node_scan import scan_on_nodes
from converter.measurement.sensitivity.placed import Originals, OriginalsHere
from converter.measurement.sensitivity.scan import scan
from converter.measurement.sensitivity.storage import Storage
from converter.measurement.sensitivity.work_folder import WorkFolder


@dataclass(frozen=True)
class Original:
    """An unquantized model whose variants are measured."""

    checkpoint: Checkpoint
    """Its denoiser."""
    weights: tuple[ReleaseFile, ...]
    """The denoiser's weight files."""
    states: Mapping[str, list[int]]
    """States of these files before they were read."""

    def identity(self, quantize_from: str) -> dict[str, Any]:
        """What figures of its weights depend on, as JSON values.

        Args:
            quantize_from: how numbers are treated before they are quantized.
        """
        return {
            "weights": {file.name: file.sha256 for file in self.weights},
            "config": dict(self.checkpoint.config),
            "quantize_from": quantize_from,
            "versions": {"lensconv": __version__, **package_versions()},
            "quantization_environment": quantization_environment(),
        }

    def source(self) -> dict[str, Any]:
        """The denoiser as evidence names it, for figures that nothing else takes part in."""
        checkpoint = self.checkpoint
        repo_id, revision = identify_repo(checkpoint.pipeline or checkpoint.folder)
        named = {} if checkpoint.component in ("", TRANSFORMER) else {"denoiser": checkpoint.component}
        return {
            "repo_id": repo_id,
            "revision": revision,
            **named,
            TRANSFORMER: [file.to_dict() for file in self.weights],
        }

    def scan(
        self,
        wanted: Mapping[str, Sequence[Storage]],
        options: ConvertOptions,
        spool: Path | None,
        journal: SensitivityJournal,
        cluster: Cluster | None,
        reporter: Reporter,
    ) -> Figures:
        """Measure its weights in storages, as far as the journal does not have the figures.

        Args:
            wanted: as for ``scan``.
            options: as for ``scan``.
            spool: as for ``scan``; nodes keep what they quantize themselves.
            journal: has what earlier runs measured, and gets what is new.
            cluster: whose nodes measure; None if this machine does.
            reporter: shows progress.

        Raises: as ``scan`` and ``scan_on_nodes``.
        """
        known, note = journal.storages, journal.note_storage
        if cluster is None:
            return scan(self.checkpoint, wanted, options, spool=spool, finished=known, note=note, reporter=reporter)
        reporter.note(f"on {in_words(cluster.nodes)}")
        repos = find_on_nodes(cluster, [self._shared()])
        return scan_on_nodes(
            cluster, repos, self.checkpoint, wanted, options, finished=known, note=note, reporter=reporter
        )

    def _shared(self) -> SharedRepo:
        """Its weight files, for nodes to compare with theirs."""
        files = [
            SharedFile(str(path), file.sha256, tuple(self.states[str(path)]))
            for header, file in zip(self.checkpoint.headers, self.weights, strict=True)
            for path in [header.file.absolute()]
        ]
        return SharedRepo(str(self.checkpoint.folder.absolute()), "", tuple(files))

    def refuse_changed(self) -> None:
        """Refuse weights that changed since they were hashed.

        Raises:
            MissingInput: a file does not exist any more.
            MalformedCheckpoint: a file was changed or replaced.
        """
        refuse_changed_files(self.states)


def hash_original(checkpoint: Checkpoint, reporter: Reporter) -> Original:
    """Compute the checksums of a denoiser's weight files.

    Args:
        checkpoint: of the denoiser.
        reporter: shows progress.

    Raises:
        MissingInput: a file cannot be read.
    """
    headers: Sequence[Header] = checkpoint.headers
    states = file_states(header.file for header in headers)
    with reporter.progress("checksums", sum(header.file_bytes for header in headers)) as shown:
        files = []
        for header in headers:
            digest = file_sha256(header.file, shown)
            if digest is None:
                raise MissingInput(header.file, "no such file")
            files.append(ReleaseFile(header.file.name, header.file_bytes, digest))
    return Original(checkpoint, tuple(files), states)


@dataclass(frozen=True)
class DrawnOriginal:
    """An original that draws images of prompts."""

    repo: MeasuredRepo
    subject: Subject
    """Its pipeline, with the checksums of all components."""
    drawing: GenerateOptions
    """How it draws."""
    environment: Mapping[str, Any]
    """The machine, as evidence names it."""
    nodes: Nodes | None
    """Where it draws; None if this machine does."""

    def settings(self, prompt: SuitePrompt, seed: int | None = None) -> ImageSettings:
        """Settings of the image of a prompt, with its own seed or with another one."""
        options = replace(self.drawing, seed=prompt.seed if seed is None else seed)
        return choose_image_settings(self.repo, prompt.prompt, options)

    def conditions(self, suite: PromptSuite) -> dict[str, Any]:
        """What figures of images and of the denoiser's calls depend on, as JSON values."""
        shared = asdict(self.settings(suite.prompts[0]))
        del shared["prompt"], shared["seed"]
        return {
            "components": self.subject.components,
            "suite": suite.sha256,
            "settings": shared,
            "environment": self.environment,
        }

    def load(
        self, settings: Sequence[ImageSettings], conversion: ConvertOptions, work: WorkFolder, reporter: Reporter
    ) -> Originals:
        """Load it, for images with these settings; on nodes, when something is measured.

        Args:
            settings: of all images that will be drawn.
            conversion: how nodes treat numbers when they quantize.
            work: has the quantized tensors, unless nodes have them, and the recorded calls.
            reporter: is told what is loaded, and shows progress.

        Raises: as ``load_original``.
        """
        if self.nodes is None:
            return OriginalsHere(load_original(self.repo, settings, self.drawing, reporter=reporter), work, reporter)
        return OriginalsOnNodes(self.nodes, settings, self.drawing, conversion, work, reporter)


def open_drawn(
    folder: Path,
    original: Original,
    suite: PromptSuite,
    drawing: GenerateOptions,
    reporter: Reporter,
    cluster: Cluster | None = None,
) -> DrawnOriginal:
    """Open an original to draw with, and describe the machine.

    Args:
        folder: a pipeline repo.
        original: its denoiser, whose weights are hashed.
        suite: the prompts.
        drawing: how to generate images; the seed is that of each prompt.
        reporter: shows progress, and is told which prompts are cut.
        cluster: whose nodes draw; of them, those are used that have the device. None if this machine draws.

    Raises:
        UsageError: an option cannot be used while weights are exchanged.
        InputError: the original cannot be drawn with, or a node has another one.
        DeviceError: this machine, or the cluster, does not have the accelerator.
        ClusterError: nodes differ.
    """
    refuse_options(drawing)
    repo = open_original(folder)
    device = "" if cluster is None else choose_nodes(cluster, drawing.device)
    subject = _open_subject(repo, original, reporter)
    if cluster is None:
        nodes = None
        with reporter.progress("describing the device", 1, "devices") as shown:
            environment = probe_machine(drawing.device, shown.refresh)
    else:
        nodes = Nodes(cluster, find_on_nodes(cluster, [SharedRepo.of(subject)]), device)
        environment = agreed_machine(cluster, device, reporter)
    found = DrawnOriginal(repo, subject, drawing, environment, nodes)
    for text in dict.fromkeys(cut_texts(repo, [found.settings(prompt) for prompt in suite.prompts])):
        reporter.note(text)
    return found


def _open_subject(repo: MeasuredRepo, original: Original, reporter: Reporter) -> Subject:
    """The whole pipeline of an original, with the checksums of all its components.

    Args:
        repo: its pipeline.
        original: its denoiser, whose weights are hashed already.
        reporter: shows progress.

    Raises:
        MissingInput: a file cannot be read.
    """
    states = file_states(repo.weight_files)
    known = {}
    for header, file in zip(original.checkpoint.headers, original.weights, strict=True):
        device, inode, *_ = original.states[str(header.file.absolute())]
        known[device, inode] = file.sha256
    sizes = {(device, inode): size for device, inode, size, _ in states.values()}
    with reporter.progress("checksums", sum(size for place, size in sizes.items() if place not in known)) as shown:
        return Subject(ORIGINAL, repo, hash_weights(repo, states, known, shown), states)
