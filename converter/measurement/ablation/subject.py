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
from converter.console import Reporter
from converter.conversion.release.manifest import ReleaseFile
from converter.errors import MissingInput
from converter.libraries import package_versions, quantization_environment
from converter.measurement.benchmark.changes import file_states, refuse_changed_files
from converter.measurement.benchmark.machine_probe import probe_machine
from converter.measurement.benchmark.repos import ImageSettings, MeasuredRepo, choose_image_settings, cut_texts
from converter.measurement.benchmark.subjects import Subject, hash_weights, identify_repo
from converter.measurement.evidence.names import ORIGINAL
from converter.measurement.evidence.weights import TRANSFORMER
from converter.measurement.generation.options import GenerateOptions
from converter.measurement.prompts.suite import PromptSuite, SuitePrompt
from converter.measurement.sensitivity.loaded import LoadedOriginal, load_original, open_original, refuse_options


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

    def load(self, settings: Sequence[ImageSettings], reporter: Reporter) -> LoadedOriginal:
        """Load it, for images with these settings.

        Raises: as ``load_original``.
        """
        return load_original(self.repo, settings, self.drawing, reporter=reporter)


def open_drawn(
    folder: Path, original: Original, suite: PromptSuite, drawing: GenerateOptions, reporter: Reporter
) -> DrawnOriginal:
    """Open an original to draw with, and describe the machine.

    Args:
        folder: a pipeline repo.
        original: its denoiser, whose weights are hashed.
        suite: the prompts.
        drawing: how to generate images; the seed is that of each prompt.
        reporter: shows progress, and is told which prompts are cut.

    Raises:
        UsageError: an option cannot be used while weights are exchanged.
        InputError: the original cannot be drawn with.
        DeviceError: this machine does not have the accelerator.
    """
    refuse_options(drawing)
    repo = open_original(folder)
    subject = _open_subject(repo, original, reporter)
    with reporter.progress("describing the device", 1, "devices") as shown:
        environment = probe_machine(drawing.device, shown.refresh)
    found = DrawnOriginal(repo, subject, drawing, environment)
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
