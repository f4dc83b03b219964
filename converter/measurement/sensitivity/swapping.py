"""SDNQ's own layers in place of those of a loaded denoiser, and the original ones back again.

The loader of diffusers makes the layers: it gets a model that has nothing but the modules to be exchanged, and the
parts of their weights in place of a file. So they compute as in a release that was loaded, with the same casts, and
with quantized matmul where the release has it on.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from converter.errors import UnsupportedCheckpoint
from converter.libraries import load_library
from converter.measurement.generation.loading import blaming
from converter.measurement.sensitivity.calls import Call, repeat
from converter.measurement.sensitivity.loaded import LoadedOriginal
from converter.measurement.sensitivity.parts import read_parts, restore
from converter.measurement.sensitivity.storage import Storage
from converter.models.classes import TORCH_DTYPES
from converter.models.empty import build_empty_model
from converter.models.int8_kernels import find_int8_kernel, use_int8_kernel
from converter.models.sdnq_layers import has_integer_products

#: Options of the whole model by which the loader casts scales and zero points, whatever those of a module are
#: (sdnq 0.2.8, ``SDNQQuantizer.create_quantized_param``, which looks up their own names).
_CASTS = ("dequantize_fp32", "scale_dtype", "zero_point_dtype")
#: What ``use`` leaves on the denoiser, and ``restore`` removes.
_MARKS = ("quantization_config", "int8_kernel")


class Swapping:
    """Stores weights of a loaded denoiser in another way, and restores them.

    The original modules stay in memory, where they are. What is kept in a narrower dtype than the pipeline computes in
    is rounded to it, as in a release that is loaded in float32; in a pipeline of bfloat16 nothing is left to round.

    Args:
        loaded: the original. Nothing else may exchange its modules in the meantime.
        spool: folder with the parts of quantized weights, as ``Storage.spool_file`` names the files.

    Raises:
        UnsupportedCheckpoint: the denoiser's class cannot be matched to its tensors.
    """

    def __init__(self, loaded: LoadedOriginal, spool: Path) -> None:
        self._loaded = loaded
        self._spool = spool
        self._names = {source: name for name, source in build_empty_model(loaded.checkpoint).sources.items()}
        self._originals: dict[str, nn.Module] = {}
        self._keys: dict[str, tuple[Any, ...]] = {}
        self._storages: dict[str, Storage] = {}
        self._rounded: dict[str, tuple[str, torch.Tensor]] = {}

    def use(self, storages: Mapping[str, Storage], quantization: Mapping[str, Any]) -> None:
        """Store weights in this way, and all others as in the original; only what differs from now is exchanged.

        Args:
            storages: how tensors are stored, by their names in the source; those that it leaves out stay as they are.
            quantization: the ``quantization_config`` of the plan that the storages are from.

        Raises:
            MissingInput: the parts of a weight were not spooled.
            MalformedCheckpoint: they are not what the storage says.
            UnsupportedCheckpoint: the loader cannot use them.
            MemoryLimitError: there is not enough memory.
        """
        casts = tuple(quantization.get(name) for name in _CASTS)
        wanted = {found.quantized.name: found for found in storages.values() if found.quantized is not None}
        keys = {path: (storage.key, *casts) for path, storage in wanted.items()}
        for path in [path for path, key in self._keys.items() if keys.get(path) != key]:
            self._put_back(path)
        self._round({self._names[found.source]: found for found in storages.values() if found.quantized is None})
        missing = {path: storage for path, storage in wanted.items() if path not in self._keys}
        if missing:
            for path, layer in self._make_layers(missing, quantization).items():
                self._originals[path] = self._put(path, layer)
                self._keys[path], self._storages[path] = keys[path], missing[path]
        for path, original in self._originals.items():
            # A bias may be rounded now, and may not have been before.
            others = {name: value for name, value in original._parameters.items() if name != "weight"}
            self._denoiser.get_submodule(path)._parameters.update(others)
        self._mark(quantization)

    def restore(self) -> None:
        """Put all original modules and tensors back."""
        for path in list(self._originals):
            self._put_back(path)
        self._round({})
        self._mark(None)

    def __enter__(self) -> Swapping:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def refuse_no_effect(self, call: Call) -> None:
        """Refuse layers that are called, and all compute as those whose place they took, although weights differ.

        Args:
            call: whose output the exchange has not changed.

        Raises:
            UnsupportedCheckpoint: that is so; then the denoiser computes with other weights than those of its modules.
        """
        changed = dict[str, bool]()

        def compare(path: str, arguments: Any, options: Any, output: Any) -> None:
            # Not called as a module, as both have the same hooks.
            expected = self._originals[path].forward(*arguments, **options)
            changed[path] = changed.get(path, False) or not torch.equal(expected, output)

        hooks = [
            self._denoiser.get_submodule(path).register_forward_hook(
                lambda _, arguments, options, output, path=path: compare(path, arguments, options, output),
                with_kwargs=True,
            )
            for path in self._originals
        ]
        try:
            with torch.no_grad(), blaming(self._loaded.repo.folder):
                repeat(self._denoiser, call, self._loaded.device)
        finally:
            for hook in hooks:
                hook.remove()
        unchanged = [path for path, is_changed in changed.items() if not is_changed]
        if len(unchanged) == len(changed) and any(self._weight_differs(path) for path in unchanged):
            raise UnsupportedCheckpoint(
                f"{self._loaded.repo.folder}: {unchanged[0]} computes as before, although its weight was exchanged",
                "The denoiser does not compute with the weights of its modules, so nothing can be measured here.",
            )

    @property
    def _denoiser(self) -> Any:
        return self._loaded.denoiser

    def _weight_differs(self, path: str) -> bool:
        storage, original = self._storages[path], self._originals[path].weight
        return not torch.equal(restore(storage, read_parts(storage, self._spool)), original.detach().float().cpu())

    def _put(self, path: str, module: nn.Module) -> nn.Module:
        """Put a module in the place of another one; return that."""
        owner, _, name = path.rpartition(".")
        parent = self._denoiser.get_submodule(owner)
        replaced: nn.Module = parent._modules[name]
        setattr(parent, name, module)
        return replaced

    def _put_back(self, path: str) -> None:
        self._put(path, self._originals.pop(path))
        del self._keys[path], self._storages[path]

    def _round(self, kept: Mapping[str, Storage]) -> None:
        """Round tensors to the dtype in which they are kept, and take back what was rounded otherwise.

        Args:
            kept: by their names in the model.
        """
        dtypes = {name: storage.parts[""].dtype for name, storage in kept.items()}
        for name in [name for name, (dtype, _) in self._rounded.items() if dtypes.get(name) != dtype]:
            self._assign(name, self._rounded.pop(name)[1])
        for name, dtype in dtypes.items():
            owner, last = self._owner(name)
            tensor = getattr(owner, last)
            kept_dtype = TORCH_DTYPES[dtype]
            if name in self._rounded or not tensor.is_floating_point() or kept_dtype.itemsize >= tensor.dtype.itemsize:
                continue
            self._rounded[name] = dtype, tensor
            rounded = tensor.detach().to(kept_dtype).to(tensor.dtype)
            self._assign(name, nn.Parameter(rounded, False) if isinstance(tensor, nn.Parameter) else rounded)

    def _owner(self, name: str) -> tuple[nn.Module, str]:
        """The original module that owns a tensor, and the tensor's name in it."""
        path, _, last = name.rpartition(".")
        return self._originals.get(path) or self._denoiser.get_submodule(path), last

    def _assign(self, name: str, tensor: torch.Tensor) -> None:
        owner, last = self._owner(name)
        setattr(owner, last, tensor)

    def _make_layers(self, storages: Mapping[str, Storage], quantization: Mapping[str, Any]) -> dict[str, nn.Module]:
        """Let the loader of diffusers make layers from spooled parts, each where the module is that it replaces.

        Args:
            storages: how their weights are stored, by path.
            quantization: SDNQ's configuration.
        """
        model, parts = nn.Module(), dict[str, torch.Tensor]()
        for path, storage in storages.items():
            _add(model, path, _without_weight(self._denoiser.get_submodule(path), self._loaded.dtype))
            parts |= {f"{path}.{part}": tensor for part, tensor in read_parts(storage, self._spool).items()}
        kept_in_float32 = list(getattr(self._denoiser, "_keep_in_fp32_modules", None) or ())
        loading = load_library("diffusers.models.model_loading_utils")
        automatic = load_library("diffusers.quantizers.auto").DiffusersAutoQuantizer
        with blaming(self._loaded.repo.folder), torch.no_grad():
            quantizer = automatic.from_config(copy.deepcopy(dict(quantization)), pre_quantized=True)
            quantizer.update_torch_dtype(self._loaded.dtype)
            quantizer.preprocess_model(model=model, device_map=None, keep_in_fp32_modules=kept_in_float32)
            loading.load_model_dict_into_meta(
                model,
                parts,
                dtype=self._loaded.dtype,
                hf_quantizer=quantizer,
                keep_in_fp32_modules=kept_in_float32,
            )
            quantizer.postprocess_model(model)
            layers = {path: model.get_submodule(path).eval() for path in storages}
            for path, layer in layers.items():
                if not hasattr(layer, "sdnq_dequantizer") or any(found.is_meta for found in layer.parameters()):
                    raise ValueError(f"the loader of diffusers does not load {path} as a quantized module")
                layer.to(self._denoiser.get_submodule(path).weight.device)
        return layers

    def _mark(self, quantization: Mapping[str, Any] | None) -> None:
        """Say on the denoiser whether it is quantized, and find the kernel that it multiplies with, as loading does."""
        for name in _MARKS:
            vars(self._denoiser).pop(name, None)
        if quantization is not None and self._originals:
            self._denoiser.quantization_config = dict(quantization)
            if has_integer_products(self._denoiser):
                use_int8_kernel(self._denoiser, find_int8_kernel(self._loaded.device))


def _without_weight(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of a module that shares everything but the weight, which has no storage."""
    shared = copy.copy(module)
    weight = nn.Parameter(torch.empty(module.weight.shape, dtype=dtype, device="meta"), requires_grad=False)
    shared._parameters = {**module._parameters, "weight": weight}
    return shared


def _add(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module at a path of a model, with plain modules above it."""
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in model._modules:
            model.add_module(parent, nn.Module())
        model = model._modules[parent]
    model.add_module(name, module)
