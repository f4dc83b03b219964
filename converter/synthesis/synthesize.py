"""Checkpoints with random weights and the exact layout of real ones, for tests, demos and benchmarks.

``lens`` is the transformer of microsoft/Lens at any depth, ``tiny`` a complete pipeline that generates on a CPU in
seconds, and ``signs`` one with trained weights, which draws signs that can be read. The others are as small as
``tiny``, and are pipelines of other models.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from converter.checkpoint.layout import DEFAULT_SHARD_BYTES, Layout, TensorSpec, lay_out
from converter.checkpoint.staging import Staging
from converter.checkpoint.writer import writing
from converter.console import SILENT, Progress, Reporter
from converter.conversion.release.manifest import CONFIG_NAME, encode_json, write_file
from converter.conversion.release.replacing import REPLACING_CHECKPOINTS
from converter.errors import OutputError, UsageError
from converter.libraries import require_library_memory
from converter.models.lens.layout import CLASS_NAME, MAXIMUM_LAYERS, LensConfig, lens_tensors
from converter.synthesis import signs
from converter.synthesis.models import model_tensors
from converter.synthesis.pipelines.description import Pipeline
from converter.synthesis.pipelines.files import model_config, pipeline_files
from converter.synthesis.pipelines.presets import PIPELINES
from converter.synthesis.tiny import DIFFUSERS_VERSION, TRANSFORMER, small_files, text_encoder_weights, vae_weights
from converter.synthesis.weights import write_weights

LENS_PRESETS = ("lens", "tiny", "signs")
PRESETS = (*LENS_PRESETS, *PIPELINES)
COMPONENT = "transformer"


@dataclass(frozen=True)
class SynthReport:
    """What was written."""

    output: Path
    files: tuple[tuple[str, int], ...]
    """Names and sizes in bytes of the weight files."""
    tensors: int
    total_bytes: int
    """Bytes of tensor storage."""
    parameters: int
    seed: int
    elapsed_s: float

    def to_dict(self) -> dict[str, Any]:
        """Return what ``lensconv synth --json`` prints."""
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
    config: Mapping[str, Any]
    layout: Layout
    trained: Mapping[str, Any] | None = None
    """Its tensors, float32 arrays by name, where they are not random."""
    prefix: str = ""
    """Put before the names that random numbers follow from."""


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
    """Write a Lens transformer in float32 with random weights, a tiny pipeline around one, or another tiny pipeline.

    Args:
        output: the folder to make; it appears as a whole or not at all.
        preset: one of ``PRESETS``.
        component: ``transformer``, for the transformer alone; ``lens`` has nothing else. Only with the presets of Lens.
        layers: blocks of the transformer; by default 48, as the real one has, and 4 for ``tiny``; those of
            ``signs`` are trained, all 4. Only with the presets of Lens.
        seed: of the numbers; with ``signs`` only 0.
        shard_bytes: the most bytes of tensors in a file.
        overwrite: whether an existing checkpoint at the output may be replaced.
        reporter: shows progress.

    Raises:
        UsageError: an argument is out of range.
        OutputError: the output exists or cannot be written.
        DiskError: the disk is full.
        MemoryLimitError: there is too little memory for the libraries that build a tiny pipeline.
    """
    started = time.monotonic()
    _check_options(preset, component, layers, seed)
    identity = {"synth": [preset, component, layers, seed, shard_bytes]}
    staging = Staging(output, identity, REPLACING_CHECKPOINTS if overwrite else None)
    components, files = _components(preset, component, layers, shard_bytes)
    specs = [spec for part in components for spec in part.specs]
    total = sum(spec.bytes for spec in specs)
    with staging, reporter.progress("generating", total) as shown:
        _write_staged(staging, components, files, seed, shown)
    return SynthReport(
        output=output,
        files=tuple((part.folder + file.name, file.total_bytes) for part in components for file in part.layout.files),
        tensors=len(specs),
        total_bytes=total,
        parameters=sum(math.prod(spec.shape) for spec in specs),
        seed=seed,
        elapsed_s=time.monotonic() - started,
    )


def _check_options(preset: str, component: str | None, layers: int | None, seed: int) -> None:
    if preset not in PRESETS:
        raise UsageError(f"--preset {preset}: is not one of {', '.join(PRESETS)}")
    if preset in PIPELINES and (component or layers):
        option = "--component" if component else "--layers"
        raise UsageError(
            f"{option}: the preset {preset} is a whole pipeline of one size; only those of Lens have parts"
        )
    if component not in (None, COMPONENT):
        raise UsageError(f"--component {component}: only the {COMPONENT} can be written alone")
    if layers is not None and not 1 <= layers <= MAXIMUM_LAYERS:
        raise UsageError(f"--layers {layers}: must be between 1 and {MAXIMUM_LAYERS}")
    if preset == "signs" and (seed != signs.TEXT_ENCODER_SEED or layers not in (None, signs.TRANSFORMER.num_layers)):
        raise UsageError("--preset signs: its weights are trained; leave out --seed and --layers")


def _components(
    preset: str, component: str | None, layers: int | None, shard_bytes: int
) -> tuple[list[_Component], dict[str, bytes]]:
    """The components of a preset, and the small files of a pipeline by their path."""
    if preset in PIPELINES:
        return _other_pipeline(PIPELINES[preset], shard_bytes)
    config = {"lens": LensConfig(), "tiny": TRANSFORMER, "signs": signs.TRANSFORMER}[preset]
    config = replace(config, num_layers=layers or config.num_layers)
    if preset == "lens" or component is not None:
        components = [_transformer("", config, shard_bytes)]
        files: dict[str, bytes] = {}
    else:
        components, files = _tiny_pipeline(config, signs.vae_config() if preset == "signs" else None, shard_bytes)
    if preset == "signs":
        components = [_with_trained(part, part.folder or "transformer/") for part in components]
    return components, files


def _tiny_pipeline(
    config: LensConfig, vae_config: dict[str, Any] | None, shard_bytes: int
) -> tuple[list[_Component], dict[str, bytes]]:
    """The components of a tiny pipeline, and its small files by their path."""
    require_library_memory()
    # This import takes seconds, and a transformer alone does not need it.
    from converter.synthesis.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    components = [
        _component("text_encoder/", *text_encoder_weights(tokenizer), shard_bytes, "model"),
        _transformer("transformer/", config, shard_bytes),
        _component("vae/", *vae_weights(vae_config), shard_bytes),
    ]
    return components, small_files(tokenizer)


def _other_pipeline(pipeline: Pipeline, shard_bytes: int) -> tuple[list[_Component], dict[str, bytes]]:
    """The components of a pipeline that is not Lens, and its small files by their path."""
    require_library_memory()
    components = []
    for model in pipeline.models:
        config, folder = model_config(model), f"{model.name}/"
        specs = model_tensors(model.kind, config, model.dtype)
        # Two components may have the same tensors, with other numbers.
        components.append(replace(_component(folder, specs, config, shard_bytes, model.kind.stem), prefix=folder))
    return components, pipeline_files(pipeline)


def _with_trained(part: _Component, folder: str) -> _Component:
    """The component of the pipeline ``signs`` in a folder, with its trained weights if it has any."""
    return replace(part, trained=signs.read_weights(folder)) if folder in signs.PREFIXES else part


def _transformer(folder: str, config: LensConfig, shard_bytes: int) -> _Component:
    specs = tuple(TensorSpec(name, "F32", shape) for name, shape in lens_tensors(config))
    content = {"_class_name": CLASS_NAME, "_diffusers_version": DIFFUSERS_VERSION, **config.to_dict()}
    return _component(folder, specs, content, shard_bytes)


def _component(
    folder: str,
    specs: tuple[TensorSpec, ...],
    config: Mapping[str, Any],
    shard_bytes: int,
    stem: str = "diffusion_pytorch_model",
) -> _Component:
    return _Component(folder, specs, config, lay_out(specs, stem=stem, shard_bytes=shard_bytes))


def _write_staged(
    staging: Staging, components: Iterable[_Component], files: Mapping[str, bytes], seed: int, progress: Progress
) -> None:
    """Write everything and rename it to the output; leave nothing behind when that fails."""
    staging.open()
    if staging.is_taken_by_another_command:
        reason = f"{staging.output}: an interrupted conversion to this folder exists"
        raise OutputError(reason, f"Finish it with `lensconv convert`, or delete {staging.folder.name} next to it.")
    staging.begin("")
    try:
        with writing(staging.output):
            for component in components:
                folder = staging.release / component.folder
                folder.mkdir(exist_ok=True)
                write_weights(
                    folder, component.specs, component.layout, seed, progress, component.trained, component.prefix
                )
                write_file(folder, CONFIG_NAME, encode_json(component.config))
                if component.layout.index:
                    write_file(folder, component.layout.index_name, component.layout.index)
            for name, content in files.items():
                write_file(staging.release, name, content)
        staging.publish()
    except BaseException:
        staging.discard()
        raise
