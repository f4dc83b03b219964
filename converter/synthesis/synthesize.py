"""Checkpoints with random weights and the exact layout of real ones, for tests, demos and benchmarks.

``lens`` is the transformer of microsoft/Lens at any depth, ``tiny`` a complete pipeline that generates on a CPU in
seconds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from converter.checkpoint.layout import DEFAULT_SHARD_BYTES, Layout, TensorSpec, lay_out
from converter.checkpoint.staging import Staging
from converter.checkpoint.writer import writing
from converter.console import SILENT, Progress, Reporter
from converter.conversion.release.manifest import CONFIG_NAME, encode_json, write_file
from converter.conversion.release.replacing import refuse_what_is_no_checkpoint
from converter.errors import OutputError, UsageError
from converter.models.lens.layout import CLASS_NAME, MAXIMUM_LAYERS, LensConfig, lens_tensors
from converter.synthesis.tiny import DIFFUSERS_VERSION, TRANSFORMER, small_files, text_encoder_weights, vae_weights
from converter.synthesis.weights import write_weights

PRESETS = ("lens", "tiny")
COMPONENT = "transformer"


@dataclass(frozen=True)
class SynthReport:
    """What was written."""

    output: Path
    files: tuple[tuple[str, int], ...]
    """Names and sizes in bytes of the weight files."""
    tensors: int
    total_bytes: int
    """Of tensor storage."""
    parameters: int
    seed: int
    elapsed_s: float

    def to_dict(self) -> dict[str, Any]:
        """As ``lensconv synth --json`` shows it."""
        return {
            **asdict(self),
            "output": str(self.output),
            "files": [{"name": name, "bytes": size} for name, size in self.files],
        }


@dataclass(frozen=True)
class _Component:
    """Weights to generate, and the config next to them."""

    folder: str
    """Path inside the output, with a slash at its end; empty where the output is the component itself."""
    specs: tuple[TensorSpec, ...]
    layout: Layout
    config: bytes


@dataclass(frozen=True)
class _Contents:
    """All that goes into the output."""

    components: tuple[_Component, ...]
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Small files by their path."""

    @property
    def specs(self) -> list[TensorSpec]:
        """The tensors of all components."""
        return [spec for component in self.components for spec in component.specs]


def synthesize(
    output: Path,
    *,
    preset: str = "lens",
    component: str | None = None,
    layers: int | None = None,
    seed: int = 0,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    overwrite: bool = False,
    reporter: Reporter = SILENT,
) -> SynthReport:
    """Write a Lens transformer in float32 with random weights, or a tiny pipeline around one.

    Args:
        output: the folder to make; it appears as a whole or not at all.
        preset: ``lens`` or ``tiny``.
        component: ``transformer``, for the transformer alone; ``lens`` has nothing else.
        layers: blocks of the transformer; by default 48, as the real one has, and 4 for ``tiny``.
        seed: of the numbers.
        shard_bytes: the most bytes of tensors in a file.
        overwrite: whether an existing checkpoint at the output may be replaced.
        reporter: shows progress.

    Raises:
        UsageError: an argument is out of range.
        OutputError: the output exists or cannot be written.
        DiskError: there is not enough space.
    """
    started = time.monotonic()
    if preset not in PRESETS:
        raise UsageError(f"--preset {preset}: is none of {', '.join(PRESETS)}")
    if component not in (None, COMPONENT):
        raise UsageError(f"--component {component}: only the {COMPONENT} can be written alone")
    if layers is not None and not 1 <= layers <= MAXIMUM_LAYERS:
        raise UsageError(f"--layers {layers}: must be between 1 and {MAXIMUM_LAYERS}")
    identity = {"synth": [preset, component, layers, seed, shard_bytes]}
    staging = Staging(output, identity, refuse_what_is_no_checkpoint if overwrite else None)
    if preset == "tiny" and component is None:
        contents = _tiny_pipeline(layers, shard_bytes)
    else:
        config = TRANSFORMER if preset == "tiny" else LensConfig()
        contents = _Contents((_transformer("", config, layers, shard_bytes),))
    total = sum(spec.bytes for spec in contents.specs)
    with reporter.progress("generating", total) as shown:
        _write_staged(staging, contents, seed, shown)
    return SynthReport(
        output=output,
        files=tuple(
            (part.folder + file.name, file.total_bytes) for part in contents.components for file in part.layout.files
        ),
        tensors=len(contents.specs),
        total_bytes=total,
        parameters=sum(math.prod(spec.shape) for spec in contents.specs),
        seed=seed,
        elapsed_s=time.monotonic() - started,
    )


def _tiny_pipeline(layers: int | None, shard_bytes: int) -> _Contents:
    # This import takes seconds, and a transformer alone does not need it.
    from converter.synthesis.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    text_encoder, text_encoder_config = text_encoder_weights(tokenizer)
    vae, vae_config = vae_weights()
    return _Contents(
        (
            _component("text_encoder/", text_encoder, "model", text_encoder_config, shard_bytes),
            _transformer("transformer/", TRANSFORMER, layers, shard_bytes),
            _component("vae/", vae, "diffusion_pytorch_model", vae_config, shard_bytes),
        ),
        small_files(tokenizer),
    )


def _transformer(folder: str, config: LensConfig, layers: int | None, shard_bytes: int) -> _Component:
    config = replace(config, num_layers=layers or config.num_layers)
    specs = tuple(TensorSpec(name, "F32", shape) for name, shape in lens_tensors(config))
    content = {"_class_name": CLASS_NAME, "_diffusers_version": DIFFUSERS_VERSION, **config.to_dict()}
    return _component(folder, specs, "diffusion_pytorch_model", content, shard_bytes)


def _component(
    folder: str, specs: tuple[TensorSpec, ...], stem: str, config: dict[str, Any], shard_bytes: int
) -> _Component:
    return _Component(folder, specs, lay_out(specs, stem=stem, shard_bytes=shard_bytes), encode_json(config))


def _write_staged(staging: Staging, contents: _Contents, seed: int, progress: Progress) -> None:
    """Write everything and rename it to the output; leave nothing behind when that fails."""
    published = False
    with staging:
        staging.open()
        if staging.is_taken_by_another_command:
            raise OutputError(
                f"{staging.output}: an interrupted conversion is in the way",
                f"Finish it, or delete the folder {staging.folder.name} next to it.",
            )
        staging.begin("")
        try:
            with writing(staging.output):
                _write(staging.release, contents, seed, progress)
            staging.publish()
            published = True
        finally:
            if not published:
                staging.discard()


def _write(release: Path, contents: _Contents, seed: int, progress: Progress) -> None:
    for component in contents.components:
        folder = release / component.folder
        folder.mkdir(exist_ok=True)
        write_weights(folder, component.specs, component.layout, seed, progress)
        write_file(folder, CONFIG_NAME, component.config)
        if component.layout.index:
            write_file(folder, component.layout.index_name, component.layout.index)
    for name, content in contents.files.items():
        write_file(release, name, content)
