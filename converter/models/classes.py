"""Model classes without weights: found by name, built on the meta device, matched to the tensors of a checkpoint.

The three things a loader decides for itself (which class, which dtype each tensor gets, under which name it goes in
and out) differ between diffusers and transformers; this module asks each library for its own answer.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from converter.checkpoint.dtypes import WEIGHT_DTYPES
from converter.checkpoint.reader import TensorReader, ranges
from converter.checkpoint.source import Checkpoint
from converter.errors import DependencyError, UnsupportedCheckpoint, printable
from converter.libraries import load_library
from converter.models.lens.layout import CLASS_NAME as LENS
from converter.models.lens.layout import MAXIMUM_LAYERS, LensConfig, infer_config, lens_tensors

#: torch's dtypes by the names that safetensors gives them.
TORCH_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
#: Numbers that are compared at a time where tied tensors are in a file twice.
_COMPARED_ELEMENTS = 1 << 22
#: Ends of names that the libraries have and that are no models.
_NOT_MODELS = ("Config", "Image", "Output", "Pipeline", "Processor", "Scheduler", "Tokenizer")

#: What the constructors of the libraries raise for a config that they cannot use.
_CONSTRUCTION_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    StrictDataclassError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class EmptyModel:
    """A model on the meta device, in the dtypes that loading it in bfloat16 would give."""

    model: nn.Module
    is_transformers: bool
    """Whether transformers loads and saves it, not diffusers."""
    sources: Mapping[str, str]
    """By name in the model, the name of the tensor in the checkpoint."""
    ignored: tuple[str, ...]
    """Tensors of the checkpoint that the class does not load."""

    @property
    def stem(self) -> str:
        """Name of the weight file that the library writes, without its suffix."""
        return "model" if self.is_transformers else "diffusion_pytorch_model"


def build_empty_model(checkpoint: Checkpoint) -> EmptyModel:
    """Build the checkpoint's class without weights, and match its tensors.

    Raises:
        UnsupportedCheckpoint: the class is unknown, cannot be built from the config, or has other tensors.
    """
    class_name, config = checkpoint.class_name, checkpoint.config
    where = str(checkpoint.folder / "config.json")
    if not class_name:
        inferred = infer_config(checkpoint.shapes)
        if inferred is None:
            raise UnsupportedCheckpoint(
                f"{checkpoint.folder}: no config.json that names a class, and no tensors that tell it",
                "Give the component's folder, with its config.json.",
            )
        class_name, config = LENS, inferred.to_dict()
    refuse_absurd(config, max(MAXIMUM_LAYERS, len(checkpoint.tensors)), where)
    if class_name == LENS:
        # Its own checks say more than a constructor that fails.
        any(lens_tensors(LensConfig.from_dict(config, where)))
    model_class = find_class(class_name, where)
    if issubclass(model_class, load_library("transformers").PreTrainedModel):
        return _build_transformers(model_class, checkpoint, config)
    return _build_diffusers(model_class, checkpoint, config)


@contextmanager
def _constructing(model_class: Any, checkpoint: Checkpoint) -> Iterator[None]:
    """Blame the config for what the library raises inside the block."""
    try:
        yield
    except _CONSTRUCTION_ERRORS as error:
        raise UnsupportedCheckpoint(
            f"{checkpoint.folder / 'config.json'}: {model_class.__name__} cannot be built from it: "
            f"{str(error) or repr(error)}",
            "Compare the config with the one that the model's authors publish.",
        ) from error


def refuse_absurd(config: Mapping[str, Any], most: int, where: str) -> None:
    """Refuse a config that asks for more layers than there can be; building them would take all memory."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            refuse_absurd(value, most, where)
        elif re.search("layer|block|depth", key) and type(value) is int and value > most:
            raise UnsupportedCheckpoint(
                f"{where}: {key} is {printable(str(value), 20)}, more than there are tensors",
                "Compare the config with the one that the model's authors publish.",
            )


