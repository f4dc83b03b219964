"""Models without weights: built on the meta device, and matched to the tensors of a checkpoint.

A loader decides which class it builds, which dtype each tensor gets, and what tensors are called in the model and in
its files. diffusers and transformers decide differently; this module asks each library for its own answer.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from converter.checkpoint.source import Checkpoint
from converter.errors import DependencyError, UnsupportedCheckpoint
from converter.libraries import load_library, loading_errors, missing_package
from converter.models.classes import TORCH_DTYPES, find_class, refuse_absurd
from converter.models.config import ModelConfig, model_config
from converter.models.lens.layout import CLASS_NAME as LENS
from converter.models.lens.layout import MAXIMUM_LAYERS, LensConfig, lens_tensors
from converter.models.matching import are_equal, match_tensors


@dataclass(frozen=True)
class EmptyModel:
    """A model on the meta device, in the dtypes that loading it in bfloat16 would give."""

    model: nn.Module
    is_transformers: bool
    """Whether transformers loads and saves it, not diffusers."""
    config: ModelConfig
    """What it was built from."""
    sources: Mapping[str, str]
    """Names of the tensors in the checkpoint, by their names in the model."""
    ignored: tuple[str, ...]
    """Tensors of the checkpoint that the class does not load."""
    depends_on_numbers: bool = False
    """Whether tensors that the model ties are in the checkpoint twice, so that their numbers were compared."""

    @property
    def stem(self) -> str:
        """Name of the weight file that the library writes, without its suffix."""
        return "model" if self.is_transformers else "diffusion_pytorch_model"


def build_empty_model(checkpoint: Checkpoint) -> EmptyModel:
    """Build the checkpoint's class without weights, and match its tensors.

    Raises:
        UnsupportedCheckpoint: the class is unknown, cannot be built from the config, or has other tensors.
    """
    config, model_class = _find_class(checkpoint)
    if _is_transformers(model_class):
        return _build_transformers(model_class, checkpoint, config)
    return _build_diffusers(model_class, checkpoint, config)


def tensors_of_class(checkpoint: Checkpoint, loaded: Collection[str]) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint's class, without storage, by the names under which its library saves them.

    Args:
        checkpoint: with the config of the model.
        loaded: its tensors that are in the model's own form. transformers saves some classes under the names with which
            it loaded them, which these show.

    Raises:
        UnsupportedCheckpoint: the class is unknown, or cannot be built from the config.
    """
    config, model_class = _find_class(checkpoint)
    if _is_transformers(model_class):
        return saved_by_transformers(_from_pretrained(model_class, checkpoint, config.content, loaded))
    return dict(_from_config(model_class, checkpoint, config.content).state_dict(keep_vars=True))


def _find_class(checkpoint: Checkpoint) -> tuple[ModelConfig, Any]:
    config = model_config(checkpoint)
    where = str(checkpoint.folder / "config.json")
    if not config.class_name:
        reason = f"{checkpoint.folder}: no config.json names a class, and the tensors are not those of Lens"
        raise UnsupportedCheckpoint(reason, "Give the component's folder, with its config.json.")
    refuse_absurd(config.content, max(MAXIMUM_LAYERS, len(checkpoint.tensors)), where)
    if config.class_name == LENS:
        # These checks say more than a constructor that fails.
        any(lens_tensors(LensConfig.from_dict(config.content, where)))
    return config, find_class(config.class_name, where)


def _is_transformers(model_class: type) -> bool:
    return issubclass(model_class, load_library("transformers").PreTrainedModel)


@contextmanager
def _constructing(model_class: Any, checkpoint: Checkpoint) -> Iterator[None]:
    """Raise an error that names the config for what the library raises in the block."""
    try:
        yield
    except ImportError as error:
        raise missing_package(f"{model_class.__name__} cannot be built", error) from error
    except loading_errors() as error:
        raise UnsupportedCheckpoint(
            f"{checkpoint.folder / 'config.json'}: {model_class.__name__} cannot be built from it: "
            f"{str(error) or repr(error)}",
            "Compare the config with the one that the model's authors publish.",
        ) from error


def _from_config(model_class: Any, checkpoint: Checkpoint, config: Mapping[str, Any]) -> Any:
    """Build a model of diffusers from its config alone; parameters have no storage."""
    loading = load_library("diffusers.models.model_loading_utils")
    utilities = load_library("diffusers.models.modeling_utils")
    if issubclass(model_class, utilities.LegacyModelMixin):
        model_class = loading._fetch_remapped_cls_from_config({"norm_type": None, **config}, model_class)
    with _constructing(model_class, checkpoint), load_library("accelerate").init_empty_weights():
        return model_class.from_config({key: value for key, value in config.items() if key != "_name_or_path"})


def _build_diffusers(model_class: Any, checkpoint: Checkpoint, config: ModelConfig) -> EmptyModel:
    model = _from_config(model_class, checkpoint, config.content)
    model.eval()
    # The loader renames the attention blocks of old autoencoders; given a mapping of names to themselves, it shows
    # which name became which.
    names = {name: name for name in checkpoint.tensors}
    if checkpoint.index is None:
        model._fix_state_dict_keys_on_load(names)
    keep_in_float32 = set(model._keep_in_fp32_modules or ())
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_floating_point():
            path, _, last = name.rpartition(".")
            dtype = torch.float32 if keep_in_float32 & set(name.split(".")) else torch.bfloat16
            empty = tensor.detach().to(device="meta", dtype=dtype)
            # Parameters are on the meta device already; buffers are not, and cannot be moved there.
            if isinstance(tensor, nn.Parameter):
                tensor.data = empty
            else:
                model.get_submodule(path)._buffers[last] = empty
    ignored_patterns = model._keys_to_ignore_on_load_unexpected or ()
    sources, ignored = match_tensors(model, names, checkpoint, ignored_patterns)
    return EmptyModel(model, False, config, sources, ignored)


