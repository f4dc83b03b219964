"""Open a Lens pipeline repo on disk, and check it; without torch.

``model_index.json`` names classes by library, and loaders import what it names. This module imports nothing: it accepts
only the known classes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.checkpoint.files import read_json
from converter.checkpoint.header import Header
from converter.checkpoint.source import PIPELINE_INDEX, Checkpoint, open_checkpoint
from converter.errors import MalformedCheckpoint, MissingInput, UnsupportedCheckpoint
from converter.models.lens.layout import CLASS_NAME, PIPELINE_CLASS_NAME, LensConfig, lens_tensors
from converter.models.pipelines import MODULAR_INDEX

#: Class names of each component, in repos of microsoft/Lens and in copies saved by newer libraries.
COMPONENT_CLASSES: dict[str, tuple[str, ...]] = {
    "scheduler": ("FlowMatchEulerDiscreteScheduler",),
    "text_encoder": ("LensGptOssEncoder", "GptOssForCausalLM"),
    "tokenizer": ("PreTrainedTokenizerFast", "TokenizersBackend"),
    "transformer": (CLASS_NAME,),
    "vae": ("AutoencoderKLFlux2",),
}
#: Components with weights, in the order in which they run.
WEIGHTS = ("text_encoder", "transformer", "vae")
#: ``model_type`` in the text encoder's config.
_TEXT_ENCODER_TYPE = "gpt_oss"
#: Steps and guidance of the variants, which only the name of a repo shows; their configs are the same.
_VARIANTS = (("turbo", 4, 1.0), ("base", 50, 5.0))
DEFAULT_STEPS = 20
DEFAULT_GUIDANCE = 5.0
#: The Hub's cache stores a repo as models--OWNER--NAME/snapshots/REVISION.
_CACHE_DEPTH = 3


@dataclass(frozen=True)
class PipelineRepo:
    """A folder with a Lens pipeline."""

    folder: Path
    weights: dict[str, Checkpoint]
    """Checkpoints of the text encoder, the transformer and the autoencoder, by component."""

    @property
    def transformer(self) -> Checkpoint:
        """The denoiser."""
        return self.weights["transformer"]

    @property
    def text_encoder(self) -> Checkpoint:
        """GPT-OSS."""
        return self.weights["text_encoder"]

    @property
    def vae(self) -> Checkpoint:
        """The autoencoder."""
        return self.weights["vae"]

    @property
    def class_name(self) -> str:
        """Name of the pipeline's class."""
        return PIPELINE_CLASS_NAME

    @property
    def denoiser(self) -> str:
        """Name of the component that denoises."""
        return "transformer"

    @property
    def component_names(self) -> tuple[str, ...]:
        """Names of all components."""
        return tuple(COMPONENT_CLASSES)

    @property
    def headers(self) -> dict[str, tuple[Header, ...]]:
        """Headers of the weight files, by component."""
        return {name: checkpoint.headers for name, checkpoint in self.weights.items()}

    @property
    def weight_files(self) -> list[Path]:
        """The safetensors files of all components."""
        return [header.file for checkpoint in self.weights.values() for header in checkpoint.headers]

    @property
    def quantization(self) -> dict[str, Any] | None:
        """SDNQ's configuration of the transformer; None if it is not quantized."""
        return _quantization(self.transformer, "sdnq")

    @property
    def quantizations(self) -> dict[str, dict[str, Any]]:
        """SDNQ's configuration of each component that it has quantized, by name; the transformer comes first."""
        names = sorted(self.weights, key=lambda name: name != "transformer")
        found = {name: _quantization(self.weights[name], "sdnq") for name in names}
        return {name: config for name, config in found.items() if config is not None}

    @property
    def uses_sdnq(self) -> bool:
        """Whether SDNQ has quantized a component."""
        return bool(self.quantizations)

    @property
    def has_packed_text_encoder(self) -> bool:
        """Whether the text encoder's experts are in MXFP4."""
        return _quantization(self.text_encoder, "mxfp4") is not None

    @property
    def default_steps(self) -> int:
        """Steps that suit the variant."""
        return self._variant[0]

    @property
    def default_guidance(self) -> float:
        """Guidance scale that suits the variant."""
        return self._variant[1]

    @property
    def _variant(self) -> tuple[int, float]:
        names = "/".join(self.folder.absolute().parts[-_CACHE_DEPTH:]).lower()
        for name, steps, guidance in _VARIANTS:
            if re.search(rf"lens[-_]?{name}", names):
                return steps, guidance
        return DEFAULT_STEPS, DEFAULT_GUIDANCE


def _quantization(checkpoint: Checkpoint, method: str) -> dict[str, Any] | None:
    """The quantization in a component's config, if it has that method."""
    found = checkpoint.config.get("quantization_config")
    return found if isinstance(found, dict) and found.get("quant_method") == method else None