def find_class(name: str, where: str) -> Any:
    """Look a model class up by its name: lensconv's own first, then diffusers, then transformers.

    Args:
        name: of the class.
        where: the file that names it, for messages.

    Raises:
        UnsupportedCheckpoint: neither library has a model of that name.
    """
    if name == LENS:
        return load_library("converter.models.lens.modules").LensTransformer2DModel
    libraries = load_library("diffusers"), load_library("transformers")
    bases = libraries[0].ModelMixin, libraries[1].PreTrainedModel
    for library in libraries:
        if name.isidentifier() and name in dir(library):
            found = getattr(library, name)
            if isinstance(found, type) and issubclass(found, bases):
                return found
    known = {LENS, *(candidate for library in libraries for candidate in dir(library))} - {name}
    models = [candidate for candidate in known if not candidate.endswith(_NOT_MODELS)]
    near = difflib.get_close_matches(name, models, n=3)
    raise UnsupportedCheckpoint(
        f"{where}: {name}: neither diffusers nor transformers has a model of that name",
        f"Names like it: {', '.join(near)}." if near else "Update diffusers and transformers.",
    )


def _build_diffusers(model_class: Any, checkpoint: Checkpoint, config: Mapping[str, Any]) -> EmptyModel:
    loading = load_library("diffusers.models.model_loading_utils")
    utilities = load_library("diffusers.models.modeling_utils")
    if issubclass(model_class, utilities.LegacyModelMixin):
        model_class = loading._fetch_remapped_cls_from_config({"norm_type": None, **config}, model_class)
    with _constructing(model_class, checkpoint), load_library("accelerate").init_empty_weights():
        model = model_class.from_config({key: value for key, value in config.items() if key != "_name_or_path"})
    model.eval()
    # The loader renames the attention blocks of old autoencoders; handed a mapping of names to themselves, it tells
    # which name became which.
    names = {name: name for name in checkpoint.tensors}
    if checkpoint.index is None:
        model._fix_state_dict_keys_on_load(names)
    keep_in_float32 = set(model_class._keep_in_fp32_modules or ())
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_floating_point():
            path, _, last = name.rpartition(".")
            dtype = torch.float32 if keep_in_float32 & set(name.split(".")) else torch.bfloat16
            empty = tensor.detach().to(device="meta", dtype=dtype)
            # Parameters are on the meta device already; buffers are not, and cannot be moved there in place.
            if isinstance(tensor, nn.Parameter):
                tensor.data = empty
            else:
                model.get_submodule(path)._buffers[last] = empty
    ignored_patterns = model_class._keys_to_ignore_on_load_unexpected or ()
    sources, ignored = _match(model, names, checkpoint, ignored_patterns)
    return EmptyModel(model, False, sources, ignored)


def _build_transformers(model_class: Any, checkpoint: Checkpoint, config: Mapping[str, Any]) -> EmptyModel:
    # from_pretrained itself is given tensors without storage, so that it decides about dtypes, names and ties.
    names = {name: name for name in checkpoint.tensors}
    model = _load_transformers(model_class, checkpoint, config, names)
    duplicates = {
        alias
        for alias, target in model.all_tied_weights_keys.items()
        if alias in names and target in names and _are_equal(checkpoint, names[alias], names[target])
    }
    if duplicates:
        # Tied tensors that are in the file twice are loaded, and saved, as one; if they differ, as two.
        names = {name: source for name, source in names.items() if source not in duplicates}
        model = _load_transformers(model_class, checkpoint, config, names)
    sources, ignored = _match(model, names, checkpoint, model._keys_to_ignore_on_load_unexpected or ())
    return EmptyModel(model, True, sources, tuple(sorted({*ignored, *duplicates})))


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
    state = {
        name: torch.empty(entry.shape, dtype=TORCH_DTYPES[entry.dtype], device="meta")
        for name, entry in ((name, checkpoint.tensors[name].entry) for name in names)
    }
    with _constructing(model_class, checkpoint):
        model: Any = model_class.from_pretrained(
            None,
            config=model_class.config_class.from_dict(dict(config)),
            state_dict=state,
            dtype=torch.bfloat16,
            device_map={"": "meta"},
        )
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
                f"{model_class.__name__}: transformers merges or splits {name} and others when it loads "
                "them, so that they cannot be converted tensor by tensor",
                "Save the model in its loaded form first.",
            )
        names[renamed] = names.pop(name)
    return model