def _build_transformers(model_class: Any, checkpoint: Checkpoint, config: ModelConfig) -> EmptyModel:
    # from_pretrained itself is given tensors without storage, so that it decides about dtypes, names and ties.
    names = {name: name for name in checkpoint.tensors}
    model = _load_transformers(model_class, checkpoint, config.content, names)
    tied = {
        alias: target for alias, target in model.all_tied_weights_keys.items() if alias in names and target in names
    }
    duplicates = {alias for alias, target in tied.items() if are_equal(checkpoint, names[alias], names[target])}
    if duplicates:
        # Tied tensors that are in the file twice are loaded, and saved, as one; if they differ, as two.
        names = {name: source for name, source in names.items() if source not in duplicates}
        model = _load_transformers(model_class, checkpoint, config.content, names)
    sources, ignored = match_tensors(model, names, checkpoint, model._keys_to_ignore_on_load_unexpected or ())
    return EmptyModel(model, True, config, sources, tuple(sorted({*ignored, *duplicates})), bool(tied))


def _from_pretrained(
    model_class: Any, checkpoint: Checkpoint, config: Mapping[str, Any], names: Collection[str]
) -> Any:
    """Build a model of transformers as if it loaded these tensors; neither they nor the others have storage."""
    state = {
        name: torch.empty(entry.shape, dtype=TORCH_DTYPES[entry.dtype], device="meta")
        for name, entry in ((name, checkpoint.tensors[name].entry) for name in names)
    }
    with _constructing(model_class, checkpoint):
        return model_class.from_pretrained(
            None,
            config=model_class.config_class.from_dict(dict(config)),
            state_dict=state,
            dtype=torch.bfloat16,
            device_map={"": "meta"},
            # Shapes are compared afterwards.
            ignore_mismatched_sizes=True,
        )


def _load_transformers(
    model_class: Any, checkpoint: Checkpoint, config: Mapping[str, Any], names: dict[str, str]
) -> Any:
    """Load a model of transformers from tensors without storage.

    Args:
        model_class: the class.
        checkpoint: where the tensors are.
        config: content of ``config.json``.
        names: names in the checkpoint, as keys and as values; the keys become the names in the model.
    """
    model = _from_pretrained(model_class, checkpoint, config, names)
    model.eval()
    loading = load_library("transformers.core_model_loading")
    mapping = load_library("transformers.conversion_mapping").get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, loading.WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, loading.WeightConverter)]
    wanted = model.state_dict()
    for name in sorted(names, key=loading.dot_natural_key):
        renamed, converted = loading.rename_source_key(name, renamings, converters, model.base_model_prefix, wanted)
        if renamed not in wanted and name in wanted:
            renamed, converted = loading.rename_source_key(name, [], [], model.base_model_prefix, wanted)
        if converted is not None:
            raise UnsupportedCheckpoint(
                f"{checkpoint.folder}: transformers merges or splits {name} and others of {model_class.__name__} when "
                "it loads them, so that they cannot be converted tensor by tensor",
                "Leave this component out; it stays as it is." if checkpoint.component else "",
            )
        names[renamed] = names.pop(name)
    return model


def saved_names(empty: EmptyModel) -> dict[str, torch.Tensor]:
    """The state dict that ``save_pretrained`` would write: tied tensors once, under the names of the files.

    Returns:
        By name in the file, the tensor of the model, in the order in which it decides the shards.
    """
    return saved_by_transformers(empty.model) if empty.is_transformers else dict(empty.model.state_dict(keep_vars=True))


def saved_by_transformers(model: Any) -> dict[str, torch.Tensor]:
    """The same for a model of transformers, whose files may use other names than the model.

    Args:
        model: a ``PreTrainedModel``; its tensors may be without storage.
    """
    state = dict(model.state_dict(keep_vars=True))
    utilities = load_library("transformers.modeling_utils")
    for name in getattr(model, "_keys_to_ignore_on_save", None) or ():
        state.pop(name, None)
    state = utilities.remove_tied_weights_from_state_dict(state, model)
    saved: dict[str, torch.Tensor] = load_library("transformers.core_model_loading").revert_weight_conversion(
        model, state
    )
    if {id(tensor) for tensor in saved.values()} != {id(tensor) for tensor in state.values()}:
        reason = f"transformers renames tensors of {type(model).__name__} in a way that lensconv does not know"
        raise DependencyError(reason, "Use the version of transformers in constraints.txt.")
    return saved


def written_config(empty: EmptyModel) -> dict[str, Any]:
    """``config.json`` as ``save_pretrained`` would write it, without the path that the model was loaded from."""
    model: Any = empty.model
    if empty.is_transformers:
        model.config.dtype = str(model.dtype).removeprefix("torch.")
        model.config.architectures = [type(model).__name__]
        content: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=True))
    else:
        content = json.loads(model.to_json_string())
    content.pop("_name_or_path", None)
    return content
