"""Checks that load a checkpoint as its users do: with SDNQ's own loader and with the library of its class.

The loaded parameters are compared with the tensors of the file. SDNQ's loader takes them as they are. The loaders of
diffusers and transformers cast floats to the requested dtype, and scales back to float32 if the configuration says so;
there, the file is compared after the same casts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from converter.checkpoint.reader import TensorReader
from converter.checkpoint.source import Checkpoint
from converter.conversion.kernels.sdnq import as_tensor
from converter.errors import UnsupportedCheckpoint
from converter.libraries import LOADING_ERRORS, load_library
from converter.models.classes import find_class
from converter.models.sdnq_loader import has_all_names, refused_names
from converter.verification.audit import Audit
from converter.verification.report import Check, list_problems


def check_loading(audit: Audit) -> tuple[list[Check], list[str]]:
    """Load a checkpoint with both loaders, one after the other.

    Args:
        audit: of a component folder or a pipeline repo.

    Returns:
        The checks; and notes: if SDNQ's loader can load no model of this class with such names, one takes the place of
        its check.

    Raises:
        UnsupportedCheckpoint: the class is unknown, or the config is missing.
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
        checkpoint, "load with sdnq", lambda: loader.load_sdnq_model(folder, model_cls=model_class), casts=False
    )
    other = _check_loader(checkpoint, f"load with {library}", load_with_library, casts=True)
    if library == "transformers" and other.ok and not own.ok and has_all_names(loaded[0], checkpoint.tensors):
        reason = refused_names(loaded[0], checkpoint.tensors)
        if reason:
            return [other], [reason]
    return [own, other], []


def _check_loader(checkpoint: Checkpoint, name: str, load: Callable[[], Any], *, casts: bool) -> Check:
    try:
        model = load()
    except LOADING_ERRORS as error:
        return list_problems(name, [f"{type(error).__name__}: {error}"], "")
    state = model.state_dict()
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
            expected = as_tensor(reader.read_all(tensor), tensor.entry.dtype, tensor.entry.shape)
            if casts and expected.is_floating_point() and loaded.is_floating_point():
                expected = _as_loaded(expected, loaded)
            if not _same_bits(expected, loaded):
                problems.append(f"{tensor_name} was loaded with other numbers")
    return list_problems(name, problems, f"{type(model).__name__}, {len(checkpoint.tensors)} tensors as in the file")


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
