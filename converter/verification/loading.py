"""Checks that load a checkpoint as its users do: with SDNQ's own loader and with the library of its class.

The loaded parameters are compared with the tensors of the file. SDNQ's loader takes them as they are. The loaders of
diffusers and transformers cast floats to the requested dtype, and scales back to float32 if the configuration says so;
there, the file is compared after the same casts.

Right tensors are not enough, because a loader may read them with other options than they were written with. So weights
that a loaded model would compute with are compared with those of the file, for one module of each kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from converter.checkpoint.reader import TensorReader
from converter.checkpoint.source import SourceTensor
from converter.conversion.kernels.sdnq import as_tensor
from converter.conversion.planning.planner import walk_modules
from converter.conversion.planning.rules import PARTS
from converter.errors import UnsupportedCheckpoint
from converter.libraries import QUANTIZING_ERRORS, load_library, loading_errors, missing_package
from converter.models.classes import find_class
from converter.models.sdnq_loader import has_all_names, refused_names
from converter.verification.audit import Audit
from converter.verification.dequantizing import configured_dequantizer, dequantize, sdnq_config
from converter.verification.report import Check, list_problems

#: Largest difference between a loaded weight and that of the file, as a part of the file's norm. Casts of scales and
#: zero points to bfloat16 changed no dtype of SDNQ 0.2.8 by more than 0.02; misread ones by 1.3 and more.
LARGEST_CHANGE = 0.25
#: Parts that may be codes, which a loader casts to floats if it does not know that.
_MAYBE_CODES = (".scale", ".zero_point")


def check_loading(audit: Audit) -> tuple[list[Check], list[str]]:
    """Load a checkpoint with both loaders, one after the other.

    Args:
        audit: of a component folder or a pipeline repo.

    Returns:
        The checks; and notes: if SDNQ's loader can load no model of this class with such names, one takes the place of
        its check.

    Raises:
        UnsupportedCheckpoint: the class is unknown, or the config is missing.
        DependencyError: a loader lacks a package.
    """
    checkpoint = audit.checkpoint
    if not checkpoint.config:
        raise UnsupportedCheckpoint(
            f"{checkpoint.folder}: has no config.json, which loaders need",
            "Give the component's folder.",
        )
    model_class = find_class(audit.class_name, str(checkpoint.folder / "config.json"))
    loader = load_library("sdnq.loader")
    folder = str(checkpoint.folder)
    library = "transformers" if issubclass(model_class, load_library("transformers").PreTrainedModel) else "diffusers"
    dtype = "dtype" if library == "transformers" else "torch_dtype"
    loaded: list[Any] = []

    def load_with_library() -> Any:
        loaded.append(model_class.from_pretrained(folder, **{dtype: torch.bfloat16}))
        return loaded[0]

    own = _check_loader(
        audit, "load with sdnq", lambda: loader.load_sdnq_model(folder, model_cls=model_class), casts=False
    )
    other = _check_loader(audit, f"load with {library}", load_with_library, casts=True)
    if library == "transformers" and other.ok and not own.ok and has_all_names(loaded[0], checkpoint.tensors):
        reason = refused_names(loaded[0], checkpoint.tensors)
        if reason:
            return [other], [reason]
    return [own, other], []


def _check_loader(audit: Audit, name: str, load: Callable[[], Any], *, casts: bool) -> Check:
    try:
        model = load()
    except ImportError as error:
        raise missing_package(name, error) from error
    except loading_errors() as error:
        return list_problems(name, [f"{type(error).__name__}: {error}"], "")
    checkpoint = audit.checkpoint
    state = model.state_dict(keep_vars=True)
    if load_library("transformers").PreTrainedModel in type(model).__mro__:
        # Files of transformers may use other names than the model; the library renames tensors when it saves.
        state = load_library("transformers.core_model_loading").revert_weight_conversion(model, dict(state))
    problems = [f"{key} was not loaded" for key, tensor in state.items() if tensor.is_meta]
    with TensorReader() as reader:
        for tensor_name, tensor in checkpoint.tensors.items():
            loaded = state.get(tensor_name)
            if loaded is None:
                problems.append(f"{tensor_name} is not in the loaded model")
                continue
            expected = _read(reader, tensor)
            is_number = expected.is_floating_point() or tensor_name.endswith(_MAYBE_CODES)
            if casts and is_number and loaded.is_floating_point():
                expected = _as_loaded(expected, loaded)
            if not _same_bits(expected, loaded):
                problems.append(f"{tensor_name} was loaded with other numbers")
        problems += _misread_weights(audit, model, state, reader)
    return list_problems(name, problems, f"{type(model).__name__}, {len(checkpoint.tensors)} tensors as in the file")


def _misread_weights(
    audit: Audit, model: Any, state: Mapping[str, torch.Tensor], reader: TensorReader
) -> Iterator[str]:
    """Compare weights of quantized modules with those of the file, for one module of each kind."""
    config, names = sdnq_config(audit.config), {id(tensor): name for name, tensor in state.items()}
    known = set()
    for named in walk_modules(model):
        dequantizer = getattr(named.module, "sdnq_dequantizer", None)
        if dequantizer is None:
            continue
        loaded = {part: tensor for part in PARTS if (tensor := getattr(named.module, part, None)) is not None}
        files = [audit.checkpoint.tensors.get(names.get(id(tensor), "")) for tensor in loaded.values()]
        try:
            configured = configured_dequantizer(named.module, named.parameter, config)
            kind = _settings(configured), _settings(dequantizer)
            # A tensor that is missing in the file is reported already.
            if kind in known or not all(files):
                continue
            known.add(kind)
            stored = {part: _read(reader, file) for part, file in zip(loaded, files, strict=True) if file}
            if _differ(dequantize(dequantizer, loaded), dequantize(configured, stored)):
                yield f"{named.path}: the loaded weight is not that of the file"
        except QUANTIZING_ERRORS as error:
            yield f"{named.path}: SDNQ cannot dequantize what was loaded: {str(error) or repr(error)}"


def _read(reader: TensorReader, tensor: SourceTensor) -> torch.Tensor:
    return as_tensor(reader.read_all(tensor), tensor.entry.dtype, tensor.entry.shape)


def _settings(dequantizer: Any) -> str:
    """Everything that decides how a dequantizer works, except shapes and the dtype of its result."""
    own = sorted((name, value) for name, value in vars(dequantizer).items() if not name.startswith(("result", "orig")))
    return repr([(name, value) for name, value in own if not name.endswith("shape")])


def _differ(loaded: torch.Tensor, stored: torch.Tensor) -> bool:
    # The file may contain NaN, which is equal to nothing.
    loaded, stored = torch.nan_to_num(loaded).double(), torch.nan_to_num(stored).double()
    return bool((loaded - stored).norm() > LARGEST_CHANGE * stored.norm())


def _as_loaded(stored: torch.Tensor, loaded: torch.Tensor) -> torch.Tensor:
    """The tensor of the file, as a loader returns it when it loads bfloat16."""
    if stored.dtype == loaded.dtype and _same_bits(stored, loaded):
        return stored
    return stored.to(torch.bfloat16).to(loaded.dtype)


def _same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    return bool(
        torch.equal(
            first.contiguous().reshape(-1).view(torch.uint8), second.detach().contiguous().reshape(-1).view(torch.uint8)
        )
    )
