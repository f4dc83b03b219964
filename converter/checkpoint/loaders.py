"""What the loaders of diffusers and transformers open in a component's folder, by its config and its file names.

Source: ``from_pretrained`` of diffusers 0.42 and transformers 5. A model of diffusers is in shards if there is
an index, else in one file; transformers looks for the one file first. Both open PyTorch's format last.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from converter.checkpoint.weights import PICKLED_SUFFIX, WEIGHT_STEMS, WEIGHTS_SUFFIX, WeightNames, named_weights

#: Files with the settings of what has no weights: tokenizers, processors, schedulers.
_SETTINGS = (
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "scheduler_config.json",
    "guider_config.json",
    "mel_config.json",
)
#: Ends of the names of classes that have no weights, in diffusers and transformers.
_WEIGHTLESS = (
    "Scheduler",
    "Tokenizer",
    "TokenizerFast",
    "Processor",
    "ProcessorFast",
    "ProcessorPil",
    "FeatureExtractor",
    "Backend",
    "Guidance",
    "Mel",
)
#: Stems of the weight files, by library.
LOADER_STEMS = dict(zip(("diffusers", "transformers"), WEIGHT_STEMS, strict=True))


def has_weights(class_name: str, config: Mapping[str, Any], names: Collection[str]) -> bool:
    """Whether a component is a model: its folder says so, or else the name of its class.

    Args:
        class_name: as ``model_index.json`` gives it.
        config: content of its ``config.json``; empty if it has none.
        names: names of the files in its folder.
    """
    is_weightless = _is_weightless(class_name)
    if _describes_model(config):
        return not (is_weightless or _is_weightless(str(config.get("_class_name", ""))))
    is_stored = any(WEIGHTS_SUFFIX in name or PICKLED_SUFFIX in name for name in names)
    return not is_weightless and (is_stored or not any(name in names for name in _SETTINGS))


def possible_loaders(library: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    """The library whose loader opens a model; both where neither its config nor ``model_index.json`` says which one."""
    if "_class_name" in config:
        return ("diffusers",)
    if _describes_model(config):
        return ("transformers",)
    return (library,) if library in LOADER_STEMS else tuple(LOADER_STEMS)


def opened_weights(loader: str, names: Collection[str], variant: str) -> WeightNames | None:
    """The weights that a loader opens for a variant, empty for none. diffusers opens no shards in PyTorch's format."""
    is_diffusers = loader == "diffusers"
    found = named_weights(names, LOADER_STEMS[loader], variant=variant, prefers_file=not is_diffusers)
    if found is not None:
        return found
    stem = LOADER_STEMS[loader] if is_diffusers else "pytorch_model"
    found = named_weights(names, stem, PICKLED_SUFFIX, variant, prefers_file=True)
    return None if found and found.index and is_diffusers else found


def _describes_model(config: Mapping[str, Any]) -> bool:
    return any(key in config for key in ("_class_name", "architectures", "model_type"))


def _is_weightless(class_name: str) -> bool:
    return class_name.endswith(_WEIGHTLESS) and not class_name.endswith("AudioTokenizer")