def names_another_pipeline(path: Path) -> bool:
    """Whether a folder is a pipeline repo, and not one of Lens.

    Raises:
        MissingInput: its index cannot be read.
        MalformedCheckpoint: its index is not a JSON object.
    """
    if not (path / PIPELINE_INDEX).is_file():
        return (path / MODULAR_INDEX).is_file()
    return read_json(path / PIPELINE_INDEX).get("_class_name") != PIPELINE_CLASS_NAME


def refuse_other_class(path: Path) -> None:
    """Refuse what is not a pipeline repo of Lens, by its index.

    Raises:
        MissingInput: the folder does not exist.
        MalformedCheckpoint: the index breaks its format.
        UnsupportedCheckpoint: it is another pipeline, a component, or not a pipeline.
    """
    if not path.exists():
        raise MissingInput(path, "no such folder", "Check the path; `hf download` downloads a repo from the Hub.")
    if not (path / PIPELINE_INDEX).is_file():
        raise UnsupportedCheckpoint(
            f"{path}: is not a pipeline repo, it has no {PIPELINE_INDEX}",
            "Give the folder with the subfolders transformer, text_encoder and so on.",
        )
    _check_index(path / PIPELINE_INDEX, read_json(path / PIPELINE_INDEX))


def open_pipeline(path: Path) -> PipelineRepo:
    """Open a pipeline repo: read its small files and headers, and compare them.

    Raises:
        MissingInput: the folder, or a part of it, does not exist.
        MalformedCheckpoint: a file breaks its format, or two files contradict each other.
        UnsupportedCheckpoint: it is another pipeline, a component, or not a pipeline.
    """
    refuse_other_class(path)
    weights = {name: open_checkpoint(path, component=name) for name in WEIGHTS}
    for name, file in (("scheduler", "scheduler_config.json"), ("tokenizer", "tokenizer.json")):
        read_json(path / name / file)
    repo = PipelineRepo(path, weights)
    _check_components(repo)
    return repo


def _check_index(file: Path, index: dict[str, Any]) -> None:
    name = index.get("_class_name")
    if name != PIPELINE_CLASS_NAME:
        raise UnsupportedCheckpoint(f"{file}: is for {name}; only {PIPELINE_CLASS_NAME} can be measured")
    for component, classes in COMPONENT_CLASSES.items():
        entry = index.get(component)
        found = entry[1] if isinstance(entry, list) and len(entry) == 2 else f"{entry!r:.80}"
        if found not in classes:
            raise UnsupportedCheckpoint(f"{file}: {component} is {found}, but must be {classes[0]}")


def _check_components(repo: PipelineRepo) -> None:
    """Refuse components that do not fit each other; loaders would fill what is missing with random numbers."""
    for checkpoint in repo.weights.values():
        if checkpoint.removed_prefix:
            reason = f"the names of all tensors begin with {checkpoint.removed_prefix}, so that no loader finds them"
            raise UnsupportedCheckpoint(
                f"{checkpoint.folder}: {reason}", "Run `lensconv convert`, which removes this prefix."
            )
    for checkpoint, expected in ((repo.transformer, CLASS_NAME), (repo.vae, COMPONENT_CLASSES["vae"][0])):
        if checkpoint.class_name != expected:
            known = checkpoint.class_name or "an unnamed class"
            raise UnsupportedCheckpoint(f"{checkpoint.folder / 'config.json'}: is for {known}, not {expected}")
    encoder = repo.text_encoder.config
    where = repo.text_encoder.folder / "config.json"
    if encoder.get("model_type") != _TEXT_ENCODER_TYPE:
        raise UnsupportedCheckpoint(f"{where}: model_type is {encoder.get('model_type')}, not {_TEXT_ENCODER_TYPE}")
    config = LensConfig.from_dict(repo.transformer.config, str(repo.transformer.folder / "config.json"))
    if encoder.get("hidden_size") != config.enc_hidden_dim:
        raise MalformedCheckpoint(
            where, f"hidden_size is {encoder.get('hidden_size')}, the transformer needs {config.enc_hidden_dim}"
        )
    layers = encoder.get("num_hidden_layers")
    needed = max(config.selected_layer_index) + 1
    if type(layers) is not int or layers < needed:
        raise MalformedCheckpoint(where, f"num_hidden_layers is {layers!r:.80}, the transformer needs {needed} or more")
    if repo.quantization is None:
        shapes, found = dict(lens_tensors(config)), repo.transformer.shapes
        for name in (*sorted(shapes.keys() ^ found.keys()), *shapes):
            reason = f"has shape {list(found.get(name, ()))}, config.json needs {list(shapes.get(name, ()))}"
            if name not in found:
                reason = "is missing, and config.json needs it"
            elif name not in shapes:
                reason = "is not expected, according to config.json"
            elif found[name] == shapes[name]:
                continue
            raise MalformedCheckpoint(repo.transformer.folder, reason, tensor=name)