def _are_equal(checkpoint: Checkpoint, first: str, second: str) -> bool:
    """Whether two tensors hold the same numbers as bfloat16; the one question that headers cannot answer."""
    tensors = checkpoint.tensors[first], checkpoint.tensors[second]
    if tensors[0].entry.shape != tensors[1].entry.shape:
        return False
    with TensorReader() as reader:
        elements = prod(tensors[0].entry.shape)
        for start, stop in ranges(elements, _COMPARED_ELEMENTS):
            numbers = []
            for tensor in tensors:
                dtype = TORCH_DTYPES[tensor.entry.dtype]
                data = np.empty((stop - start) * dtype.itemsize, np.uint8)
                reader.read(tensor, start * dtype.itemsize, data)
                numbers.append(torch.from_numpy(data).view(dtype).to(torch.bfloat16))
            if not torch.equal(*numbers):
                return False
    return True


def _match(
    model: nn.Module,
    names: Mapping[str, str],
    checkpoint: Checkpoint,
    ignored_patterns: Any,
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Match tensors of the checkpoint to those of the model, in both directions.

    Args:
        model: the model on the meta device.
        names: by name in the model, the name in the checkpoint.
        checkpoint: where the tensors are.
        ignored_patterns: regular expressions of names that the class expects not to load.

    Raises:
        UnsupportedCheckpoint: a tensor is missing, has another shape, or is one too many.
    """
    class_name = type(model).__name__
    where = printable(str(checkpoint.folder))
    state = model.state_dict(keep_vars=True)
    holders: dict[int, list[str]] = {}
    for name, tensor in state.items():
        holders.setdefault(id(tensor), []).append(name)
    sources: dict[str, str] = {}
    for group in holders.values():
        # Tied tensors are one object with several names, of which a checkpoint needs to hold only one.
        present = [name for name in group if name in names]
        if not present:
            raise UnsupportedCheckpoint(
                f"{where}: tensor {group[0]} is missing; {class_name} needs it", "Download it again."
            )
        for name in group:
            sources[name] = names[name if name in names else present[0]]
    for name, source in sources.items():
        found, wanted = checkpoint.tensors[source].entry, tuple(state[name].shape)
        if found.shape != wanted:
            raise UnsupportedCheckpoint(
                f"{where}: tensor {source} has shape {list(found.shape)}; "
                f"{class_name} with this config.json needs {list(wanted)}",
                "Compare config.json with the one that belongs to these weights.",
            )
        given, expected = TORCH_DTYPES.get(found.dtype), state[name].dtype
        if given != expected and not (found.dtype in WEIGHT_DTYPES and expected.is_floating_point):
            raise UnsupportedCheckpoint(
                f"{where}: tensor {source} is {found.dtype}, which {class_name} cannot take for {expected}",
                "Convert the original, unquantized checkpoint.",
            )
    extra = [source for name, source in names.items() if name not in state]
    unexpected = [source for source in extra if not any(re.search(pattern, source) for pattern in ignored_patterns)]
    if unexpected:
        raise UnsupportedCheckpoint(
            f"{where}: tensor {unexpected[0]} is not part of {class_name}"
            + (f", nor are {len(unexpected) - 1} others" if len(unexpected) > 1 else ""),
            "Compare config.json with the one that belongs to these weights.",
        )
    return sources, tuple(sorted(extra))


def saved_names(empty: EmptyModel) -> dict[str, torch.Tensor]:
    """The state dict that ``save_pretrained`` would write: tied tensors once, under the names of the files.

    Returns:
        By name in the file, the tensor of the model, in the order in which it decides the shards.
    """
    model = empty.model
    state = dict(model.state_dict(keep_vars=True))
    if not empty.is_transformers:
        return state
    utilities = load_library("transformers.modeling_utils")
    for name in getattr(model, "_keys_to_ignore_on_save", None) or ():
        state.pop(name, None)
    state = utilities.remove_tied_weights_from_state_dict(state, model)
    saved: dict[str, torch.Tensor] = load_library("transformers.core_model_loading").revert_weight_conversion(
        model, state
    )
    if {id(tensor) for tensor in saved.values()} != {id(tensor) for tensor in state.values()}:
        raise DependencyError(
            f"transformers renames tensors of {type(model).__name__} in a way that lensconv does not know",
            "Use the version of transformers in constraints.txt.",
        )
    return saved
